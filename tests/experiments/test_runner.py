"""Experiments that fail, are stopped, and go on: the tables are the same to the last bit."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from fedseg.cli import main
from fedseg.experiments import unit_run
from fedseg.experiments.definition import Watts
from fedseg.experiments.experiment import load_experiment
from fedseg.experiments.runner import run_units
from fedseg.experiments.tables import TABLES
from fedseg.experiments.unit_run import try_unit
from tiny_experiment import ARMS, write_experiment

FILES = ("results.csv", "curves.csv", "summary.csv", "summary.json")
COMMAND = [sys.executable, "-m", "fedseg", "experiment"]


def start(file: Path, out: Path, jobs: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*COMMAND, str(file), "--out", str(out), "--jobs", str(jobs)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def units_of(out: Path) -> set[str]:
    return {path.name for path in (out / "units").glob("*")}


def under_way(out: Path, since: float) -> bool:
    """Whether a unit has begun, or has told how far it is."""
    found = False
    for path in (out / "work").glob("*"):
        with suppress(FileNotFoundError):  # it may be finished meanwhile
            found = found or path.stat().st_mtime > since
    return found


def kill_at_random(process: subprocess.Popen[bytes], out: Path, generator: np.random.Generator) -> bool:
    """Kill a run somewhere within a unit, or after one more is done; False where it ended before."""
    before, begun, further = units_of(out), time.time(), generator.uniform() < 0.4
    while process.poll() is None and not (units_of(out) - before if further else under_way(out, begun)):
        time.sleep(0.02)
    time.sleep(generator.uniform(0, 0.4))
    killed = process.poll() is None
    if killed:
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return killed


def killed_again_and_again(tmp_path: Path, kills: int, jobs: int, **definition: Any) -> None:
    """The tables after so many kills at random times, against those of a run that nobody stopped."""
    file = write_experiment(tmp_path, **definition)
    assert main(["experiment", str(file), "--out", str(tmp_path / "whole"), "--jobs", "1"]) == 0
    out, generator = tmp_path / "stopped", np.random.default_rng(kills)
    assert sum(kill_at_random(start(file, out, jobs), out, generator) for _ in range(kills)) == kills
    assert main(["experiment", str(file), "--out", str(out), "--jobs", "1"]) == 0
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not any((out / "work").glob("*"))


def test_an_experiment_that_is_killed_twice_gives_the_same_tables(tmp_path):
    arms = {name: ARMS[name] for name in ("local", "ensemble", "fedavg")}
    killed_again_and_again(tmp_path, 2, 1, arms=arms, budget={"rounds": 1})


@pytest.mark.full
def test_an_experiment_that_is_killed_ten_times_gives_the_same_tables(tmp_path):
    killed_again_and_again(tmp_path, 10, 2, arms=ARMS, seeds=[3, 4])


def test_a_unit_that_fails_stops_no_other_and_is_made_up_for(tmp_path, capsys):
    arms = {"local": {"kind": "local"}, "ensemble": {"kind": "ensemble", "of": "local"}, "central": {"kind": "central"}}
    file = write_experiment(tmp_path, arms=arms)
    label = tmp_path / "data" / "beta" / "images" / "beta-0.nii.gz"
    good = label.read_bytes()
    label.write_bytes(good[:50])
    command = ["experiment", str(file), "--out", str(tmp_path / "out"), "--jobs", "1"]
    assert main(command) == 1
    said = " ".join(capsys.readouterr().err.split())
    # What needs beta's images fails, and so does the ensemble of a model that is not there.
    assert "3 of 5 units failed" in said
    assert "the same command does the rest" in said
    assert units_of(tmp_path / "out") == {"local_seed3_alpha", "local_seed3_gamma"}
    rows = (tmp_path / "out" / "results.csv").read_text("utf-8").splitlines()
    assert {line.split(",")[4] for line in rows[1:]} == {"alpha", "gamma"}
    label.write_bytes(good)
    assert main(command) == 0
    assert len(units_of(tmp_path / "out")) == 5


def test_a_unit_whose_process_is_killed_fails_alone(tmp_path):
    arms = {"first": {"kind": "local"}, "second": {"kind": "ensemble", "of": "first"}}
    experiment = load_experiment(write_experiment(tmp_path, arms=arms, budget={"rounds": 1}), None, tmp_path / "sites")
    killed: list[str] = []

    def kill_the_second(ended, running):
        """As a system without memory does."""
        if len(ended) == 1 and not killed:
            killed.extend(unit.name for unit in running)
            for process in psutil.Process().children():
                if "spawn_main" in " ".join(process.cmdline()):
                    process.kill()

    failed = run_units(experiment.units, tmp_path, Watts(), 1, kill_the_second)
    assert killed == ["first_seed3_beta"]
    assert set(failed) == {"first_seed3_beta", "second_seed3"}
    assert "ended from outside" in failed["first_seed3_beta"]
    assert units_of(tmp_path) == {"first_seed3_alpha", "first_seed3_gamma"}


def test_an_error_of_any_kind_ends_its_unit_only(tmp_path):
    arms = {"a": {"kind": "central"}, "b": {"kind": "iil"}}
    experiment = load_experiment(write_experiment(tmp_path, arms=arms, budget={"rounds": 1}), None, tmp_path / "sites")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a_seed3").write_text("where the unit needs a folder")
    failed = run_units(experiment.units, tmp_path, Watts(), 1, lambda ended, running: None)
    assert set(failed) == {"a_seed3"}
    assert "FileExistsError" in failed["a_seed3"]
    assert units_of(tmp_path) == {"b_seed3"}


def test_the_traceback_of_a_unit_lies_beside_its_log(tmp_path, monkeypatch):
    file = write_experiment(tmp_path, arms={"a": {"kind": "central"}})
    (unit,) = load_experiment(file, None, tmp_path / "sites").units

    def broken(*arguments):
        raise ZeroDivisionError("a sum over nothing")

    monkeypatch.setattr(unit_run, "train", broken)
    reason = try_unit(unit, tmp_path, Watts())
    told = tmp_path / "work" / "a_seed3" / "error.txt"
    assert reason == f"ZeroDivisionError: a sum over nothing. Its traceback is in {told}."
    assert "in broken" in told.read_text("utf-8")


def test_only_what_changed_is_done_again(tmp_path):
    arms = {"a": {"kind": "central"}, "b": {"kind": "ciil"}}
    command = ["experiment", str(write_experiment(tmp_path, arms=arms)), "--out", str(tmp_path / "out"), "--jobs", "1"]
    assert main(command) == 0
    times = {path.parent.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "units").glob("*/unit.json")}
    changed = {"a": {"kind": "central"}, "b": {"kind": "ciil", "set": {"training.learning_rate": 0.1}}}
    write_experiment(tmp_path, arms={**changed, "c": {"kind": "iil"}})
    assert main(command) == 0
    after = {path.parent.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "units").glob("*/unit.json")}
    assert after["a_seed3"] == times["a_seed3"]
    assert after["b_seed3"] != times["b_seed3"]
    assert set(after) == {"a_seed3", "b_seed3", "c_seed3"}


def test_tables_have_their_columns(tmp_path):
    file = write_experiment(tmp_path, arms={"central": {"kind": "central"}}, watts={"cpu": 10})
    assert main(["experiment", str(file), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 0
    heads = {name: (tmp_path / "out" / name).read_text("utf-8").splitlines()[0] for name in TABLES}
    assert heads == {
        "results.csv": "experiment,arm,seed,fold,site,evaluated_at,case,patient,region,metric,value,empty",
        "costs.csv": "experiment,arm,seed,fold,quantity,value",
        "curves.csv": "experiment,arm,seed,fold,site,round,samples,metric,value",
    }
    costs = [line.split(",") for line in (tmp_path / "out" / "costs.csv").read_text("utf-8").splitlines()[1:]]
    named = {row[4] for row in costs} - {"gpu_seconds"}
    assert named == {
        "rounds", "steps", "samples", "cpu_seconds", "wall_seconds", "bytes_sent", "bytes_received", "peak_memory_mib",
        "kwh",
    }  # fmt: skip


def test_statistics_are_made_where_they_are_asked_for_and_counted_once(tmp_path, monkeypatch):
    import fedseg.statistics.of_datalists as module
    from fedseg.statistics.document import read_statistics

    counted = []
    measure = module.measure
    monkeypatch.setattr(module, "measure", lambda *a, **k: counted.append(1) or measure(*a, **k))
    file = write_experiment(tmp_path, arms={"central": {"kind": "central"}}, sites=["alpha", "beta"], statistics=3)
    command = ["experiment", str(file), "--out", str(tmp_path / "out"), "--jobs", "1"]
    assert main(command) == 0
    assert main(command) == 0
    found = read_statistics(tmp_path / "out" / "statistics.json")
    assert set(found.sites) == {"alpha", "beta"}
    assert len(counted) == 2
