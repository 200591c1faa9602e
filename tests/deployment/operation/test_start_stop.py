"""A kit's processes are started by the kit's own script, recognised among all others, and ended in order."""

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedseg.cli import main
from fedseg.commands import site
from fedseg.deployment.kits.installed_kit import read_kit
from fedseg.deployment.kits.project_file import on_this_machine, read_project
from fedseg.deployment.kits.provisioning import provision
from fedseg.deployment.local.processes import free_port
from fedseg.deployment.operation import start_stop
from fedseg.deployment.operation.checks import result as site_check_result
from fedseg.deployment.operation.checks.page import CheckPage
from fedseg.deployment.operation.kit_processes import find_processes
from fedseg.deployment.operation.start_stop import ProcessError, start, stop
from fedseg.deployment.operation.status import status

TEMPLATES = Path(__file__).parents[3] / "workspace_templates"
PYTHON = sys.executable  # The tests replace it, so that the start script finds another one.
# In place of FLARE's client: starts a job in a session of its own, as FLARE does, holds a connection, and goes on.
PROGRAM = """
import json, pathlib, socket, subprocess, sys, time
kit = sys.argv[sys.argv.index("-m", 3) + 1] if "-m" in sys.argv[3:] else sys.argv[4]
job = [sys.executable, "-c", "import time; time.sleep(600)", "nvflare.private.fed.app.client.worker_process"]
subprocess.Popen([*job, "-m", kit, "-n", "job-1"], start_new_session=True)
target = json.loads(pathlib.Path(kit, "startup", "fed_client.json").read_text())["servers"][0]["service"]["target"]
connection = socket.create_connection(("localhost", int(target.split(":")[1])))
print("connected", flush=True)
time.sleep(600)
"""
# In place of python3: runs that program under the command line of FLARE's.
FAKE_PYTHON = """#!/usr/bin/env bash
exec {real} -c "$(cat {program})" "$@"
"""


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    project = on_this_machine(read_project(TEMPLATES / "three_hospitals"), ["alpha"], free_port())
    return (
        provision(
            project, TEMPLATES / "site_policy" / "local", tmp_path_factory.mktemp("kits") / "out", with_wheel=False
        ).folder
        / "kits"
    )


@pytest.fixture
def kit(kits, tmp_path, monkeypatch):
    """A kit whose start script finds a program that only looks like FLARE's."""
    shutil.copytree(kits / "alpha", tmp_path / "kit" / "alpha")
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "program.py").write_text(PROGRAM)
    (folder / "python3").write_text(FAKE_PYTHON.format(real=PYTHON, program=folder / "program.py"))
    (folder / "python3").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    found = read_kit(tmp_path / "kit" / "alpha")
    yield found
    monkeypatch.undo()
    stop(found, 0)
    assert not find_processes(found)


@pytest.fixture
def listener(kit):
    with socket.create_server(("localhost", kit.port)) as server:
        yield server


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def command(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), " ".join(err.getvalue().split())


def test_a_site_is_started_watched_and_stopped_in_order(kit, listener):
    before = status(kit)
    assert (before.processes.all, before.since, before.connected, before.lines) == ([], None, None, ())
    main_process = start(kit)
    wait_for(lambda: find_processes(kit).jobs and status(kit).connected)
    found = find_processes(kit)
    assert found.main == main_process
    assert found.main.ppid() == found.keeper.pid
    assert list(found.jobs) == ["job-1"]
    assert int((kit.folder / "daemon_pid.fl").read_text()) == found.keeper.pid
    with pytest.raises(ProcessError, match=rf"alpha runs already \(process {found.keeper.pid}, {found.main.pid}, "):
        start(kit)
    seen = status(kit)
    assert seen.connected is True
    assert abs(seen.since.timestamp() - time.time()) < 120
    assert seen.lines[-1] == "connected"
    code, out, _ = command("site", "status", "--kit", kit.folder, "--lines", 1)
    assert code == 0
    assert f"running, process {found.main.pid}, since" in out
    assert f"connected to localhost:{kit.port}" in out
    assert "jobs: job-1" in out
    code, out, _ = command("site", "stop", "--kit", kit.folder)
    assert code == 0
    assert out.splitlines()[-1] == "alpha is stopped."
    hows = {line.partition(" (")[0]: line.partition("): ")[2] for line in out.splitlines()[:-1]}
    assert hows == {
        "start script": "by FLARE's own way",
        "FLARE": "by FLARE's own way",
        "job job-1": "terminated",
    }
    assert not find_processes(kit)
    assert not list(kit.folder.glob("*.fl"))
    code, out, _ = command("site", "status", "--kit", kit.folder)
    assert code == 1
    assert out.startswith("alpha: stopped\n")
    assert command("site", "stop", "--kit", kit.folder)[1] == "alpha did not run.\n"


