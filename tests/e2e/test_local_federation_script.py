"""The script that shows a real federation on one machine, as somebody runs it who has just cloned the repository."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
# The job as it is, but for its size.
SETTINGS = ("training.local_epochs=1", "network.channels=[8, 16, 32]", "network.strides=[2, 2]")
SEED, ROUNDS = "7", "2"
SIZE = [word for setting in SETTINGS for word in ("--set", setting)]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder that the script leaves."""
    out = tmp_path_factory.mktemp("script") / "out"
    command = ["bash", "scripts/local_federation.sh", "--rounds", ROUNDS, "--seed", SEED, "--out", str(out), *SIZE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all processes have ended" in done.stderr
    return out


def test_model_summary_and_processes_are_there(out):
    summary = json.loads((out / "report" / "summary.json").read_text("utf-8"))
    sites = {"hospital-a", "hospital-b", "hospital-c"}
    assert [set(entry["sites"]) for entry in summary["rounds"]] == [sites] * int(ROUNDS)
    assert set(summary["final"]["sites"]) == sites
    assert (out / summary["final"]["model"]).is_file()
    assert (out / "report" / "report.html").is_file()
    processes = json.loads((out / "processes.json").read_text("utf-8"))
    assert [each["role"] for each in processes] == ["server", "client", "client", "client"]
    assert len({each["pid"] for each in processes}) == 4
    assert {each["subject"].rpartition("CN=")[2] for each in processes} == {"localhost", *sites}


def test_no_process_is_left(out):
    left = [process.pid for process in psutil.process_iter() if any(str(out) in word for word in _command(process))]
    assert left == []


@pytest.mark.full
def test_flares_simulator_makes_the_same_model(out, tmp_path):
    summary = json.loads((out / "report" / "summary.json").read_text("utf-8"))
    job = ROOT / "jobs" / summary["job"]
    options = ["--data", str(out / "data"), "--out", str(tmp_path / "run"), "--rounds", ROUNDS, "--seed", SEED, *SIZE]
    command = [sys.executable, "-m", "fedseg", "simulate", str(job), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-3000:]
    simulated = json.loads((tmp_path / "run" / "report" / "summary.json").read_text("utf-8"))
    federated = load_file(out / summary["final"]["model"])
    other = load_file(tmp_path / "run" / simulated["final"]["model"])
    assert federated.keys() == other.keys()
    for name, value in other.items():
        np.testing.assert_allclose(federated[name], value, rtol=0, atol=1e-6, err_msg=name)


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []
