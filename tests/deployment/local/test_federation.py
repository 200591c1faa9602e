"""Processes of a local federation are all found and ended; the folder of a former one is replaced only if asked."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from fedseg.cli import main
from fedseg.data.site_folders import find_sites
from fedseg.deployment.coordination.session import FederationError
from fedseg.deployment.kits.project_file import read_project
from fedseg.deployment.local import federation as local_federation
from fedseg.deployment.local.example_sites import SIZES, hippocampi, make_example_sites
from fedseg.deployment.local.federation import LocalFederation, running
from fedseg.deployment.local.folder import prepare_output
from fedseg.deployment.local.processes import Participant, free_port, listens
from fedseg.errors import UsageError
from fedseg.jobs.job import read_job
from fedseg.site.profile import read_profile, read_state_folder
from fedseg.tasks.registry import resolve_task
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[3]
TEMPLATES = ROOT / "workspace_templates"
# Named like FLARE's programs, it starts a child in a session of its own, as FLARE does for a job, and dies before it.
PARENT = """
import subprocess, sys, time
command = [sys.executable, "-c", "import time; time.sleep(600)", "nvflare.private.fed.app.job", sys.argv[-1]]
subprocess.Popen(command, start_new_session=True)
time.sleep(float(sys.argv[1]))
"""


def fake_launch(seconds):
    def launch(kit, logs, wrapper=()):
        log = logs / f"{kit.name}.log"
        log.write_text(f"last words of {kit.name}\n")
        command = [sys.executable, "-c", PARENT, str(seconds), "nvflare.private.fed.app.server", str(kit.folder)]
        return Participant(kit, subprocess.Popen(command, start_new_session=True), log)

    return launch


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Run a federation of fake processes that end after so many seconds."""

    def run(seconds, body, limits=None):
        monkeypatch.setattr(local_federation, "launch", fake_launch(seconds))
        monkeypatch.setattr(local_federation, "listens", lambda port: True)
        data, out = make_sites(tmp_path / "data", {"a": (1, 1), "b": (1, 1)}), tmp_path / "out"
        out.mkdir()
        project = read_project(TEMPLATES / "three_hospitals")
        with running(project, TEMPLATES / "site_policy" / "local", data, ["a", "b"], out, limits) as local:
            body(local)

    return run


def of_this_test(folder):
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and any(str(folder) in word for word in process.info["cmdline"] or []):
            found.append(process.pid)
    return found


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ZeroDivisionError])
def test_every_process_is_ended_however_it_ends(error, start, tmp_path):
    counts = []

    def body(local):
        wait_for(lambda: len(local.processes()) == 6)
        counts.append(len(local.processes()))
        if error:
            raise error

    if error:
        with pytest.raises(error):
            start(600, body)
    else:
        start(600, body)
    # A server and two sites, each with a child.
    assert counts == [6]
    assert of_this_test(tmp_path) == []


def test_processes_whose_parents_are_gone_are_ended_too(start, tmp_path):
    def body(local):
        wait_for(lambda: len(local.processes()) == 6)
        for participant in local.participants:
            participant.process.kill()
            participant.process.wait()
        wait_for(lambda: len(local.processes()) == 3)

    start(600, body)
    assert of_this_test(tmp_path) == []


def test_a_process_that_ended_is_named_with_its_last_words(start):
    def body(local):
        wait_for(lambda: all(each.process.poll() is not None for each in local.participants))
        local.check(time.monotonic() + 60)

    with pytest.raises(FederationError, match=r"(?s)localhost has ended.*last words of localhost.*last words of b"):
        start(0.1, body)


def test_a_federation_that_does_not_get_ready_says_so(start):
    with pytest.raises(FederationError, match=r"(?s)did not get ready in time.*last words of a"):
        start(600, lambda local: local.check(time.monotonic() - 1))


def test_what_cannot_be_ended_is_named(start, monkeypatch):
    def body(local):
        with monkeypatch.context() as patch:
            patch.setattr(local_federation, "end_processes", lambda processes, patience: None)
            with pytest.raises(FederationError, match=rf"could not be ended: .*{local.participants[0].process.pid}"):
                local.stop(attempts=2)

    start(600, body)


def test_sites_and_server_find_their_data_state_and_limits(start, tmp_path):
    def body(local):
        folders = {kit.name: kit.folder / "local" for kit in local.federation.kits}
        for site, jobs in (("a", ("x_*",)), ("b", None)):
            profile = read_profile(site, folders[site], tmp_path)
            assert profile.datalist("anything") == tmp_path / "data" / site / "datalist.json"
            assert profile.state == tmp_path / "out" / "state" / site
            assert profile.policy is not None, "without a policy the guard would not be asked for"
            assert profile.policy.jobs == jobs
        assert read_state_folder("server", folders["localhost"], tmp_path) == tmp_path / "out" / "state" / "server"
        text = (folders["localhost"] / "resources.json").read_text("utf-8")
        assert text.count(str(tmp_path / "out" / "server")) == 2
        assert "/var/lib" not in text

    start(600, body, {"a": {"jobs": ["x_*"]}})


def test_a_free_port_is_free():
    port = free_port()
    assert 1024 < port < 65536
    assert not listens(port)


