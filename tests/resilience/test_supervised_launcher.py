"""Real processes that end in every way: which are started again, how often, and what FLARE hears at the end."""

import shlex
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from nvflare.apis.fl_constant import FLContextKey, FLMetaKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobReturnCode
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.private.fed.utils.fed_utils import get_return_code

from fedseg.errors import ConfigurationError
from fedseg.jobs.allowed_components import LAUNCHER, site_launcher
from fedseg.resilience import supervised_launcher as module
from fedseg.resilience.supervised_launcher import SupervisedLauncher
from fedseg.resilience.unfinished_jobs import NOTE

JOB = "job-1"
# Each start adds a line and ends in the way that the list names for it; the last way holds for all further starts.
PROGRAM = """
import os, signal, sys, time
lines, ways = sys.argv[1], sys.argv[2].split(",")
with open(lines, "a") as file:
    file.write("start\\n")
way = ways[min(sum(1 for _ in open(lines)), len(ways)) - 1]
if way == "sleep":
    time.sleep(600)
elif way.startswith("-"):
    # Whoever runs the tests in the background may have SIGINT ignored.
    if int(way[1:]) != signal.SIGKILL:
        signal.signal(int(way[1:]), signal.SIG_DFL)
    os.kill(os.getpid(), int(way[1:]))
    time.sleep(600)
elif way.startswith("file"):
    with open(os.path.join(os.path.dirname(lines), "CODE_FILE"), "w") as file:
        file.write(way[4:])
    os._exit(0)
os._exit(int(way))
""".replace("CODE_FILE", FLMetaKey.PROCESS_RC_FILE)


class Launcher(SupervisedLauncher):
    """Starts a small program in place of FLARE's; each of ``errors`` is raised by one start after the first."""

    def __init__(self, command, errors=(), **limits):
        super().__init__(**limits)
        self.command, self.errors = command, [None, *errors]

    def get_command(self, job_meta, fl_ctx):
        if self.errors and (error := self.errors.pop(0)):
            raise error
        return self.command


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Start a job whose processes end in these ways; returns its handle and the number of starts so far."""
    handles = []

    def run(*ways, restarts=3, pause=0.0, farewell=0.0, errors=()):
        monkeypatch.setattr(module, "_FAREWELL", farewell)
        folder, context = tmp_path / JOB, FLContext()
        folder.mkdir()
        workspace = SimpleNamespace(get_app_custom_dir=lambda job_id: "", get_run_dir=lambda job_id: str(folder))
        context.set_prop(FLContextKey.WORKSPACE_OBJECT, workspace)
        words = [sys.executable, "-c", PROGRAM, str(folder / "lines"), ",".join(map(str, ways))]
        launcher = Launcher(" ".join(map(shlex.quote, words)), errors, restarts=restarts, pause=pause)
        handles.append(launcher.launch_job({"job_id": JOB}, context))
        return handles[-1], lambda: len(read(folder / "lines"))

    yield run
    for handle in handles:
        handle.terminate()


def read(path):
    return path.read_text().splitlines() if path.exists() else []


def code(handle, tmp_path):
    """What FLARE's parent process reports to the server."""
    return get_return_code(handle, JOB, str(tmp_path), SimpleNamespace(warning=pytest.fail))


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("way", [-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT, 101, 1, 7, "file101"])
def test_a_process_that_died_is_started_again_and_its_good_end_counts(way, launch, tmp_path):
    handle, starts = launch(way, way, "0")
    handle.wait()
    assert starts() == 3
    assert code(handle, tmp_path) == JobReturnCode.SUCCESS


@pytest.mark.parametrize("way", [-signal.SIGKILL, "file101"])
@pytest.mark.parametrize(("restarts", "expected"), [(0, 1), (2, 3)])
def test_one_that_dies_too_often_is_given_up_without_a_verdict_on_the_job(way, restarts, expected, launch, tmp_path):
    handle, starts = launch(way, restarts=restarts)
    handle.wait()
    assert starts() == expected
    assert code(handle, tmp_path) == JobReturnCode.UNKNOWN


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_one_that_was_asked_to_end_is_not_started_again(number, launch, tmp_path):
    handle, starts = launch(-number)
    handle.wait()
    assert starts() == 1
    assert code(handle, tmp_path) == JobReturnCode.UNKNOWN


@pytest.mark.parametrize(
    ("way", "expected"), [("0", 0), ("9", JobReturnCode.ABORTED), ("file9", JobReturnCode.ABORTED), ("104", 1)]
)
def test_an_end_that_belongs_to_the_job_is_told_as_flare_tells_it(way, expected, launch, tmp_path):
    handle, starts = launch(way)
    handle.wait()
    assert starts() == 1
    assert code(handle, tmp_path) == expected


