"""A stopped run goes on to the very same model, through FLARE's simulator."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from federation_parts import fedseg

from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
ROUNDS = 4
SETTINGS = [f"--set={key}={json.dumps(PLAN[key])}" for key in ("task", "network", "training")]
JOBS = {
    name: ROOT / "jobs" / f"{task}_{name}"
    for name, task in (("fedcostwavg", "hippocampus"), ("fedpidavg", "hippocampus"), ("fedadam", "brats"))
}
JOB = JOBS["fedcostwavg"]
EVERY_ROUND = [f"round {number}/3" for number in (1, 2, 3)]
FULL = [pytest.param(name, marks=pytest.mark.full) for name in ("fedpidavg", "fedadam")]


def simulate(job, data, out, *options):
    command = [sys.executable, "-m", "fedseg", "simulate", job, "--data", data, "--out", out, *options]
    return subprocess.run(list(map(str, command)), capture_output=True, encoding="utf-8", timeout=300, cwd=ROOT)


def start():
    return ["--rounds", ROUNDS, "--seed", 3, "--set=workflow.keep_checkpoints=0", *SETTINGS]


def model(out):
    return (out / "models" / "last.safetensors").read_bytes()


def rounds(out):
    """What must be equal: everything but durations."""
    kept = []
    for entry in json.loads((out / "report" / "summary.json").read_text("utf-8"))["rounds"]:
        sites = {s: {k: v for k, v in x.items() if not k.startswith("seconds")} for s, x in entry["sites"].items()}
        kept.append({**entry, "seconds": None, "sites": sites})
    return kept


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def data(folder):
    return make_sites(folder / "data", {"alpha": (6, 2), "beta": (2, 1), "gamma": (2, 1)})


@pytest.fixture(scope="module")
def undisturbed(folder, data):
    """A run in one process that nobody stopped."""
    out = folder / "undisturbed"
    result = fedseg("simulate", JOB, "--data", data, "--out", out, "--in-process", *start())
    assert result.code == 0, result.err
    return out


@pytest.fixture(scope="module")
def killed(folder, data):
    """The same run through FLARE's simulator, stopped in its third round; it went on through FLARE's simulator.

    Gives the folder, and of the stop: exit code, what the command said, and which of its processes were left.
    """
    out = folder / "killed"
    command = [sys.executable, "-m", "fedseg", "simulate", str(JOB), "--data", str(data), "--out", str(out)]
    command += map(str, start())
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, encoding="utf-8", cwd=ROOT)
    try:
        for line in process.stderr:
            if line.startswith("round 3/"):
                break
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 4
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    _, left = psutil.wait_procs(family, timeout=10)
    assert not (out / "report" / "summary.json").exists()
    result = simulate(JOB, data, out, "--resume")
    assert result.returncode == 0, result.stderr
    return SimpleNamespace(out=out, code=process.returncode, said=errors, left=left)


@pytest.fixture(scope="module", params=["fedcostwavg", *FULL])
def finished(request, folder, data):
    """A run of FLARE's simulator that has ended: the job and the folder."""
    job = JOBS[request.param]
    if job == JOB:
        return job, request.getfixturevalue("killed").out
    out = folder / request.param
    result = simulate(job, data, out, *start())
    assert result.returncode == 0, result.stderr
    return job, out


def test_termination_ends_every_process(killed):
    assert killed.code == 130
    assert "interrupted" in killed.said
    assert "Traceback" not in killed.said
    assert killed.left == []


def test_a_killed_run_goes_on_to_the_same_model(killed, undisturbed):
    assert model(killed.out) == model(undisturbed)
    assert rounds(killed.out) == rounds(undisturbed)


@pytest.mark.full
def test_a_killed_repetition_without_a_site_goes_on_to_the_same_matrix(folder, data):
    """SIGKILL in the second round of the training without beta; those with all and without alpha have ended."""
    job, options = ROOT / "jobs" / "hippocampus_cross_site_evaluation", ["--in-process", "--rounds", 3, "--seed", 3]
    runs = {kind: folder / f"repeated-{kind}" for kind in ("undisturbed", "killed")}
    result = simulate(job, data, runs["undisturbed"], *options, *SETTINGS)
    assert result.returncode == 0, result.stderr
    command = [sys.executable, "-m", "fedseg", "simulate", job, "--data", data, "--out", runs["killed"], *options]
    process = subprocess.Popen(
        list(map(str, [*command, *SETTINGS])), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    try:
        without = False
        for line in process.stderr:
            without |= line.startswith("training without beta")
            if without and line.startswith("round 2/"):
                break
    finally:
        process.kill()
        process.communicate()
    result = simulate(job, data, runs["killed"], "--in-process", "--resume")
    assert result.returncode == 0, result.stderr
    said = result.stderr.splitlines()
    assert [line for line in said if line.startswith("round ")] == ["round 2/3", "round 3/3", *EVERY_ROUND]
    assert [line for line in said if line.startswith("going on")] == [
        f"going on after round {number}" for number in (3, 3, 1)
    ]
    summaries = {kind: json.loads((out / "report" / "summary.json").read_text("utf-8")) for kind, out in runs.items()}
    one, other = (summary["cross_site_evaluation"] for summary in summaries.values())
    assert one == other
    assert [model["of"] for model in one["models"] if model["kind"] == "without"] == ["alpha", "beta", "gamma"]
    assert model(runs["killed"]) == model(runs["undisturbed"])


def test_going_back_to_an_earlier_round_gives_the_same_model(finished, folder, data):
    """A run of FLARE's simulator goes on in one process."""
    job, out = finished
    again = folder / f"{out.name}-again"
    shutil.copytree(out, again)
    more = ("--in-process", "--resume", "--from-round", 2)
    result = fedseg("simulate", job, "--data", data, "--out", again, *more)
    assert result.code == 0, result.err
    assert "going on after round 2" in result.err
    assert "round 3/4" in result.err
    assert "round 2/4" not in result.err
    assert model(again) == model(out)
    assert rounds(again) == rounds(out)


@pytest.mark.parametrize(
    ("job", "options", "said"),
    [
        ("hippocampus_fedcostwavg", ["--resume", "--from-round", 99], "--from-round 99"),
        ("hippocampus_fedcostwavg", ["--resume", "--rounds", 9], "--rounds cannot be given with --resume"),
        ("hippocampus_fedcostwavg", ["--from-round", 1], "only together with --resume"),
        ("hippocampus_dos", ["--resume"], "not of hippocampus_dos"),
    ],
)
def test_what_cannot_be_continued_is_said_and_nothing_is_lost(undisturbed, data, job, options, said):
    out = undisturbed
    before = model(out)
    result = fedseg("simulate", ROOT / "jobs" / job, "--data", data, "--out", out, *options)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err
    assert model(out) == before
    assert (out / "report" / "summary.json").exists()


def test_a_folder_without_a_finished_round_says_start_anew(folder, data):
    empty = folder / "nothing"
    result = fedseg("simulate", JOB, "--data", data, "--out", empty, "--resume")
    assert result.code == 2
    assert "no run that could go on" in result.err
    assert not empty.exists()
