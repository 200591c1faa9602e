import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aggregators.test_fedavg import make_report, rounds_of
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.fedcostwavg import FedCostWAvg
from fedseg.contract.plan import parse_plan
from fedseg.errors import ConfigurationError
from tiny import PLAN

FETS = {"a": 511, "b": 382, "c": 47, "d": 35, "e": 6}
COST = st.floats(1e-3, 1e3)


def plan_with(validate_after):
    return parse_plan({**PLAN, "training": {**PLAN["training"], "validate_after": validate_after}})


def test_weights_by_hand():
    # Cases 1, 3, 4 of 8: shares .125, .375, .5. Ratios 0.8 / 0.4 = 2, 0.5 / 0.5 = 1, 0.3 / 0.6 = 0.5, sum 3.5.
    # alpha 0.5: .0625 + 2 / 7, .1875 + 1 / 7, .25 + 0.5 / 7.
    rule = FedCostWAvg()
    first, second = rounds_of(
        rule, {"a": 0.8, "b": 0.5, "c": 0.3}, {"a": 0.4, "b": 0.5, "c": 0.6}, samples={"a": 1, "b": 3, "c": 4}
    )
    assert first == {"a": 0.125, "b": 0.375, "c": 0.5}
    assert second == pytest.approx({"a": 0.0625 + 2 / 7, "b": 0.1875 + 1 / 7, "c": 0.25 + 0.5 / 7}, abs=1e-15)
    assert rule.last_notes == {"ratios": {"a": 2.0, "b": 1.0, "c": 0.5}, "neutral": []}


def test_the_published_example():
    # FeTS sizes with ratios close to 1: published .361 .295 .129 .116 .100. With ratios of exactly 1 they are
    # .360 .295 .124 .118 .103; the ratios 1.00, 1.00, 1.05, 0.98, 0.97 (sum 5) give 511 / 1962 + 1.00 / 10 = .3604,
    # 382 / 1962 + .100 = .2947, 47 / 1962 + .105 = .1290, 35 / 1962 + .098 = .1158, 6 / 1962 + .097 = .1001.
    ratios = {"a": 1.0, "b": 1.0, "c": 1.05, "d": 0.98, "e": 0.97}
    _, weights = rounds_of(FedCostWAvg(), ratios, dict.fromkeys(FETS, 1.0), samples=FETS)
    published = {"a": 0.361, "b": 0.295, "c": 0.129, "d": 0.116, "e": 0.100}
    assert weights == pytest.approx(published, abs=0.001)
    assert [round(w, 4) for w in weights.values()] == [0.3604, 0.2947, 0.1290, 0.1158, 0.1001]


@given(st.dictionaries(st.sampled_from("abcdefghij"), st.tuples(st.integers(1, 1000), COST, COST), min_size=1))
def test_alpha_one_is_fedavg(sites):
    samples = {s: n for s, (n, _, _) in sites.items()}
    before, now = {s: b for s, (_, b, _) in sites.items()}, {s: c for s, (_, _, c) in sites.items()}
    assert rounds_of(FedCostWAvg(alpha=1), before, now, samples=samples) == rounds_of(
        FedAvg(), before, now, samples=samples
    )


@given(st.dictionaries(st.sampled_from("abcdefghij"), st.tuples(st.integers(1, 1000), COST), min_size=1), COST)
def test_equal_ratios_are_part_fedavg_part_uniform(sites, ratio):
    samples, now = {s: n for s, (n, _) in sites.items()}, {s: c for s, (_, c) in sites.items()}
    before = {s: c * ratio for s, c in now.items()}
    (expected,) = rounds_of(FedAvg(uniform_share=0.7), now, samples=samples)
    assert rounds_of(FedCostWAvg(alpha=0.3), before, now, samples=samples)[1] == pytest.approx(expected, abs=1e-12)
    assert rounds_of(FedCostWAvg(alpha=0), before, now, samples=samples)[1] == pytest.approx(
        dict.fromkeys(sites, 1 / len(sites)), abs=1e-12
    )


@given(st.tuples(COST, COST), st.tuples(COST, COST), st.floats(1e-3, 1e3))
def test_the_unit_of_a_sites_cost_does_not_count(before, now, unit):
    plain = rounds_of(FedCostWAvg(), dict(zip("ab", before, strict=True)), dict(zip("ab", now, strict=True)))
    scaled = rounds_of(FedCostWAvg(), {"a": before[0] * unit, "b": before[1]}, {"a": now[0] * unit, "b": now[1]})
    assert scaled[1] == pytest.approx(plain[1], rel=1e-12)


def test_a_halved_cost_counts_twice_an_unchanged_one():
    rule = FedCostWAvg(alpha=0)
    _, weights = rounds_of(rule, {"a": 0.8, "b": 0.3}, {"a": 0.4, "b": 0.3})
    assert weights["a"] == pytest.approx(2 * weights["b"], rel=1e-15)


def test_a_missing_site_keeps_its_last_cost_and_weights_are_over_those_who_answered():
    rule = FedCostWAvg(alpha=0)
    rounds = rounds_of(rule, {"a": 1.0, "b": 1.0, "c": 0.6}, {"a": 0.5, "b": 1.0}, {"a": 0.5, "c": 0.2})
    assert rounds[1] == pytest.approx({"a": 2 / 3, "b": 1 / 3})
    # c: 0.6 / 0.2 = 3 against its round 0; a: 0.5 / 0.5 = 1.
    assert rounds[2] == pytest.approx({"a": 1 / 4, "c": 3 / 4})


