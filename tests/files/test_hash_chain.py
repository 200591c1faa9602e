"""The chain: what it finds, what it repairs, and that nothing is lost when a process is killed."""

import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.errors import ConfigurationError
from fedseg.files import hash_chain_check
from fedseg.files.hash_chain import HashChain
from fedseg.files.hash_chain_check import ORIGIN, ChainError, verify


@pytest.fixture
def chain(tmp_path):
    """Five lines."""
    chain = HashChain(tmp_path / "folder" / "chain.jsonl")
    for number in range(5):
        chain.append({"value": number})
    return chain


def lines(chain):
    return chain.path.read_bytes().splitlines(keepends=True)


def head(chain):
    return chain.path.with_name("chain.jsonl.head")


def values(chain):
    return [entry["value"] for entry in chain.read()]


def test_what_is_appended_is_read(chain):
    entries = chain.read()
    assert [entry["value"] for entry in entries] == [0, 1, 2, 3, 4]
    assert [entry["number"] for entry in entries] == [1, 2, 3, 4, 5]
    assert entries[0]["previous"] == ORIGIN
    assert all(b["previous"] == a["hash"] for a, b in pairwise(entries))
    assert all(entry["time"].endswith("Z") for entry in entries)
    assert verify(chain.path).head == (5, entries[-1]["hash"])
    assert json.loads(head(chain).read_text()) == {"count": 5, "hash": entries[-1]["hash"]}


def test_the_hash_can_be_computed_by_hand(chain):
    entry = chain.read()[2]
    text = (
        f'{{"number":3,"previous":"{entry["previous"]}","time":"{entry["time"]}","value":2}}'  # sorted, without spaces
    )
    assert entry["hash"] == hashlib.sha256(text.encode()).hexdigest()


def test_an_append_returns_the_line_as_it_is_read(chain):
    written = chain.append({"value": (1, 2), "text": "ä\n\ud800"})
    assert written == chain.read()[-1]
    assert written["value"] == [1, 2]


def test_another_object_goes_on(chain):
    HashChain(chain.path).append({"value": 5})
    assert values(chain) == [0, 1, 2, 3, 4, 5]


def test_a_long_chain_is_not_taken_apart_again_for_each_line_and_a_change_is_still_found(tmp_path, monkeypatch):
    chain = HashChain(tmp_path / "chain.jsonl")
    seen, check = [], hash_chain_check._checked
    monkeypatch.setattr(
        hash_chain_check, "_checked", lambda line, number, before: seen.append(number) or check(line, number, before)
    )
    for value in range(5):
        chain.append({"value": value})
    assert seen == [1, 2, 3, 4], "each line once, by the append after it"
    assert values(HashChain(chain.path)) == list(range(5)), "whoever did not verify it before does so"
    assert seen[4:] == [1, 2, 3, 4, 5]
    chain.path.write_bytes(chain.path.read_bytes().replace(b'"value":1', b'"value":8'))
    with pytest.raises(ChainError, match="Line 2 was changed"):
        chain.append({"value": 5})


def test_nothing_there_is_an_empty_chain(tmp_path):
    assert HashChain(tmp_path / "none.jsonl").read() == []
    assert verify(tmp_path / "none.jsonl").head == (0, ORIGIN)
    assert list(tmp_path.iterdir()) == []


def test_only_the_owner_reads_the_files(chain):
    assert {path.stat().st_mode & 0o777 for path in (chain.path, head(chain))} == {0o600}


# --------------------------------------------------------- what is found


def refused(chain, line, message):
    """Reading, appending and verifying all refuse, with the line; the file stays as it is."""
    before = chain.path.read_bytes() if chain.path.exists() else b""
    for action in (chain.read, lambda: chain.append({"value": 9}), lambda: verify(chain.path)):
        with pytest.raises(ChainError, match=message) as error:
            action()
        assert error.value.line == line
        assert str(error.value).startswith(f"Line {line} ")
        assert str(chain.path.parent) not in str(error.value)
    assert (chain.path.read_bytes() if chain.path.exists() else b"") == before


def rewrite(chain, content):
    chain.path.write_bytes(b"".join(content))


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_any_changed_byte_is_found(tmp_path_factory, place, change):
    chain = HashChain(tmp_path_factory.mktemp("chain") / "chain.jsonl")
    for number in range(3):
        chain.append({"value": number})
    content = bytearray(chain.path.read_bytes())
    content[place % len(content)] ^= change
    chain.path.write_bytes(content)
    with pytest.raises(ChainError):
        chain.read()


def test_a_changed_value(chain):
    content = lines(chain)
    content[2] = content[2].replace(b'"value":2', b'"value":7')
    rewrite(chain, content)
    refused(chain, 3, "was changed: its hash does not fit")


