from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.jobs.job import read_job
from fedseg.models.model_file import read_model
from fedseg.networks.weights import apply_difference
from fedseg.simulation.in_process import InProcessFederation
from fedseg.site.state import SiteState
from fedseg.tasks.segmentation.objective import Segmentation
from fedseg.training.methods.class_weights import ClassWeights
from fedseg.training.methods.ditto import Ditto
from fedseg.training.methods.personal_model import PERSONAL_MODEL
from hooked import (
    ROUNDS,
    assert_differ,
    assert_same,
    check_seeded_and_restarted,
    make_trainer,
    plain_rounds,
    run_rounds,
    start_of,
)
from tiny import PLAN, make_sites


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (4, 2)}) / "a")


def local_only(datalist, changes=None, rounds=ROUNDS):
    """A site that trains alone: it goes on from its own weights in every round."""
    trainer = make_trainer(datalist, changes=changes)
    weights = start_of(trainer)
    for number in range(rounds):
        weights = trainer.train_round(weights, number, rounds).weights
    return weights


def personal_after(datalist, hook, state=None, changes=None):
    trainer = make_trainer(datalist, [hook], state, changes)
    run_rounds(lambda: trainer)
    return personal(trainer)


def personal(trainer):
    return trainer.companions["personal"].weights()


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd", "local_epochs": 2}, {"reset_optimizer": True}])
def test_without_pull_the_personal_model_is_that_of_a_site_alone(datalist, tmp_path, changes):
    expected = local_only(datalist, changes)
    assert_same(personal_after(datalist, Ditto(0.0), None, changes), expected)
    assert_same(personal_after(datalist, Ditto(0.0), SiteState(tmp_path, "run"), changes), expected)


@pytest.mark.parametrize("lam", [0.0, 0.1, 5.0])
def test_the_federation_is_untouched_to_the_last_bit(datalist, tmp_path, lam):
    assert_same(check_seeded_and_restarted(datalist, lambda: Ditto(lam), tmp_path), plain_rounds(datalist))


def test_the_personal_model_survives_a_restart(datalist, tmp_path):
    living = personal_after(datalist, Ditto(0.5), SiteState(tmp_path / "living", "run"))
    trainers = []

    def reborn():
        trainers.append(make_trainer(datalist, [Ditto(0.5)], SiteState(tmp_path / "reborn", "run")))
        return trainers[-1]

    run_rounds(reborn)
    assert_same(personal(trainers[-1]), living)
    assert_differ(living, local_only(datalist))


def test_the_pull_is_towards_the_received_weights(datalist):
    """Two rounds: a strong pull leaves the personal model near the second received one, though it starts elsewhere."""
    # Steps of rate 0.05 under a pull of 10 go half the way each.
    changes = {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant", "learning_rate": 0.05, "local_epochs": 6}

    def way(lam):
        hook = Ditto(lam)
        trainer = make_trainer(datalist, [hook], changes={**changes, "gradient_clip": 100.0})
        first = start_of(trainer)
        trainer.train_round(first, 0, 2)
        second = apply_difference(first, {name: np.full_like(value, 0.05) for name, value in first.items()})
        trainer.train_round(second, 1, 2)
        found = personal(trainer)
        return sum(float(((found[n] - second[n]).astype(np.float64) ** 2).sum()) for n in second)

    assert way(10.0) < 0.3 * way(0.0)


def test_own_epochs(datalist):
    expected = local_only(datalist, {"local_epochs": 3})
    assert_same(personal_after(datalist, Ditto(0.0, epochs=3)), expected)
    assert_same(personal_after(datalist, Ditto(0.0, epochs=1), changes={"local_epochs": 3}), local_only(datalist))


def test_the_report_scores_the_personal_model(datalist):
    hook = Ditto(0.0)
    trainer = make_trainer(datalist, [hook], changes={"local_epochs": 8})
    assert hook.report(trainer) == {}
    start = start_of(trainer)
    trainer.train_round(start, 0, 2)
    reported = hook.report(trainer)
    other = make_trainer(datalist)
    assert reported == {
        "personal_score": Segmentation.summarise([c.score for c in other.validate(personal(trainer))])["dice"]["mean"]
    }


def test_the_report_changes_no_later_round(datalist):
    def second_round(with_report):
        hook = Ditto()
        trainer = make_trainer(datalist, [hook])
        start = start_of(trainer)
        trainer.train_round(start, 0, 2)
        if with_report:
            assert "personal_score" in hook.report(trainer)
        update = trainer.train_round(start, 1, 2).update
        return {**update, **{f"personal {name}": value for name, value in personal(trainer).items()}}

    assert_same(second_round(True), second_round(False))


def test_without_validation_cases_nothing_is_reported(datalist):
    hook = Ditto()
    trainer = make_trainer(replace(datalist, validation=()), [hook])
    trainer.train_round(start_of(trainer), 0, 1)
    assert hook.report(trainer) == {}


def test_the_personal_model_is_a_file_that_explains_itself(datalist, tmp_path):
    hook, state = Ditto(), SiteState(tmp_path, "run")
    weights = personal_after(datalist, hook, state)
    model = read_model(state.folder / PERSONAL_MODEL)
    assert_same(model.weights, weights)
    assert (model.task.name, model.notes["round"]) == ("tiny", ROUNDS - 1)


def test_the_loss_of_the_site_counts_for_the_personal_model_too(datalist):
    totals = {"voxels": 1000.0, "voxels/inner": 10.0, "voxels/whole": 40.0}

    def trained(hooks):
        trainer = make_trainer(datalist, hooks)
        trainer.train_round(start_of(trainer), 0, 1, totals=totals)
        return personal(trainer)

    weighted = make_trainer(datalist, [ClassWeights()])
    alone = weighted.train_round(start_of(weighted), 0, 1, totals=totals).weights
    assert_same(trained([ClassWeights(), Ditto(0.0)]), alone)
    assert_differ(trained([Ditto(0.0)]), alone)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"lam": -0.1}, "lam"), ({"lam": "x"}, "lam"), ({"epochs": 0}, "epochs"), ({"epochs": 1.5}, "epochs")],
)
def test_wrong_arguments_are_refused(arguments, named):
    with pytest.raises(ConfigurationError, match=f"{named} is "):
        Ditto(**arguments)


def test_the_summary_of_a_run_has_what_the_method_declares(datalist):
    """Under its own name at every site; a run whose method declares no such number has the same key without one."""
    folder = Path(__file__).parents[3] / "jobs" / "hippocampus_fedavg"

    def sites_of_a_run(with_ditto):
        job = read_job(folder)
        for key in ("task", "network"):
            job.set(key, PLAN[key])
        if with_ditto:
            job.client["components"] = [{"id": "ditto", "path": "fedseg.training.methods.ditto.Ditto", "args": {}}]
            job.client["executors"][0]["executor"]["args"] = {"hooks": ["ditto"]}
        federation = InProcessFederation(job, {"a": datalist})
        entry = federation.run_round()
        assert federation.events == []
        return entry["sites"]["a"]

    with_ditto, without = sites_of_a_run(True), sites_of_a_run(False)
    assert 0 <= with_ditto["personal_dice"] <= 1
    assert without["personal_dice"] is None
    assert set(with_ditto) == set(without)
