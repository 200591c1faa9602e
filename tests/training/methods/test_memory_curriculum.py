"""The curriculum of forgotten cases: which those are, how often they are drawn, and that it is nothing without them."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.networks.weights import get_weights
from fedseg.site.state import SiteState
from fedseg.tasks.objective import MEAN
from fedseg.training.methods.memory_curriculum import MemoryAwareCurriculum
from fedseg.training.site_round import scores_by_output
from hooked import assert_same, check_seeded_and_restarted, make_trainer, plain_rounds, run_rounds
from tiny import make_sites


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (4, 1)}) / "a")


def site(scores, better=True):
    """A site whose training cases have these scores, in place of those of a network."""
    kind = SimpleNamespace(primary=SimpleNamespace(higher_is_better=better))
    return SimpleNamespace(plan=SimpleNamespace(seed=3), site="a", objective=kind, training_cases=list(scores))


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr("fedseg.training.methods.memory_curriculum._score", lambda training, case: case)


@pytest.mark.parametrize(
    ("before", "after", "better", "forgotten"),
    [
        ([0.9, 0.9, 0.9, 0.2], [0.9, 0.87, 0.885, 0.8], True, [False, True, False, False]),
        ([0.9, 0.9, 0.9, 0.2], [0.9, 0.93, 0.915, 0.1], False, [False, True, False, False]),
        ([0.9, None, 0.9, None], [None, 0.1, 0.1, None], True, [False, False, True, False]),
        ([0.9, 0.9], [0.1, 0.1, 0.1], True, [False, False, False]),
    ],
)
def test_a_case_is_forgotten_if_its_score_fell_by_more_than_the_drop(told, before, after, better, forgotten):
    hook = MemoryAwareCurriculum()
    hook.before_round(site(before, better), {}, 0)
    assert hook.forgotten == [False] * len(before)
    assert hook.report(None) == {"forgotten_share": 0.0}
    hook.before_round(site(after, better), {}, 1)
    assert hook.forgotten == forgotten
    assert hook.report(None) == {"forgotten_share": sum(forgotten) / len(forgotten)}


def test_a_forgotten_case_is_drawn_twice_as_often(told):
    hook, training = MemoryAwareCurriculum(), site([0.5, 0.9, 0.5, 0.9, 0.5])
    hook.before_round(site([0.9] * 5), {}, 0)
    hook.before_round(training, {}, 1)
    epochs = 2000
    drawn = np.concatenate([hook.order(training, 1, epoch) for epoch in range(epochs)])
    shares = np.bincount(drawn, minlength=5) / len(drawn)
    expected = np.array([2, 1, 2, 1, 2]) / 8
    assert (abs(shares - expected) < 4 * np.sqrt(expected * (1 - expected) / len(drawn))).all()
    assert hook.order(training, 1, 0) == hook.order(training, 1, 0) != hook.order(training, 1, 1)


def test_where_nothing_is_forgotten_or_it_is_too_early_the_order_is_left_alone(told):
    late, training = MemoryAwareCurriculum(from_round=2), site([0.1, 0.9])
    late.before_round(site([0.9, 0.9]), {}, 0)
    late.before_round(training, {}, 1)
    assert late.forgotten == [True, False]
    assert late.order(training, 1, 0) is None
    assert late.order(training, 2, 0) is not None
    late.before_round(training, {}, 3)
    assert late.order(training, 3, 0) is None


def test_nothing_forgotten_is_training_without_to_the_bit(datalist):
    trainer = make_trainer(datalist, [MemoryAwareCurriculum(drop=1.0)])
    assert_same(run_rounds(lambda: trainer), plain_rounds(datalist))


def test_scores_are_those_of_validation_where_the_images_keep_their_grid(datalist):
    """The training cases, listed as validation cases, have the same scores under the same model."""
    hook = MemoryAwareCurriculum()
    trainer = make_trainer(datalist, [hook])
    weights = get_weights(trainer.plan.build_network())
    trainer.train_round(weights, 0, 1)
    beside = make_trainer(type(datalist)(datalist.training, datalist.training))
    expected = [scores_by_output(trainer.objective, [case])[MEAN] for case in beside.validate(weights)]
    assert hook.scores == pytest.approx(expected)


def test_rounds_are_seeded_and_survive_a_restart(datalist, tmp_path):
    check_seeded_and_restarted(datalist, lambda: MemoryAwareCurriculum(drop=0.0, weight=3), tmp_path)


def test_scores_are_kept_between_rounds(datalist, tmp_path):
    first = MemoryAwareCurriculum()
    trainer = make_trainer(datalist, [first], SiteState(tmp_path, "run"))
    weights = get_weights(trainer.plan.build_network())
    trainer.train_round(weights, 0, 2)
    second = MemoryAwareCurriculum()
    make_trainer(datalist, [second], SiteState(tmp_path, "run")).restore(1)
    assert second.scores == first.scores
    assert len(second.scores) == 4


@pytest.mark.parametrize(("arguments", "named"), [({"drop": -1}, "drop"), ({"weight": 0.5}, "weight")])
def test_what_makes_no_sense_is_refused(arguments, named):
    with pytest.raises(ConfigurationError, match=named):
        MemoryAwareCurriculum(**arguments)
