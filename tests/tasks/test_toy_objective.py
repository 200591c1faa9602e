"""A kind of task that has nothing of segmentation runs whole, from its one file and a job that names it."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fedseg.tasks
from fedseg.contract.plan import parse_plan
from fedseg.contract.report import parse_report, task_fields
from fedseg.data.datalist import Datalist, read_datalist
from fedseg.errors import ConfigurationError, RefusalError, UsageError
from fedseg.evaluation.report.page import write_report
from fedseg.evaluation.report.tables import score_frame
from fedseg.evaluation.scoring import Predictor, evaluate, write_masks
from fedseg.evaluation.summary import describe_run, write_summary
from fedseg.jobs.job import read_job
from fedseg.models.model_file import read_model, write_model
from fedseg.simulation.in_process import InProcessFederation
from fedseg.training.split.halves import segmentation_loss
from fedseg.workflows.run.acceptance import check_report
from fedseg.workflows.run.scores import is_better, readable, validation_scores
from fedseg.workflows.run.selection_base import SiteFacts
from fedseg.workflows.run.stopping import StoppingRules
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
TASK = {
    "name": "denoising",
    "objective": "intensity",
    "modality": "MR",
    "channels": ["a"],
    "normalisation": "zscore",
    "patch_size": [16, 16, 16],
    "flip_axes": [0],
}
SITES = {"alpha": (3, 2), "beta": (2, 1)}


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """The file lies where kinds of tasks lie."""
    monkeypatch.setattr(fedseg.tasks, "__path__", [*fedseg.tasks.__path__, str(ROOT / "tests" / "toys")])


@pytest.fixture
def datalists(tmp_path):
    """Cases without a label."""
    data = make_sites(tmp_path / "data", SITES)

    def bare(cases):
        return tuple(replace(case, label=None) for case in cases)

    found = {site: read_datalist(data / site) for site in SITES}
    return {
        site: Datalist(bare(d.training), bare(d.validation), bare(d.test), task=d.task, path=d.path)
        for site, d in found.items()
    }


def toy_job(rounds=3):
    job = read_job(ROOT / "jobs" / "hippocampus_fedavg")
    job.set("task", TASK)
    job.set("network", PLAN["network"])
    job.set("training.learning_rate", 0.01)
    job.set("training.augmentation", "full")
    job.set("training.validate_after", True)
    job.set("workflow.num_rounds", rounds)
    return job


@pytest.fixture
def run(datalists):
    job = toy_job()
    federation = InProcessFederation(job, datalists)
    federation.run()
    assert federation.events == []
    return job, federation


def test_a_run_has_its_own_score_everywhere_and_dice_nowhere(run, tmp_path):
    job, federation = run
    for entry in federation.rounds:
        assert entry["val_mae"] > 0
        for site in entry["sites"].values():
            assert set(site["val_mae"]) == {"intensity", "mean"}
            assert site["val_mae_after"] > 0
            assert not [key for key in site if "dice" in key]
    assert federation.rounds[-1]["val_mae"] < federation.rounds[0]["val_mae"], "it learns"
    final = federation.evaluate()
    errors = [part["mae"]["mean"] for part in final["sites"].values()]
    cases = [part["cases"] for part in final["sites"].values()]
    assert final["mean_mae"] == pytest.approx(np.mean(errors))
    assert final["pooled_mae"] == pytest.approx(np.average(errors, weights=cases))

    results = {"run_id": "x", "sites": sorted(SITES), "selection": {"name": "AllSites"}, "rounds": federation.rounds}
    results |= {"final": final, "best": {"model": None}, "events": [], "stopped": None}
    summary = describe_run(job, results, "2026-01-01", True, {}, 1.0, {})
    (tmp_path / "report").mkdir()
    write_summary(summary, tmp_path / "report")
    assert (
        json.loads((tmp_path / "report" / "summary.json").read_text())["task_declaration"]["objective"] == "intensity"
    )
    assert list(score_frame(summary).columns) == ["Cases", "Error intensity", "Error mean"]
    page = write_report(tmp_path).read_text("utf-8")
    assert "Federated intensity regression" in page
    assert f"{final['mean_mae']:.2f}" in page
    assert "Dice" not in page


def test_smaller_is_better_where_a_model_is_chosen_and_training_stops(run):
    _, federation = run
    first, last = federation.rounds[0], federation.rounds[-1]
    score = federation.plan.objective.primary
    assert is_better(validation_scores(last, score), validation_scores(first, score), score)
    assert not is_better(validation_scores(first, score), validation_scores(last, score), score)
    worse = [{**first, "val_mae": value} for value in (3.0, 2.0, 4.0, 5.0)]
    assert StoppingRules(patience=3).reason(worse, 0, score) is None
    assert "2 rounds brought no model better than 2.0000" in StoppingRules(patience=2).reason(worse, 0, score)
    assert "validation Error 0.9" in StoppingRules(target_dice=0.95).reason([{**first, "val_mae": 0.9}], 0, score)
    assert StoppingRules(target_dice=0.95).reason([{**first, "val_mae": 0.96}], 0, score) is None


def test_a_saved_model_is_scored_and_writes_no_masks(run, datalists, tmp_path):
    _, federation = run
    path = write_model(tmp_path / "model.safetensors", federation.plan, federation.model.weights, 2)
    predictor, cases = Predictor(read_model(path)), datalists["alpha"].validation
    content = evaluate(predictor, cases, tmp_path / "out")
    assert content["mean"]["mae"] == pytest.approx(federation.evaluate()["sites"]["alpha"]["mae"])
    with pytest.raises(UsageError, match="no masks"):
        write_masks(predictor, cases, tmp_path / "out")


def test_scores_outside_of_shares_travel(run):
    """Up to the range that the kind of task declares; a rule that FLARE's own workflow drives knows shares only."""
    _, federation = run
    kind, report = federation.plan.objective, federation.model.reports["alpha"]
    large = replace(report, val_scores={"intensity": 12.5, "mean": 12.5})
    assert parse_report(large.to_meta(), task_fields(kind)) == large
    with pytest.raises(RefusalError, match="is above 1"):
        parse_report(large.to_meta(), {})
    with pytest.raises(RefusalError, match="is negative"):
        parse_report(replace(report, val_scores={"mean": -0.1}).to_meta(), task_fields(kind))
    good = {"final": {"split": "test", "loss": 1.0, **kind.summarise([])}}
    assert readable(good, kind)
    assert not readable({"final": {**good["final"], "dice": {}}}, kind)


def test_losses_are_those_of_the_kind_of_task(run):
    """Any number where the kind does not say more; segmentation has none below 0 and none far above its Dice weight."""
    _, federation = run
    report, facts = federation.model.reports["alpha"], SiteFacts(3, val_cases=2)
    for loss in (-7.0, 5e6):
        check_report(replace(report, train_loss=loss, val_loss=loss), facts, None, federation.plan)
    for training, loss, good in (({}, -0.1, False), ({}, 1001.0, False), ({"dice_weight": 50.0}, 1001.0, True)):
        plan = parse_plan({**PLAN, "training": {**PLAN["training"], **training}})
        with nullcontext() if good else pytest.raises(RefusalError, match="is not from 0 to 1000"):
            check_report(replace(report, train_loss=loss), facts, None, plan)


def test_what_needs_segmentation_says_so():
    plan = parse_plan({**PLAN, "task": TASK})
    assert plan.objective.output_channels == 1
    with pytest.raises(ConfigurationError, match="segmentation in a job of split training"):
        segmentation_loss(plan)
