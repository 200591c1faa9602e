import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.test_fedavg import make_report, rounds_of
from aggregators.test_fedcostwavg import plan_with
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.loss_focused import LossFocused
from fedseg.errors import ConfigurationError

SITES = st.dictionaries(st.sampled_from("abcdefghij"), st.tuples(st.integers(1, 1000), st.floats(-50, 50)), min_size=1)


def test_weights_by_hand():
    # strength log 4, two rounds to it: lambda 0, log 2, log 4. Losses 1, 2, 3: factors 1, 1/2, 1/4, then 1, 1/4, 1/16.
    # Cases 1, 1, 4: amounts 1, .5, 1 of 2.5, then 1, .25, .25 of 1.5.
    rule = LossFocused(strength=math.log(4), ramp_rounds=2)
    costs, samples = {"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 1, "b": 1, "c": 4}
    rounds = rounds_of(rule, costs, costs, costs, costs, samples=samples)
    assert rounds[0] == {"a": 1 / 6, "b": 1 / 6, "c": 4 / 6}
    assert rounds[1] == pytest.approx({"a": 0.4, "b": 0.2, "c": 0.4})
    assert rounds[2] == pytest.approx({"a": 4 / 6, "b": 1 / 6, "c": 1 / 6})
    assert rounds[3] == rounds[2]
    assert rule.last_notes == {"focus": math.log(4), "neutral": []}


def test_course_of_the_focus():
    rule = LossFocused(strength=8, ramp_rounds=4, power=2)
    assert [rule.focus(t) for t in range(6)] == [0, 0.5, 2, 4.5, 8, 8]
    assert [LossFocused(strength=3, ramp_rounds=0).focus(t) for t in range(3)] == [3, 3, 3]


@given(SITES)
def test_no_strength_is_fedavg(sites):
    costs, samples = {s: c for s, (_, c) in sites.items()}, {s: n for s, (n, _) in sites.items()}
    (expected,) = rounds_of(FedAvg(), costs, samples=samples)
    assert rounds_of(LossFocused(strength=0), costs, costs, samples=samples)[1] == pytest.approx(expected, rel=1e-12)


@given(SITES, st.floats(0, 100), st.floats(-50, 50))
def test_equal_losses_are_fedavg(sites, strength, cost):
    costs, samples = dict.fromkeys(sites, cost), {s: n for s, (n, _) in sites.items()}
    rule = LossFocused(strength=strength, ramp_rounds=0)
    (expected,) = rounds_of(FedAvg(), costs, samples=samples)
    assert rounds_of(rule, costs, samples=samples)[0] == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.floats(0, 5), min_size=2, max_size=6, unique=True), st.floats(-5, 5))
def test_lower_losses_count_more_and_a_common_offset_does_not(losses, offset):
    costs = {f"s{i}": c for i, c in enumerate(losses)}
    weights = rounds_of(LossFocused(ramp_rounds=0), costs)[0]
    shifted = rounds_of(LossFocused(ramp_rounds=0), {s: c + offset for s, c in costs.items()})[0]
    assert shifted == pytest.approx(weights, rel=1e-9)
    by_loss = [weights[s] for s in sorted(costs, key=costs.__getitem__)]
    assert by_loss == sorted(by_loss, reverse=True)


def test_sites_without_a_loss_stand_at_the_mean_of_the_others():
    rule = LossFocused(strength=math.log(4), ramp_rounds=0, cost="val_loss")
    # Losses 1, 2 and, for c, 1.5: factors 1, 1/4, 1/2.
    (weights,) = rounds_of(rule, {"a": 1.0, "b": 2.0, "c": None}, field="val_loss_after")
    assert weights == pytest.approx({"a": 4 / 7, "b": 1 / 7, "c": 2 / 7})
    assert rule.last_notes["neutral"] == ["c"]
    assert rounds_of(rule, {"a": None, "b": None}, samples={"a": 1, "b": 3}, field="val_loss_after") == [
        {"a": 0.25, "b": 0.75}
    ]


def test_the_round_is_remembered():
    first, second = LossFocused(ramp_rounds=3), LossFocused(ramp_rounds=3)
    rounds_of(first, {"a": 1.0}, {"a": 1.0})
    second.restore(json.loads(json.dumps(first.history())))
    assert second.history() == {"rounds": 2}
    rounds_of(second, {"a": 1.0})
    assert second.last_notes["focus"] == pytest.approx(2 / 3)


def test_the_reported_cost_and_what_it_needs():
    rule = LossFocused(cost="val_dice")
    assert rule.costs({"a": make_report(val_score_after=0.75)}) == {"a": 0.25}
    rule.check_plan(plan_with(True))
    LossFocused().check_plan(plan_with(False))
    with pytest.raises(ConfigurationError, match="true with LossFocused by val_dice"):
        rule.check_plan(plan_with(False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -1}, "strength is -1, but must be a number from 0 up"),
        ({"strength": float("inf")}, "strength is inf"),
        ({"ramp_rounds": 2.5}, "ramp_rounds is 2.5, but must be a whole number from 0 up"),
        ({"power": 0}, "power is 0, but must be a number above 0"),
        ({"cost": "loss"}, "cost is 'loss'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        LossFocused(**arguments)


def test_description():
    expected = {"name": "LossFocused", "strength": 1.0, "ramp_rounds": 20, "power": 1.0, "cost": "train_loss"}
    assert LossFocused().describe() == expected
