"""A run's record: goes on over restarts, says whose it is, and stops everything once a line is missing."""

import threading
import traceback
from contextlib import contextmanager

import pytest

from fedseg.files.hash_chain_check import ChainError
from fedseg.provenance.reading import read_record
from fedseg.provenance.run_log import RecordError, RunLog


def log(folder, name="alpha", run_id="run"):
    return RunLog(folder / "record.jsonl", "site", name, run_id)


def test_a_record_goes_on_over_restarts(tmp_path):
    log(tmp_path).append("accepted", cases=3)
    log(tmp_path).append("received", round=0)
    record = read_record(tmp_path / "record.jsonl")
    assert [entry["kind"] for entry in record.entries] == ["opened", "accepted", "received"]
    assert (record.side, record.name, record.run_id) == ("site", "alpha", "run")
    assert record.head == record.entries[-1]["hash"]


@pytest.mark.parametrize("other", [{"name": "beta"}, {"run_id": "another"}])
def test_the_record_of_another_run_is_not_gone_on_with(tmp_path, other):
    log(tmp_path).append("accepted")
    before = (tmp_path / "record.jsonl").read_bytes()
    with pytest.raises(RecordError, match="of another run"):
        log(tmp_path, **other).append("accepted")
    assert (tmp_path / "record.jsonl").read_bytes() == before


def test_a_changed_record_is_not_gone_on_with_and_the_text_names_no_path(tmp_path):
    log(tmp_path).append("accepted", cases=3)
    path = tmp_path / "record.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"cases":3', b'"cases":9'))
    for act in (lambda: log(tmp_path).append("received"), log(tmp_path).entries):
        with pytest.raises(RecordError, match="Line 2 was changed") as caught:
            act()
        assert str(tmp_path) not in str(caught.value)


@pytest.fixture
def full_disk(monkeypatch):
    """A context in which no line can be written."""

    def full(*arguments):
        raise OSError(28, "No space left on device")

    @contextmanager
    def context():
        with monkeypatch.context() as patch:
            patch.setattr("fedseg.files.hash_chain.os.write", full)
            yield

    return context


def test_after_a_line_that_could_not_be_written_at_the_server_there_is_no_other(tmp_path, full_disk):
    record = RunLog(tmp_path / "record.jsonl", "server", "server", "run")
    record.append("start")
    with full_disk(), pytest.raises(RecordError, match=r"cannot be written \(No space left on device\)"):
        record.append("round", round=0)
    with pytest.raises(RecordError, match="No space left"):
        record.append("round", round=1)
    assert len(read_record(tmp_path / "record.jsonl").entries) == 2


def test_a_site_goes_on_when_there_is_room_again_and_says_what_is_missing(tmp_path, full_disk):
    record = log(tmp_path)
    record.append("accepted")
    for _ in range(2):
        with full_disk(), pytest.raises(RecordError, match="No space left"):
            record.append("received", round=0)
    record.append("received", round=1)
    record.append("sent", round=1)
    found = read_record(tmp_path / "record.jsonl").entries[2:]
    assert [(entry["kind"], entry["round"], entry.get("unwritten")) for entry in found] == [
        ("received", 1, 2),
        ("sent", 1, None),
    ]


def test_a_value_that_is_none_of_json_is_refused(tmp_path):
    with pytest.raises(RecordError, match="cannot hold this"):
        log(tmp_path).append("round", epsilon=float("nan"))


def test_threads_of_a_server_do_not_disturb_each_other(tmp_path):
    record, failed = log(tmp_path), []

    def write(number):
        try:
            for line in range(5):
                record.append("site", thread=number, line=line)
        except Exception:
            failed.append(traceback.format_exc())

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(read_record(tmp_path / "record.jsonl").entries) == 21


def test_a_copy_is_a_record_of_its_own_with_its_head(tmp_path):
    record = log(tmp_path / "state")
    record.copy_to(tmp_path / "copy")
    assert not (tmp_path / "copy").exists(), "there was nothing to copy"
    record.append("accepted")
    record.copy_to(tmp_path / "copy")
    copied = read_record(tmp_path / "copy" / "record.jsonl")
    record.append("received")
    record.copy_to(tmp_path / "copy")
    assert read_record(tmp_path / "copy" / "record.jsonl").entries[:-1] == copied.entries
    with (tmp_path / "copy" / "record.jsonl").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(ChainError):
        read_record(tmp_path / "copy" / "record.jsonl")