@pytest.mark.parametrize("way", ["102", "103", "file102", "file103"])
def test_a_site_that_cannot_build_the_job_leaves_it_at_once_and_ends_nobody_elses(way, launch, tmp_path):
    handle, starts = launch(way)
    handle.wait()
    assert starts() == 1
    assert code(handle, tmp_path) == JobReturnCode.UNKNOWN


def test_when_a_machine_is_shut_down_its_job_is_not_forgotten(launch, tmp_path):
    """All get SIGTERM: the client ends while the launcher still waits, so the note of the job must be there."""
    handle, starts = launch(-signal.SIGTERM, farewell=60)
    waiting = threading.Thread(target=handle.wait)
    waiting.start()
    wait_for(lambda: starts() == 1)
    time.sleep(0.5)
    assert waiting.is_alive(), "the client may be about to end too"
    assert (tmp_path / JOB / NOTE).is_file()
    handle.terminate()
    waiting.join(timeout=30)
    assert not waiting.is_alive()
    assert not (tmp_path / JOB / NOTE).exists()


def test_a_start_that_fails_counts_as_a_death(launch, tmp_path):
    memory = OSError(12, "Cannot allocate memory")
    handle, starts = launch("file101", "0", errors=[memory, memory])
    handle.wait()
    assert starts() == 2
    assert code(handle, tmp_path) == JobReturnCode.SUCCESS


def test_a_machine_on_which_nothing_can_be_started_leaves_the_job(launch, tmp_path):
    handle, starts = launch(-signal.SIGKILL, errors=[OSError(12, "Cannot allocate memory")] * 3)
    handle.wait()
    assert starts() == 1
    assert code(handle, tmp_path) == JobReturnCode.UNKNOWN


def test_whatever_goes_wrong_with_watching_ends_the_wait(launch, tmp_path):
    handle, starts = launch(-signal.SIGKILL, errors=[RuntimeError("odd")])
    handle.wait()
    assert starts() == 1
    assert code(handle, tmp_path) == JobReturnCode.UNKNOWN
    assert not (tmp_path / JOB / NOTE).exists()


def test_a_code_file_that_a_full_disk_left_empty_is_no_code(launch, tmp_path):
    handle, starts = launch("file", "file", "0", restarts=0)
    handle.wait()
    assert starts() == 1
    # The process ended with 0.
    assert handle.poll() == JobReturnCode.SUCCESS


def test_a_job_that_is_told_to_end_stays_ended(launch, tmp_path):
    handle, starts = launch("sleep")
    wait_for(lambda: starts() == 1)
    assert handle.poll() == JobReturnCode.UNKNOWN
    waiting = threading.Thread(target=handle.wait)
    waiting.start()
    handle.terminate()
    waiting.join(timeout=30)
    assert not waiting.is_alive()
    assert starts() == 1


def test_a_job_that_is_told_to_end_in_the_pause_is_not_started_again(launch, tmp_path):
    handle, starts = launch(-signal.SIGKILL, pause=60)
    waiting = threading.Thread(target=handle.wait)
    waiting.start()
    wait_for(lambda: starts() == 1)
    time.sleep(0.5)
    assert waiting.is_alive(), "it waits for its next start"
    handle.terminate()
    waiting.join(timeout=30)
    assert not waiting.is_alive()
    assert starts() == 1
    assert code(handle, tmp_path) == JobReturnCode.UNKNOWN


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"restarts": -1}, "process_launcher.restarts is -1"),
        ({"restarts": 101}, "process_launcher.restarts is 101"),
        ({"restarts": 2.0}, "process_launcher.restarts is 2.0"),
        ({"restarts": True}, "process_launcher.restarts is True"),
        ({"pause": -0.1}, "process_launcher.pause is -0.1"),
        ({"pause": float("nan")}, "process_launcher.pause is nan"),
        ({"pause": 601}, "process_launcher.pause is 601"),
        ({"pause": "5"}, "process_launcher.pause is '5'"),
    ],
)
def test_wrong_limits_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        SupervisedLauncher(**arguments)


def test_the_entry_of_a_kit_builds_it():
    entry = site_launcher("process_launcher")
    assert entry["path"] == LAUNCHER == f"{SupervisedLauncher.__module__}.{SupervisedLauncher.__qualname__}"
    assert isinstance(SupervisedLauncher(**entry["args"]), ClientProcessJobLauncher)
