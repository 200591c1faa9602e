"""Files that are there as a whole or not at all, and JSON that cannot be read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.errors import ConfigurationError
from fedseg.files.documents import parse_json, private_files, read_json, whole_file, write_json, write_whole

DIES = """
import os, signal, sys
from pathlib import Path
from fedseg.files.documents import whole_file
with whole_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half of the n")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_into(path: Path, write: Callable[[Path], object]) -> None:
    with whole_file(path) as temporary:
        write(temporary)


def test_a_file_replaces_the_one_before_and_its_folder_is_made(tmp_path):
    path = tmp_path / "new" / "folder" / "note.json"
    assert write_whole(path, b"one") == path
    assert write_whole(path, "zwei: ü").read_bytes() == "zwei: ü".encode()
    assert names(path.parent) == ["note.json"]


def test_a_process_that_dies_between_write_and_rename_leaves_the_file_before(tmp_path):
    path = write_whole(tmp_path / "note.json", "old")
    died = subprocess.run([sys.executable, "-c", DIES, str(path)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2, "what it left has a name of its own"
    assert write_whole(path, "new").read_text() == "new"


def test_a_writer_that_fails_leaves_the_file_before_and_nothing_beside_it(tmp_path):
    path = write_whole(tmp_path / "note.json", "old")
    with pytest.raises(ZeroDivisionError):
        write_into(path, lambda temporary: temporary.write_text("half") / 0)
    assert (path.read_text(), names(tmp_path)) == ("old", ["note.json"])


def test_a_folder_in_the_way_is_an_error_and_stays(tmp_path):
    (tmp_path / "note.json" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "note.json", "new")
    assert names(tmp_path) == ["note.json"]
    assert names(tmp_path / "note.json") == ["inside"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_leaves_the_file_before(tmp_path):
    path = write_whole(tmp_path / "note.json", "old")
    with pytest.raises(OSError, match="No space left"):
        write_into(path, lambda temporary: temporary.symlink_to("/dev/full") or temporary.write_text("new"))
    assert (path.read_text(), names(tmp_path)) == ("old", ["note.json"])


def test_file_and_folder_are_forced_to_the_disk_around_the_rename(tmp_path, monkeypatch):
    """What the kernel is told, in order: the content first, then the name, then the folder that holds the name."""
    seen = []
    force, rename = os.fsync, os.replace

    def forced(handle: int) -> None:
        seen.append(("fsync", Path(os.readlink(f"/proc/self/fd/{handle}"))))
        force(handle)

    def renamed(source: Path, target: Path) -> None:
        seen.append(("rename", Path(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", forced)
    monkeypatch.setattr(os, "replace", renamed)
    path = write_whole(tmp_path / "note.json", "new")
    assert [kind for kind, _ in seen] == ["fsync", "rename", "fsync"]
    assert seen[0][1].parent == tmp_path
    assert [place for _, place in seen[1:]] == [path, tmp_path]


def test_the_temporary_name_keeps_the_endings_for_writers_that_go_by_them(tmp_path):
    with whole_file(tmp_path / "image.nii.gz") as temporary:
        assert temporary.name.endswith("-image.nii.gz")
        assert temporary.name.startswith(".")
        temporary.write_bytes(b"")


def test_threads_that_write_the_same_file_do_not_meet(tmp_path):
    path = tmp_path / "note.json"
    contents = [str(n) * 20_000 for n in range(8)]
    threads = [threading.Thread(target=write_whole, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in contents
    assert names(tmp_path) == ["note.json"]


@given(content=st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_json_is_read_as_it_was_written(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("json") / "note.json"
    assert read_json(write_json(path, content), "a note") == content
    assert path.read_text("utf-8").endswith("\n")


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe", b""])
def test_what_is_no_json_is_refused_with_what_the_file_is(tmp_path, content):
    path = tmp_path / "fedseg.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="the plan of a job, a readable JSON file") as refused:
        read_json(path, "the plan of a job")
    assert (refused.value.name, refused.value.value) == ("fedseg.json", str(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1, "b": {"a": 1, "a": 2}}', "'a' stands twice"),
        (b"[NaN]", "NaN"),
        (b"\xff\xfe\x00", "not text"),
        (b'{"a": "\xc3"}', "not text"),
        (b"7" * 5000, "digits"),
        (b'"\\udfff"', "surrogate"),
        (b"[" * 200 + b"]" * 200, "nested"),
        (b'{"a":' * 100_000, "nested"),
        (b"", "value"),
    ],
)
def test_json_that_means_nothing_definite_is_refused(tmp_path, content, said):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match=said):
        read_json(tmp_path / "x.json", "a note")


def test_json_is_read_in_each_encoding_and_with_infinity():
    text = '{"ü": [Infinity, -Infinity, "\\ud83d\\ude00"]}'
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert parse_json(text.encode(encoding)) == {"ü": [float("inf"), float("-inf"), "😀"]}
    assert parse_json("[" * 100 + "]" * 100) is not None


def test_private_files_are_the_owners_only_and_later_ones_as_before(tmp_path):
    former = os.umask(0o022)
    try:
        with private_files():
            write_whole(tmp_path / "private", b"a")
        write_whole(tmp_path / "open", b"b")
    finally:
        os.umask(former)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("private", "open")] == [0o600, 0o644]
