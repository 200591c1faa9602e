"""An experiment without a site is killed and goes on: the same tables, and still nobody looks at the left-out site.

Every process of the experiment writes down which images it opens, and whether it scores finished models meanwhile.
"""

from pathlib import Path

import numpy as np
import pytest

from experiments.test_runner import FILES, kill_at_random, start, units_of
from fedseg.cli import main
from tiny_experiment import write_experiment

# Python imports a module of this name in every process that starts.
SPY = """
import multiprocessing, os, sys

scoring = []

def watch(event, arguments):
    name = str(arguments[0]) if event == "open" and arguments else ""
    module = sys.modules.get("fedseg.experiments.unit_run")
    if not name.endswith(".nii.gz") or module is None or multiprocessing.parent_process() is None:
        return
    if not hasattr(module, "plain"):
        module.plain = module._scored
        module._scored = scored
    with open(os.environ["OPENED"], "a") as file:
        file.write(f"{os.getpid()} {'scores' if scoring else 'trains'} {os.path.basename(name)}\\n")

def scored(*arguments):
    scoring.append(True)
    try:
        return sys.modules["fedseg.experiments.unit_run"].plain(*arguments)
    finally:
        scoring.clear()

sys.addaudithook(watch)
"""


def opened(file: Path, does: str) -> set[str]:
    """Sites whose images were opened by processes that train, or that score."""
    lines = [line.split() for line in file.read_text("utf-8").splitlines()]
    return {name.split("-")[0] for _, doing, name in lines if doing == does}


@pytest.mark.full
def test_a_left_out_sites_data_stay_closed_also_after_a_kill(tmp_path, monkeypatch):
    folds = {"kind": "leave_one_site_out", "only": ["loso-beta"]}
    arms = {"local": {"kind": "local"}, "fedavg": {"job": "job"}}
    file = write_experiment(tmp_path, arms=arms, folds=folds, budget={"rounds": 1})
    assert main(["experiment", str(file), "--out", str(tmp_path / "whole"), "--jobs", "1"]) == 0
    (tmp_path / "spy").mkdir()
    (tmp_path / "spy" / "sitecustomize.py").write_text(SPY)
    monkeypatch.syspath_prepend(tmp_path / "spy")
    out, generator = tmp_path / "stopped", np.random.default_rng(7)
    monkeypatch.setenv("OPENED", str(tmp_path / "before"))
    assert kill_at_random(start(file, out, 1), out, generator)
    assert units_of(out) < units_of(tmp_path / "whole")
    monkeypatch.setenv("OPENED", str(tmp_path / "after"))
    process = start(file, out, 1)
    process.communicate()
    assert process.returncode == 0
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    for log in (tmp_path / "before", tmp_path / "after"):
        if log.exists():  # what was killed may not have opened anything
            assert "beta" not in opened(log, "trains")
    # Else the test would see nothing at all.
    assert opened(tmp_path / "after", "trains")
    assert "beta" in opened(tmp_path / "after", "scores")