def test_what_does_not_listen_is_killed_and_an_orphaned_job_is_ended(kit):
    """A program without FLARE's script, as under systemd, that ignores the request to end, and a job without it."""
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    words = {"client_train": [], "worker_process": ["-n", "job-2"]}
    processes = {}
    for name, more in words.items():
        line = [PYTHON, "-c", deaf, f"nvflare.private.fed.app.client.{name}", "-m", str(kit.folder), *more]
        processes[name] = subprocess.Popen(line, stdout=subprocess.PIPE, start_new_session=True)
        assert processes[name].stdout.readline() == b"deaf\n"
    try:
        found = find_processes(kit)
        assert (found.keeper, found.main.pid) == (None, processes["client_train"].pid)
        ended = stop(kit, patience=0.5)
        assert [(each.pid, each.what, each.how) for each in ended] == [
            (processes["client_train"].pid, "FLARE", "killed"),
            (processes["worker_process"].pid, "job job-2", "killed"),
        ]
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def test_a_script_that_somebody_typed_is_recognised_however_he_named_it(kit, tmp_path):
    """By a path that counts from his folder, or through a link; what the script starts is found by its own path."""
    (kit.folder / "startup" / "sub_start.sh").write_text("sleep 600; true\n")
    (tmp_path / "link").symlink_to(kit.folder)
    for folder, word in ((kit.folder, "startup/sub_start.sh"), (tmp_path, "link/startup/sub_start.sh")):
        process = subprocess.Popen(["bash", word], cwd=folder, start_new_session=True)
        try:
            wait_for(lambda: find_processes(kit).keeper is not None)
            assert [(each.pid, each.how) for each in stop(kit, flare_seconds=0.2)] == [(process.pid, "terminated")]
        finally:
            process.kill()
            process.wait()


def test_processes_of_others_are_left_alone(kit, kits):
    """Another kit's program, a program with the kit's path that is not FLARE's, and an old id in a pid file."""
    sleep = [PYTHON, "-c", "import time; time.sleep(600)"]
    lines = [
        [*sleep, "nvflare.private.fed.app.client.client_train", "-m", str(kits / "alpha")],
        [*sleep, "nvflare.private.fed.app.client.client_train", "-m", f"{kit.folder}-2"],
        [*sleep, "editor", str(kit.folder)],
    ]
    others = [subprocess.Popen(line) for line in lines]
    try:
        for name in ("pid.fl", "daemon_pid.fl"):
            (kit.folder / name).write_text(f"{others[0].pid}\n")
        assert not find_processes(kit)
        assert stop(kit) == []
        assert [process.poll() for process in others] == [None, None, None]
        assert not (kit.folder / "pid.fl").exists()
    finally:
        for process in others:
            process.kill()
            process.wait()


def test_a_program_that_does_not_start_is_said_with_its_last_words(kit, tmp_path):
    (tmp_path / "bin" / "python3").write_text("#!/usr/bin/env bash\necho no such thing\nexit 3\n")
    with pytest.raises(ProcessError, match=r"(?s)alpha did not start; the end of .*console\.log.*no such thing"):
        start(kit, timeout=7)
    assert not find_processes(kit)


def test_a_program_that_ends_at_once_is_not_called_running(kit, tmp_path):
    """FLARE's script starts it again and again, so somebody who looks for a process finds one now and then."""
    (tmp_path / "bin" / "program.py").write_text("import time; time.sleep(2); print('the port is taken', flush=True)")
    with pytest.raises(ProcessError, match=r"(?s)alpha ended as soon as it had started; .*the port is taken"):
        start(kit)
    assert not find_processes(kit)


def test_a_variable_of_flares_containers_does_not_move_the_kit(kit, listener, tmp_path, monkeypatch):
    monkeypatch.setenv("NVFL_WORKSPACE", str(tmp_path / "elsewhere"))
    start(kit, settle_seconds=0)
    assert not (tmp_path / "elsewhere").exists()


def test_what_cannot_be_ended_is_named(kit, monkeypatch):
    line = [PYTHON, "-c", "import time; time.sleep(600)", "nvflare.private.fed.app.client.client_train"]
    process = subprocess.Popen([*line, "-m", str(kit.folder)])
    try:
        wait_for(lambda: find_processes(kit).main is not None)
        with monkeypatch.context() as patch:
            patch.setattr(start_stop, "_end", lambda process, patience: "terminated")
            with pytest.raises(ProcessError, match=rf"could not be ended: {process.pid}"):
                stop(kit)
    finally:
        process.kill()
        process.wait()


def test_a_red_check_keeps_the_site_from_starting_unless_it_is_forced(kit, monkeypatch):
    page = CheckPage(kit, {"the kit": (site_check_result.red("key file", "It is open.", "Close it."),)})
    monkeypatch.setattr(site, "check_site", lambda kit, options: page)
    started = []
    monkeypatch.setattr(site, "start", lambda kit: started.append(kit) or psutil.Process(os.getpid()))
    code, _, err = command("site", "start", "--kit", kit.folder)
    assert (code, started) == (1, [])
    assert "alpha is not started, for key file: It is open." in err
    code, out, err = command("site", "start", "--kit", kit.folder, "--force")
    assert (code, started) == (0, [kit])
    assert "though key file: It is open." in err
    assert f"alpha runs: process {os.getpid()}" in out