@pytest.mark.parametrize(
    "line", [b"{}", b"[]", b"nothing", b"\xff\xfe", b"", b'{"hash":NaN,"number":3,"previous":""}', b"[" * 100_000]
)
def test_a_line_of_another_form(chain, line):
    content = lines(chain)
    content[2] = line + b"\n"
    rewrite(chain, content)
    refused(chain, 3, "is not a line of a chain|was changed")


def test_the_same_value_in_another_spelling(chain):
    content = lines(chain)
    content[2] = content[2].replace(b'"value":2', b'"value": 2')
    rewrite(chain, content)
    refused(chain, 3, "was changed")


def test_a_removed_line(chain):
    content = lines(chain)
    del content[1]
    rewrite(chain, content)
    refused(chain, 2, "has the number 3: lines were removed")


def test_the_first_line_removed(chain):
    rewrite(chain, lines(chain)[1:])
    refused(chain, 1, "has the number 2")


def test_two_lines_exchanged(chain):
    content = lines(chain)
    content[1], content[2] = content[2], content[1]
    rewrite(chain, content)
    refused(chain, 2, "has the number 3")


def test_a_line_of_another_chain(chain, tmp_path):
    other = HashChain(tmp_path / "other.jsonl")
    for number in range(5):
        other.append({"value": number})
    content = lines(chain)
    content[3] = lines(other)[3]
    rewrite(chain, content)
    refused(chain, 4, "belongs to another chain")


def test_the_first_line_of_another_chain(chain, tmp_path):
    other = HashChain(tmp_path / "other.jsonl")
    other.append({"value": 77})
    rewrite(chain, [lines(other)[0], *lines(chain)[1:]])
    refused(chain, 2, "belongs to another chain")


@pytest.mark.parametrize("left", [0, 1, 4])
def test_lines_cut_off_the_end(chain, left):
    rewrite(chain, lines(chain)[:left])
    refused(chain, left + 1, f"is missing: 5 lines were written and {left} are left")


def test_the_file_removed(chain):
    chain.path.unlink()
    refused(chain, 1, "is missing: 5 lines were written and 0 are left")


def test_a_line_that_was_acknowledged_and_then_shortened(chain):
    chain.path.write_bytes(chain.path.read_bytes()[:-10])
    refused(chain, 5, "is missing: 5 lines were written and 4 are left")


def test_a_whole_file_of_another_chain(chain, tmp_path):
    other = HashChain(tmp_path / "other.jsonl")
    for number in range(5):
        other.append({"value": number})
    rewrite(chain, lines(other))
    refused(chain, 5, "is not the line that the head names")


def test_an_older_head(chain):
    former = head(chain).read_bytes()
    chain.append({"value": 5})
    chain.append({"value": 6})
    head(chain).write_bytes(former)
    refused(chain, 6, "is not known to the head, which counts 5 of 7 lines")


def test_a_removed_head(chain):
    head(chain).unlink()
    refused(chain, 5, "has no head beside it")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"count":-1,"hash":"0"}', b'{"count":"x","hash":"0"}'])
def test_a_damaged_head(chain, content):
    head(chain).write_bytes(content)
    refused(chain, 5, "has a damaged head")


def test_errors_travel_between_processes():
    error = ChainError(3, "was changed.")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.line) == ("Line 3 was changed.", 3)


@pytest.mark.parametrize("name", ["number", "time", "previous", "hash", "torn_bytes"])
def test_names_of_the_chain_are_refused(chain, name):
    with pytest.raises(ConfigurationError, match=f"entry is '{name}', but must be free of the chain's own names"):
        chain.append({name: 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object(), b"bytes"])
def test_values_that_are_not_json_are_refused_and_leave_nothing(chain, value):
    with pytest.raises(ConfigurationError, match="values of JSON, with finite numbers"):
        chain.append({"value": value})
    assert values(chain) == [0, 1, 2, 3, 4]


# ------------------------------------------------------ what is repaired


def test_killed_between_line_and_head(chain):
    former = head(chain).read_bytes()
    chain.append({"value": 5})
    head(chain).write_bytes(former)
    assert values(chain) == [0, 1, 2, 3, 4, 5]
    chain.append({"value": 6})
    assert values(chain) == [0, 1, 2, 3, 4, 5, 6]
    assert json.loads(head(chain).read_text())["count"] == 7


def test_killed_between_the_first_line_and_its_head(chain):
    rewrite(chain, lines(chain)[:1])
    head(chain).unlink()
    assert values(chain) == [0]
    chain.append({"value": 1})
    assert values(chain) == [0, 1]