def test_a_site_that_comes_later_is_neutral():
    rule = FedCostWAvg(alpha=0)
    rounds = rounds_of(rule, {"a": 1.0}, {"a": 0.5, "b": 9.0})
    assert rounds[1] == pytest.approx({"a": 2 / 3, "b": 1 / 3})
    assert rule.last_notes == {"ratios": {"a": 2.0, "b": 1.0}, "neutral": ["b"]}


def test_without_any_earlier_cost_it_is_fedavg_and_says_so():
    rule = FedCostWAvg(alpha=0)
    rounds = rounds_of(rule, {"a": 1.0, "b": 1.0}, {"c": 0.1, "d": 0.1}, samples={"a": 3, "b": 1, "c": 1, "d": 3})
    assert rounds == [{"a": 0.75, "b": 0.25}, {"c": 0.25, "d": 0.75}]
    assert rule.last_notes == {"fallback": "FedAvg: no site has an earlier cost"}


@pytest.mark.parametrize(
    ("before", "now", "ratio"),
    [
        (1.0, 1e-9, 10.0),
        (1e-9, 1.0, 0.1),
        (0.0, 1.0, 1.0),
        (1.0, 0.0, 1.0),
        (-1.0, 1.0, 1.0),
        (1.0, -1.0, 1.0),
        (1e12 - 1, 5e-324, 10.0),
    ],
)
def test_guards(before, now, ratio):
    rule = FedCostWAvg()
    rounds_of(rule, {"a": before, "b": 1.0}, {"a": now, "b": 1.0})
    assert rule.last_notes["ratios"] == {"a": ratio, "b": 1.0}
    assert rule.last_notes["neutral"] == (["a"] if ratio == 1 else [])


@pytest.mark.parametrize(
    ("cost", "field", "before", "now", "ratio"),
    [
        ("train_loss", "train_loss", 0.6, 0.3, 2.0),
        ("val_loss", "val_loss_after", 0.6, 0.3, 2.0),
        # 1 - 0.5 = 0.5 over 1 - 0.75 = 0.25
        ("val_dice", "val_score_after", 0.5, 0.75, 2.0),
    ],
)
def test_kinds_of_cost(cost, field, before, now, ratio):
    rule = FedCostWAvg(cost=cost)
    rounds_of(rule, {"a": before}, {"a": now}, field=field)
    assert rule.last_notes["ratios"] == {"a": ratio}


def test_the_reported_cost_is_the_number_that_was_used():
    reports = {
        "a": make_report(train_loss=0.1 + 0.2, val_loss_after=1 / 3, val_score_after=0.9),
        "b": make_report(train_loss=0.7),
    }
    assert FedCostWAvg().costs(reports) == {"a": 0.1 + 0.2, "b": 0.7}
    assert FedCostWAvg(cost="val_loss").costs(reports) == {"a": 1 / 3, "b": None}
    assert FedCostWAvg(cost="val_dice").costs(reports) == {"a": 1 - 0.9, "b": None}


def test_a_site_without_validation_cases_is_neutral_and_keeps_what_was_known():
    rule = FedCostWAvg(alpha=0, cost="val_loss")
    rounds = rounds_of(rule, {"a": 1.0, "b": 1.0}, {"a": 0.5, "b": None}, {"a": 0.5, "b": 0.25}, field="val_loss_after")
    assert rounds[1] == pytest.approx({"a": 2 / 3, "b": 1 / 3})
    assert rounds[2] == pytest.approx({"a": 1 / 5, "b": 4 / 5})


@given(st.lists(st.tuples(COST, COST, COST), min_size=2, max_size=6), st.data())
def test_history_is_kept_to_the_last_bit(costs, data):
    assume(len(costs) > 1)
    rounds = [dict(zip("abc", row, strict=True)) for row in costs]
    cut = data.draw(st.integers(1, len(rounds) - 1))
    whole, first, second = FedCostWAvg(), FedCostWAvg(), FedCostWAvg()
    expected = rounds_of(whole, *rounds)
    rounds_of(first, *rounds[:cut])
    second.restore(json.loads(json.dumps(first.history())))
    assert second.history() == first.history()
    assert rounds_of(second, *rounds[cut:]) == expected[cut:]


def test_history_of_one_object_does_not_reach_into_another():
    first, second = FedCostWAvg(), FedCostWAvg()
    rounds_of(first, {"a": 1.0})
    history = first.history()
    second.restore(history)
    rounds_of(second, {"a": 0.5})
    assert history == first.history() == {"first": {"a": 1.0}, "recent": {"a": [1.0]}}


@pytest.mark.parametrize("cost", ["val_loss", "val_dice"])
def test_costs_of_the_sites_own_models_need_the_setting(cost):
    FedCostWAvg(cost=cost).check_plan(plan_with(True))
    with pytest.raises(
        ConfigurationError, match=f"true with FedCostWAvg by {cost}.*set training.validate_after to true"
    ):
        FedCostWAvg(cost=cost).check_plan(plan_with(False))


def test_the_training_loss_needs_no_setting():
    FedCostWAvg().check_plan(plan_with(False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.1}, "alpha is 1.1, but must be a number from 0 to 1"),
        ({"alpha": "0.5"}, "alpha is '0.5'"),
        ({"cost": "loss"}, "cost is 'loss', but must be one of"),
        ({"ratio_limit": 0.5}, "ratio_limit is 0.5, but must be a number from 1 up"),
        ({"ratio_limit": float("inf")}, "ratio_limit is inf"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        FedCostWAvg(**arguments)


def test_description():
    expected = {"name": "FedCostWAvg", "alpha": 0.5, "cost": "train_loss", "ratio_limit": 10.0}
    assert FedCostWAvg().describe() == expected
