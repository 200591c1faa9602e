"""A stopped run goes on to the very same model, through FLARE's simulator."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from federation_parts import fedseg

from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
ROUNDS = 4
SETTINGS = [f"--set={key}={json.dumps(PLAN[key])}" for key in ("task", "network", "training")]
METHODS = {
    "fedcostwavg": ("hippocampus_fedcostwavg", []),
    "fedpidavg": ("hippocampus_fedpidavg", []),
    "fedadam": ("brats_fedadam", []),
}
FULL = [pytest.param(name, marks=pytest.mark.full) for name in ("fedpidavg", "fedadam")]


def simulate(job, data, out, *options):
    command = [sys.executable, "-m", "fedseg", "simulate", ROOT / "jobs" / job, "--data", data, "--out", out, *options]
    return subprocess.run(list(map(str, command)), capture_output=True, encoding="utf-8", timeout=300, cwd=ROOT)


def start(*extra):
    return ["--rounds", ROUNDS, "--seed", 3, "--set=workflow.keep_checkpoints=0", *SETTINGS, *extra]


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


@pytest.fixture(scope="module", params=["fedcostwavg", *FULL])
def whole(request, folder, data):
    """The uninterrupted run of a method."""
    job, options = METHODS[request.param]
    out = folder / request.param
    result = simulate(job, data, out, *start(*options))
    assert result.returncode == 0, result.stderr
    return job, out


def test_going_back_to_an_earlier_round_gives_the_same_model(whole, folder, data):
    """A run of FLARE's simulator goes on in one process."""
    job, out = whole
    again = folder / f"{out.name}-again"
    shutil.copytree(out, again)
    result = simulate(job, data, again, "--in-process", "--resume", "--from-round", 2)
    assert result.returncode == 0, result.stderr
    assert "going on after round 2" in result.stderr
    assert "round 3/4" in result.stderr
    assert "round 2/4" not in result.stderr
    assert model(again) == model(out)
    assert rounds(again) == rounds(out)


def test_a_killed_run_goes_on_to_the_same_model(folder, data, request):
    whole_run = folder / "fedcostwavg"
    if not whole_run.exists():
        assert simulate("hippocampus_fedcostwavg", data, whole_run, *start()).returncode == 0
    out = folder / "killed"
    command = [sys.executable, "-m", "fedseg", "simulate", str(ROOT / "jobs" / "hippocampus_fedcostwavg")]
    command += ["--data", str(data), "--out", str(out), *map(str, start())]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, encoding="utf-8", cwd=ROOT)
    try:
        for line in process.stderr:
            if line.startswith("round 3/"):
                break
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert not (out / "report" / "summary.json").exists()
    result = simulate("hippocampus_fedcostwavg", data, out, "--resume")
    assert result.returncode == 0, result.stderr
    assert model(out) == model(whole_run)
    assert rounds(out) == rounds(whole_run)


@pytest.mark.parametrize(
    ("job", "options", "said"),
    [
        ("hippocampus_fedcostwavg", ["--resume", "--from-round", 99], "--from-round 99"),
        ("hippocampus_fedcostwavg", ["--resume", "--rounds", 9], "--rounds cannot be given with --resume"),
        ("hippocampus_fedcostwavg", ["--from-round", 1], "only together with --resume"),
        ("hippocampus_dos", ["--resume"], "not of hippocampus_dos"),
    ],
)
def test_what_cannot_be_continued_is_said_and_nothing_is_lost(folder, data, job, options, said):
    out = folder / "fedcostwavg"
    if not out.exists():
        assert simulate("hippocampus_fedcostwavg", data, out, *start()).returncode == 0
    before = model(out)
    result = fedseg("simulate", ROOT / "jobs" / job, "--data", data, "--out", out, *options)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err
    assert model(out) == before
    assert (out / "report" / "summary.json").exists()


def test_a_folder_without_a_finished_round_says_start_anew(folder, data):
    empty = folder / "nothing"
    result = simulate("hippocampus_fedcostwavg", data, empty, "--resume")
    assert result.returncode == 2
    assert "no run that could go on" in result.stderr
    assert not empty.exists()
