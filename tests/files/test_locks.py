"""One process in a folder: who comes second is told who was first; the lock of a dead process holds nobody up."""

import json
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fedseg.cli import main
from fedseg.files.locks import LOCK, LockedError, held_locks, locked
from tiny import make_sites

ROOT = Path(__file__).parents[2]

# Takes the lock, says so, and keeps it until its input ends; with a word after the folder it starts a process first.
HOLDER = """
import subprocess, sys
from pathlib import Path
from fedseg.files.locks import held_locks, locked
with locked(Path(sys.argv[1]), "fedseg simulate"):
    if len(sys.argv) > 2:
        code = "import sys; print('child', flush=True); sys.stdin.read()"
        child = subprocess.Popen([sys.executable, "-c", code, sys.argv[1]], pass_fds=held_locks())
        child.wait()
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the lock of a folder, and ends it with the test."""
    started = []

    def start(*words):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path / "run"), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline().strip() in ("held", "child")
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def take(folder):
    with locked(folder, "fedseg simulate"):
        return True


def test_who_comes_second_is_told_who_is_there(tmp_path, holder):
    first = holder()
    with pytest.raises(LockedError, match=rf"works fedseg simulate \(process {first.pid} on .*\). Wait until it has"):
        take(tmp_path / "run")
    first.stdin.close()
    first.wait(30)
    assert take(tmp_path / "run")


def test_the_lock_of_a_process_that_was_killed_holds_nobody_up(tmp_path, holder):
    first = holder()
    first.kill()
    first.wait()
    assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == first.pid, "it could not take its note away"
    assert take(tmp_path / "run")
    assert not (tmp_path / "run").exists() or not (tmp_path / "run" / LOCK).exists()


def test_what_a_killed_process_left_behind_is_named(tmp_path, holder):
    """As the processes of FLARE's simulator do, which go on writing."""
    first = holder("with a child")
    first.kill()
    first.wait()
    with pytest.raises(LockedError, match=rf"what fedseg simulate \(process {first.pid} .* left behind") as error:
        take(tmp_path / "run")
    (child,) = re.search(r"process ([\d, ]+)\. Wait", str(error.value)).group(1).split(", ")
    ended = psutil.Process(int(child))
    first.stdin.close()
    ended.wait(30)
    assert take(tmp_path / "run")


def test_a_folder_is_made_and_taken_away_if_nothing_came_into_it(tmp_path):
    with locked(tmp_path / "a" / "b", "fedseg simulate"):
        assert len(held_locks()) == 1
        assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [LOCK]
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a", "fedseg simulate"):
        (tmp_path / "a" / "file").write_text("kept")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
    assert held_locks() == ()
    (tmp_path / "file").write_text("no folder")
    assert take(tmp_path / "file"), "what is no folder is for the command to refuse"


def test_a_note_that_cannot_be_read_says_no_less(tmp_path, holder):
    holder()
    (tmp_path / "run" / LOCK).write_text("")
    with pytest.raises(LockedError, match="works another process, which has just begun"):
        take(tmp_path / "run")


@pytest.mark.parametrize(
    "command",
    [
        ["simulate", "JOB", "--data", "DATA", "--out", "RUN"],
        ["simulate", "JOB", "--data", "DATA", "--out", "RUN", "--overwrite", "--in-process"],
        ["simulate", "JOB", "--data", "DATA", "--out", "RUN", "--resume"],
        ["local-federation", "--job", "JOB", "--data", "DATA", "--out", "RUN", "--overwrite"],
        ["report", "RUN"],
        ["probe-split", "RUN"],
    ],
)
def test_commands_that_write_into_a_run_wait_for_no_other_and_change_nothing(tmp_path, holder, capsys, command):
    first = holder()
    make_sites(tmp_path / "data", {"a": (1, 1), "b": (1, 1), "c": (1, 1)})
    words = {"RUN": tmp_path / "run", "JOB": ROOT / "jobs" / "hippocampus_fedavg", "DATA": tmp_path / "data"}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main([str(words.get(word, word)) for word in command]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"(process {first.pid} on" in said
    assert "name another folder" in said
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
