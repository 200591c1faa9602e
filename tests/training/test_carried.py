"""One model over several sites, against a loop written out, and against the cyclic job in one process."""

import numpy as np
import pytest

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.jobs.job import read_job
from fedseg.networks.weights import apply_difference, get_weights
from fedseg.simulation.in_process import InProcessFederation
from fedseg.tasks.objective import MEAN
from fedseg.training.carried import cyclic, incremental, one_site, train_carried
from fedseg.training.site_round import scores_by_output
from fedseg.training.trainer import SiteTrainer
from tiny import PLAN, make_sites
from tiny_experiment import write_job

NAMES = ("a", "b")


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    data = make_sites(tmp_path_factory.mktemp("data"), {"a": (4, 1), "b": (2, 1)})
    return {name: read_datalist(data / name) for name in NAMES}


def trainers(lists, **changes):
    plan = parse_plan({**PLAN, "training": {**PLAN["training"], **changes}})
    return {name: SiteTrainer(plan, name, lists[name]) for name in lists}


def assert_equal(one, other):
    assert set(one) == set(other)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_a_course_over_two_sites_is_the_loop_written_out(lists):
    carried = train_carried(trainers(lists), incremental(NAMES, 2), 2)
    ours = trainers(lists)
    weights = get_weights(ours["a"].network)
    for name, number in (("a", 0), ("a", 1), ("b", 0), ("b", 1)):
        weights = apply_difference(weights, ours[name].train_round(weights, number, 2).update)
    assert_equal(carried.weights, weights)
    assert [(visit.site, visit.round, visit.num_samples, visit.num_steps) for visit in carried.visits] == [
        ("a", 0, 4, 2), ("a", 1, 4, 2), ("b", 0, 2, 1), ("b", 1, 2, 1),
    ]  # fmt: skip
    assert all(visit.score is None for visit in carried.visits)


def test_a_course_goes_on_from_weights_that_are_given(lists):
    begun = train_carried(trainers(lists), one_site("a", 1), 1).weights
    carried = train_carried(trainers(lists), one_site("a", 1), 1, start=begun)
    assert_equal(carried.weights, apply_difference(begun, trainers(lists)["a"].train_round(begun, 0, 1).update))


def test_every_patch_of_a_case_is_a_sample(lists):
    visits = train_carried(trainers(lists, patches_per_case=3), one_site("a", 1), 1).visits
    assert [visit.num_samples for visit in visits] == [12]


def test_a_cycle_is_what_the_cyclic_job_does(lists, tmp_path):
    job = read_job(write_job(tmp_path / "job", "hippocampus_cyclic"))
    job.set("seed", PLAN["seed"])
    job.set("workflow.num_rounds", 2)
    federation = InProcessFederation(job, lists)
    federation.run()
    carried = train_carried(trainers(lists), cyclic(NAMES, 2), 2)
    assert_equal(carried.weights, federation.model.weights)


def test_with_one_site_all_courses_are_its_own_training(lists):
    only = {"a": lists["a"]}
    found = [train_carried(trainers(only), course(["a"], 2), 2).weights for course in (incremental, cyclic)]
    alone = train_carried(trainers(only), one_site("a", 2), 2).weights
    for weights in found:
        assert_equal(weights, alone)


def test_visits_tell_the_score_of_the_model_that_came(lists):
    carried = train_carried(trainers(lists), cyclic(NAMES, 2), 2, scored=True)
    ours = trainers(lists)
    weights = get_weights(ours["a"].network)
    for visit in carried.visits:
        trainer = ours[visit.site]
        assert visit.score == scores_by_output(trainer.objective, trainer.validate(weights))[MEAN]
        weights = apply_difference(weights, trainer.train_round(weights, visit.round, 2).update)


def test_patience_ends_a_visit_and_hands_on_the_best_model(lists, monkeypatch):
    """Scores as a script has them: the model is best after two rounds at a, and never better than it came at b."""
    scripted = {"a": [0.1, 0.2, 0.5, 0.4, 0.3], "b": [0.6, 0.2, 0.1]}
    seen = {"a": [], "b": []}

    def judged(trainer, weights):
        seen[trainer.site].append({name: value.copy() for name, value in weights.items()})
        return scripted[trainer.site][len(seen[trainer.site]) - 1], 1.0

    monkeypatch.setattr("fedseg.training.carried._judged", judged)
    carried = train_carried(trainers(lists), incremental(NAMES, 6), 6, patience=2)
    assert [(visit.site, visit.round) for visit in carried.visits] == [
        ("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 0), ("b", 1),
    ]  # fmt: skip
    assert_equal(seen["b"][0], seen["a"][2])
    assert_equal(carried.weights, seen["b"][0])


def test_patience_that_is_never_at_its_end_keeps_the_last_model_if_it_is_the_best(lists, monkeypatch):
    scores = iter([0.1, 0.2, 0.3])
    monkeypatch.setattr("fedseg.training.carried._judged", lambda trainer, weights: (next(scores), 1.0))
    only = {"a": lists["a"]}
    carried = train_carried(trainers(only), one_site("a", 2), 2, patience=1)
    assert_equal(carried.weights, train_carried(trainers(only), one_site("a", 2), 2).weights)


def test_patience_needs_validation_cases(lists):
    bare = {"a": type(lists["a"])(training=lists["a"].training)}
    with pytest.raises(ConfigurationError, match="a has no validation case"):
        train_carried(trainers(bare), one_site("a", 1), 1, patience=1)


def test_a_cyclic_job_of_one_site_is_its_own_training(lists, tmp_path):
    only = {"a": lists["a"]}
    job = read_job(write_job(tmp_path / "job", "hippocampus_ciil"))
    job.set("seed", PLAN["seed"])
    job.set("workflow.num_rounds", 2)
    federation = InProcessFederation(job, only)
    federation.run()
    assert_equal(federation.model.weights, train_carried(trainers(only), one_site("a", 2), 2).weights)