def test_killed_before_the_end_of_a_complete_line(chain):
    """Only the sign of its end is missing: the line counts."""
    former = head(chain).read_bytes()
    chain.append({"value": 5})
    head(chain).write_bytes(former)
    chain.path.write_bytes(chain.path.read_bytes()[:-1])
    assert values(chain) == [0, 1, 2, 3, 4, 5]
    chain.append({"value": 6})
    assert values(chain) == [0, 1, 2, 3, 4, 5, 6]
    assert not list(chain.path.parent.glob("*.torn"))


def test_killed_in_the_middle_of_a_line(chain, caplog):
    """At every byte: the fragment is reported, moved aside and never taken for a line."""
    former = head(chain).read_bytes()
    chain.append({"value": 5})
    whole = chain.path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start + 1, len(whole) - 1, 23):
        chain.path.write_bytes(whole[:end])
        head(chain).write_bytes(former)
        caplog.clear()
        assert values(chain) == [0, 1, 2, 3, 4]
        assert f"{end - start} bytes of an incomplete line" in caplog.text
        assert verify(chain.path).torn == whole[start:end]
        line = chain.append({"value": 6})
        assert line["torn_bytes"] == end - start
        assert values(chain) == [0, 1, 2, 3, 4, 6]
        torn = chain.path.with_name("chain.jsonl.torn")
        assert torn.read_bytes() == whole[start:end] + b"\n"
        torn.unlink()


def test_a_write_that_fails_is_no_line(chain, monkeypatch):
    """A full disk after half a line: the caller hears of it, and the chain goes on later."""
    write = os.write

    def full(handle, text):
        write(handle, text[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedseg.files.hash_chain.os.write", full)
    with pytest.raises(OSError, match="No space"):
        chain.append({"value": 5})
    monkeypatch.undo()
    assert values(chain) == [0, 1, 2, 3, 4]
    assert chain.append({"value": 6})["torn_bytes"] == 20


def test_a_full_disk_never_makes_a_chain_look_changed(chain, monkeypatch):
    """Room in the last block of the file, none for a new head, and that again and again. The first of these lines
    counts, as after a kill between the two writes; no other is written before the head knows it."""

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fedseg.files.hash_chain.os.replace", full)
        for value in (5, 6, 7):
            with pytest.raises(OSError, match="No space"):
                chain.append({"value": value})
    assert values(chain) == [0, 1, 2, 3, 4, 5]
    chain.append({"value": 8})
    assert values(chain) == [0, 1, 2, 3, 4, 5, 8]
    assert json.loads(head(chain).read_text())["count"] == 7


# ---------------------------------------------------------- processes

WRITER = """
import sys
from pathlib import Path
from fedseg.files.hash_chain import HashChain
chain, name, count = HashChain(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
for number in range(count):
    chain.append({"value": [name, number]})
    print(number, flush=True)
"""


def writer(path, name, count):
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(count)], stdout=subprocess.PIPE)


def test_killed_processes_leave_a_complete_chain(tmp_path):
    """SIGKILL at any moment: every line that was acknowledged is there, and at most one more for each process."""
    path, done, draw = tmp_path / "chain.jsonl", 0, random.Random(1)
    for attempt in range(6):
        process = writer(path, str(attempt), 100_000)
        assert process.stdout.readline() == b"ready\n"
        # However slow the disk is, some lines of each process are on it.
        heard = [process.stdout.readline() for _ in range(4)]
        time.sleep(draw.uniform(0.01, 0.15))
        process.send_signal(signal.SIGKILL)
        acknowledged = len(heard) + len([line for line in process.communicate()[0].split(b"\n")[:-1] if line])
        found = [entry["value"][1] for entry in HashChain(path).read() if entry["value"][0] == str(attempt)]
        assert found == list(range(len(found)))
        assert acknowledged <= len(found) <= acknowledged + 1
        done += len(found)
    assert done > 20
    HashChain(path).append({"value": "last"})
    assert len(HashChain(path).read()) == done + 1


def test_two_processes_take_turns(tmp_path):
    path = tmp_path / "chain.jsonl"
    processes = [writer(path, name, 40) for name in "ab"]
    assert [process.communicate()[0].count(b"\n") for process in processes] == [41, 41]
    found = [tuple(entry["value"]) for entry in HashChain(path).read()]
    for name in "ab":
        assert [number for writer_name, number in found if writer_name == name] == list(range(40))


def test_threads_take_turns(tmp_path):
    """What is read and what is appended inside ``exclusive`` belongs together: a counter loses no count."""
    chain = HashChain(tmp_path / "chain.jsonl")

    def count(_):
        with chain.exclusive() as held:
            held.append({"value": len(held.entries)})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(40)))
    assert values(chain) == list(range(40))
