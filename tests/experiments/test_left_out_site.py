"""No file of a site that is left out is opened before the models of its fold are finished."""

import sys
from pathlib import Path

import pytest

from fedseg.experiments import unit_run
from fedseg.experiments.definition import Watts
from fedseg.experiments.experiment import load_experiment
from fedseg.experiments.unit_run import read_done, run_unit
from tiny_experiment import ARMS, write_experiment

OPENED: list[str] = []
STATE = {"training": False}


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    """Python calls it for every file that this process opens; a hook cannot be taken back, but this one may rest."""
    if STATE["training"] and event == "open":
        OPENED.append(str(arguments[0]))


@pytest.fixture(scope="module", autouse=True)
def audited():
    sys.addaudithook(_hook)
    yield
    STATE["training"] = False


def test_a_left_out_sites_data_are_never_read_in_training(tmp_path, monkeypatch):
    folds = {"kind": "leave_one_site_out", "only": ["loso-beta"]}
    file = write_experiment(tmp_path, arms=ARMS, folds=folds, budget={"rounds": 1})
    experiment = load_experiment(file, None, tmp_path / "sites")
    scored = unit_run._scored
    during_scoring: list[str] = []

    def watched(*arguments):
        """From here on a unit scores its finished models."""
        OPENED.append("")
        found = scored(*arguments)
        during_scoring.extend(OPENED[OPENED.index("") :])
        return found

    monkeypatch.setattr(unit_run, "_scored", watched)
    for unit in experiment.units:
        OPENED.clear()
        during_scoring.clear()
        STATE["training"] = True
        run_unit(unit, tmp_path / "out", Watts())
        STATE["training"] = False
        training = {Path(name).name for name in OPENED[: OPENED.index("")] if name.endswith(".nii.gz")}
        scoring = {Path(name).name for name in during_scoring if name.endswith(".nii.gz")}
        of_site = {name for name in training if name.startswith(unit.fold.left_out)}
        assert of_site == set(), unit.name
        # Else the test would see nothing at all.
        trained = [unit.site] if unit.site != "-" else list(unit.fold.training)
        for site in trained if unit.arm.kind != "ensemble" else []:
            assert {name for name in training if name.startswith(site)}, unit.name
        assert {name for name in scoring if name.startswith(unit.fold.left_out)}, unit.name
        places = {row["evaluated_at"] for row in read_done(tmp_path / "out", unit.name).results}
        assert unit.fold.left_out in places