# --------------------------------------------------------------- folder


def test_only_a_former_local_federation_is_replaced(tmp_path):
    prepare_output(tmp_path / "new", False)
    assert (tmp_path / "new").is_dir()
    (tmp_path / "new" / "mine.txt").touch()
    with pytest.raises(UsageError, match="no former local federation"):
        prepare_output(tmp_path / "new", True)
    for name in ("provisioned", "models"):
        (tmp_path / "new" / name).mkdir()
    with pytest.raises(UsageError, match="add --overwrite"):
        prepare_output(tmp_path / "new", False)
    prepare_output(tmp_path / "new", True)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine.txt"], "what is not ours stays"
    with pytest.raises(UsageError, match="is a file"):
        prepare_output(tmp_path / "new" / "mine.txt", True)


@pytest.mark.parametrize("option", ["--data", "--job", "--template"])
def test_what_the_run_reads_is_never_replaced(option, tmp_path, monkeypatch, capsys):
    """A former federation in --out holds, below a folder that is made new, what an option names, by way of a link."""
    out = tmp_path / "out"
    (out / "provisioned").mkdir(parents=True)
    sources = {"--job": ROOT / "jobs" / "hippocampus_fedavg", "--template": TEMPLATES / "three_hospitals"}
    read = out / "data"
    if option == "--data":
        make_sites(read, {"a": (1, 1), "b": (1, 1)})
    else:
        shutil.copytree(sources[option], read)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    (tmp_path / "link").symlink_to(out, target_is_directory=True)
    monkeypatch.chdir(ROOT)
    named = {option: str(tmp_path / "link" / "data")}
    if option != "--data":
        named["--data"] = str(make_sites(tmp_path / "images", {"a": (1, 1), "b": (1, 1)}))
    words = [word for pair in named.items() for word in pair]
    assert main(["local-federation", "--overwrite", "--out", str(out), *words]) == 2
    assert f"{option} {named[option]} lies inside --out" in " ".join(capsys.readouterr().err.split())
    assert sorted(path for path in out.rglob("*") if path.is_file()) == files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds 0"),
        (["--timeout", "0"], "--timeout 0.0"),
        (["--template", "nowhere"], "nowhere is no template"),
        (["--job", "nowhere"], "nowhere is not a job of fedseg"),
        (["--data", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_wrong_usage_is_refused_before_anything_starts(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["local-federation", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------- example


def test_without_images_the_sites_are_phantoms(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDSEG_TEST_DATA", raising=False)
    assert hippocampi() is None
    job = read_job(ROOT / "jobs" / "brats_fedcostwavg")
    make_example_sites(job.plan.task, tmp_path / "sites", 1)
    assert len(find_sites(tmp_path / "sites")) == len(SIZES)
    with pytest.raises(UsageError, match=r"no example images for the task hippocampus: name a folder"):
        make_example_sites(resolve_task("hippocampus"), tmp_path / "none", 1)


@pytest.mark.images
def test_with_images_the_sites_are_hippocampi(test_data, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEG_TEST_DATA", str(test_data))
    make_example_sites(resolve_task("hippocampus"), tmp_path / "sites", 1)
    assert find_sites(tmp_path / "sites") == sorted(SIZES)


# ------------------------------------------------------- the whole command


@pytest.mark.full
def test_the_command_goes_from_kits_to_the_report(tmp_path):
    data = make_sites(tmp_path / "data", {"a": (2, 1), "b": (2, 1), "c": (2, 1)})
    settings = [f"--set={key}={json.dumps(PLAN[key])}" for key in ("task", "network", "training")]
    command = [sys.executable, "-m", "fedseg", "local-federation", "--data", str(data), "--rounds", "1", *settings]
    done = subprocess.run(
        [*command, "--job", "jobs/hippocampus_fedcostwavg", "--out", str(tmp_path / "out")],
        capture_output=True, encoding="utf-8", timeout=400, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "report" / "summary.json").read_text("utf-8"))
    assert sorted(summary["final"]["sites"]) == ["a", "b", "c"]
    assert (tmp_path / "out" / "models" / "last.safetensors").is_file()
    assert len(json.loads((tmp_path / "out" / "processes.json").read_text("utf-8"))) == 4
    assert of_this_test(tmp_path) == []


def test_a_server_that_is_not_ready_yet_is_asked_again(monkeypatch, tmp_path):
    """FLARE's server may answer before it has read its own certificate."""
    answers = [FederationError("not yet"), FederationError("not yet"), "session"]

    @contextmanager
    def connect(folder, timeout):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        yield answer

    monkeypatch.setattr(local_federation, "connect", connect)
    monkeypatch.setattr(local_federation.time, "sleep", lambda seconds: None)
    kit = SimpleNamespace(folder=tmp_path, name="coordinator")
    started = LocalFederation(tmp_path, SimpleNamespace(of_role=lambda role: [kit]), 1)
    with ExitStack() as stack:
        assert started._connected(stack, time.monotonic() + 60) == "session"
    answers.append(FederationError("not yet"))
    with pytest.raises(FederationError, match="not get ready in time"), ExitStack() as stack:
        started._connected(stack, time.monotonic() - 1)
