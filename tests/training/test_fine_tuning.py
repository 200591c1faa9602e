"""A site goes on with the last model for itself: ``workflow.fine_tune``."""

import json
from pathlib import Path

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, from_shareable

from executors.test_evaluators import prepare, site  # noqa: F401 - a fixture
from executors.test_training import assert_refused
from fedseg.cli import main
from fedseg.contract.protocol import FINE_TUNE, MODEL_NAME, RUN_ID, SPLITS
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.jobs.job import read_job
from fedseg.models.model_file import read_model
from fedseg.site.state import SiteState
from fedseg.training.methods.ditto import Ditto
from fedseg.workflows.run.settings import RunSettings
from hooked import SGD, assert_differ, assert_same, make_trainer, start_of
from tiny import PLAN, make_sites

JOBS = Path(__file__).parents[2] / "jobs"
SIZES = {"alpha": (3, 1), "beta": (2, 1)}


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (4, 1)}) / "a")


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("changes", [{}, SGD])
def test_it_is_the_only_round_of_a_site_alone(datalist, epochs, changes):
    """Whatever was trained before: a fresh optimizer, and the whole schedule over these epochs."""
    trained, other = (make_trainer(datalist, changes={**changes, "local_epochs": n}) for n in (2, epochs))
    last = trained.train_round(start_of(trained), 0, 5).weights
    assert_same(trained.fine_tuned(last, epochs), other.train_round(last, 0, 1).weights)


def test_hooks_have_no_part_in_it(datalist):
    trained = make_trainer(datalist, [Ditto(1.0)])
    last = trained.train_round(start_of(trained), 0, 2).weights
    assert_same(trained.fine_tuned(last, 1), make_trainer(datalist).train_round(last, 0, 1).weights)


def test_nothing_of_the_run_changes(datalist, tmp_path):
    """Neither the next round, nor what lies on the disk, nor the weights that it starts from."""

    def second_round(tuned, folder):
        trainer = make_trainer(datalist, state=SiteState(folder, "run"))
        start = start_of(trainer)
        own = trainer.train_round(start, 0, 2).weights
        kept, before = (folder / "run" / "round-00000.pt").read_bytes(), {n: v.copy() for n, v in own.items()}
        if tuned:
            assert_differ(trainer.fine_tuned(own, 2), own)
        assert_same(own, before)
        assert (folder / "run" / "round-00000.pt").read_bytes() == kept
        return trainer.train_round(own, 1, 2).weights

    assert_same(second_round(True, tmp_path / "one"), second_round(False, tmp_path / "other"))


def simulated(name, data, out, *settings):
    job = JOBS / name
    changed = read_job(job)
    for key in ("task", "network"):
        changed.set(key, PLAN[key])
    folder = changed.write(out.parent / f"job-{out.name}")
    options = ["--data", str(data), "--out", str(out), "--in-process", "--no-probe", "--rounds", "2"]
    assert main(["simulate", str(folder), *options, *(part for s in settings for part in ("--set", s))]) == 0
    return json.loads((out / "report" / "summary.json").read_text("utf-8"))


def test_the_baseline_stays_at_each_site_and_is_scored_beside_the_last_model(tmp_path, capsys):
    data = make_sites(tmp_path / "data", SIZES)
    tuned = simulated("hippocampus_fine_tune", data, tmp_path / "tuned")
    plain = simulated("hippocampus_fine_tune", data, tmp_path / "plain", "workflow.fine_tune=0")
    for place in ("tuned", "plain"):
        assert (tmp_path / place / "models" / "last.safetensors").is_file()
    assert_same(*(read_model(tmp_path / p / "models" / "last.safetensors").weights for p in ("tuned", "plain")))
    final, without = tuned["final"], plain["final"]
    assert "site_models" not in without
    assert final["mean_fine_tuned_dice"] == pytest.approx(
        np.mean([part["fine_tuned"]["dice"]["mean"] for part in final["sites"].values()])
    )
    # Without it everything is as with it, to the last bit.
    for site_, part in final["sites"].items():
        assert {k: v for k, v in part.items() if k != "fine_tuned"} == without["sites"][site_]
    assert [r["sites"]["alpha"]["train_loss"] for r in tuned["rounds"]] == [
        r["sites"]["alpha"]["train_loss"] for r in plain["rounds"]
    ]
    task = tmp_path / "task.json"
    task.write_text(json.dumps(PLAN["task"]))
    for site_ in SIZES:
        file = final["site_models"][site_]["fine_tuned"]
        options = ["--task", str(task), "--data", str(data / site_), "--out", str(tmp_path / site_)]
        assert main(["evaluate", str(tmp_path / "tuned" / file), *options]) == 0
        scored = json.loads((tmp_path / site_ / "evaluation.json").read_text())["mean"]["dice"]
        assert scored == pytest.approx(final["sites"][site_]["fine_tuned"]["dice"])
    page = (tmp_path / "tuned" / "report" / "report.html").read_text("utf-8")
    assert "Fine-tuned models" in page
    assert "Fine-tuned models" not in (tmp_path / "plain" / "report" / "report.html").read_text("utf-8")
    capsys.readouterr()


def ask(site, epochs):  # noqa: F811
    meta = {RUN_ID: "run", SPLITS: ["final"], MODEL_NAME: "last", FINE_TUNE: epochs}
    return site.ask("validate", DXO(DataKind.WEIGHTS, data=site.weights(), meta=meta))


@pytest.mark.parametrize("epochs", [-1, 1001, 0.5, True, "2"])
def test_a_server_that_asks_for_something_else_is_refused(site, tmp_path, epochs):  # noqa: F811
    prepare(site)
    assert_refused(ask(site, epochs), "plan", "not a whole number from 0 to 1000", tmp_path)


def test_a_site_that_scores_only_does_not_train_for_it(site, tmp_path):  # noqa: F811
    assert from_shareable(prepare(site, ["a"])).data == {"evaluates": True}
    assert set(from_shareable(ask(site, 1)).data["final"]) & {"personal", "fine_tuned"} == set()
    assert not list((tmp_path / "state").rglob("fine-tuned.safetensors"))


def test_at_the_site_the_model_is_a_file_and_only_its_summary_leaves(site, tmp_path):  # noqa: F811
    prepare(site)
    answer = from_shareable(ask(site, 1))
    assert answer.data_kind == DataKind.METRICS
    assert set(answer.data) == {"final"}
    (file,) = (tmp_path / "state").rglob("fine-tuned.safetensors")
    assert_differ(read_model(file).weights, site.weights())
    kept = json.loads((file.parent / "evaluation-fine_tuned.json").read_text())
    assert [len(cases) for cases in kept.values()] == [answer.data["final"]["fine_tuned"]["cases"]]


@pytest.mark.parametrize("value", [-1, 1001, 0.5])
def test_wrong_epochs_are_refused(value):
    with pytest.raises(ConfigurationError, match=r"workflow\.fine_tune is "):
        RunSettings(num_rounds=1, fine_tune=value)
