import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.test_fedavg import rounds_of
from aggregators.test_fedcostwavg import COST, FETS, plan_with
from fedseg.aggregators.base import AggregationError
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.fedpidavg import FedPID, FedPIDAvg
from fedseg.errors import ConfigurationError

BOTH = pytest.mark.parametrize("rule_class", [FedPIDAvg, FedPID])
SITES = st.lists(st.tuples(st.integers(1, 1000), COST, COST), min_size=1, max_size=10)


def named(values):
    return {f"s{i:02d}": value for i, value in enumerate(values)}


def split(sites):
    return [named(column) for column in zip(*sites, strict=True)]


def test_weights_by_hand():
    # Cases 1, 1, 2 of 4. Drops 0.4, 0.1, 0: sum 0.5, shares .8, .2, 0. Means of two costs 0.6, 0.45, 0.45 of 1.5,
    # shares .4, .3, .3 (as the sums 1.2, 0.9, 0.9).
    #   a: .45 * .25 + .45 * .8 + .1 * .4 = .1125 + .36 + .04 = .5125
    #   b: .1125 + .09 + .03 = .2325;  c: .225 + 0 + .03 = .255
    rule = FedPIDAvg()
    first, second = rounds_of(
        rule, {"a": 0.8, "b": 0.5, "c": 0.45}, {"a": 0.4, "b": 0.4, "c": 0.45}, samples={"a": 1, "b": 1, "c": 2}
    )
    assert first == {"a": 0.25, "b": 0.25, "c": 0.5}
    assert second == pytest.approx({"a": 0.5125, "b": 0.2325, "c": 0.255}, abs=1e-15)
    assert rule.last_notes["drops"] == pytest.approx({"a": 0.4, "b": 0.1, "c": 0})
    assert rule.last_notes["neutral"] == rule.last_notes["moved_to_alpha"] == []


def test_weights_of_fedpid_by_hand():
    # Equal cases, a third each. Third round: drops 0.1, 0.3 (sum .4): shares .25, .75, 0 (c rose).
    # Drops since the first round 0.5, 0.3, 0: shares .625, .375, 0.
    #   a: .15 + .45 * .25 + .0625 = .325;  b: .15 + .3375 + .0375 = .525;  c: .15
    _, second, third = rounds_of(
        FedPID(), {"a": 0.8, "b": 0.6, "c": 0.4}, {"a": 0.4, "b": 0.6, "c": 0.4}, {"a": 0.3, "b": 0.3, "c": 0.5}
    )
    assert third == pytest.approx({"a": 0.325, "b": 0.525, "c": 0.15}, abs=1e-15)
    # In the round after the first, both drops are the same: only a fell.
    assert second == pytest.approx({"a": 0.15 + 0.45 + 0.1, "b": 0.15, "c": 0.15}, abs=1e-15)


# FeTS sizes and drops 0.2, -0.2, 0, 0.1, -0.1, whose sum is 0. The published example gives weights only; these costs
# were found by search. By hand for clamp: shares .5209 .3894 .0479 .0357 .0061, drops 2/3 and 1/3 of those that fell,
# mean costs .5 .55 .7 .75 .9 of 3.4: .2344 + .3 + .0147 = .5491; .1752 + .0162 = .1914; .0216 + .0206 = .0421;
# .0161 + .15 + .0221 = .1881; .0028 + .0265 = .0292.
BEFORE = dict(zip(FETS, (0.6, 0.45, 0.7, 0.8, 0.85), strict=True))
NOW = dict(zip(FETS, (0.4, 0.65, 0.7, 0.7, 0.95), strict=True))


@pytest.mark.parametrize(
    ("negative_drop", "published"),
    [("clamp", (0.549, 0.191, 0.042, 0.188, 0.029)), ("abs", (0.399, 0.341, 0.042, 0.113, 0.104))],
)
def test_the_published_example(negative_drop, published):
    _, weights = rounds_of(FedPIDAvg(negative_drop=negative_drop), BEFORE, NOW, samples=FETS)
    assert [round(w, 3) for w in weights.values()] == list(published)


@BOTH
def test_raw_drops_end_with_an_error_that_names_the_remedy(rule_class):
    with pytest.raises(AggregationError, match=r"raw gives no usable weights.*set negative_drop to clamp or abs"):
        rounds_of(rule_class(negative_drop="raw"), BEFORE, NOW, samples=FETS)


@BOTH
@pytest.mark.parametrize(
    "now",
    [
        # The drops 0.5 and -0.3 sum to 0.2: shares 2.5 and -1.5, and the weight of b is negative.
        {"a": 0.5, "b": 1.3},
        # They cancel exactly.
        {"a": 0.5, "b": 1.5},
        # They cancel but for the last bit: shares of 1e15.
        {"a": 0.5, "b": 1.4999999999999998},
    ],
)
def test_raw_errors(rule_class, now):
    with pytest.raises(AggregationError, match="set negative_drop to clamp or abs"):
        rounds_of(rule_class(negative_drop="raw"), {"a": 1.0, "b": 1.0}, now)


def test_raw_sums_that_overflow_end_with_the_same_error():
    rule = FedPIDAvg(0, 1, 0, negative_drop="raw")
    with pytest.raises(AggregationError, match="set negative_drop to clamp or abs"):
        rounds_of(rule, {"a": 1e11, "b": 0.0, "c": 5e-324}, {"a": 0.0, "b": 1e11, "c": 0.0})


@BOTH
@given(sites=SITES)
def test_raw_is_clamp_and_abs_while_all_costs_fall(rule_class, sites):
    samples, one, other = split(sites)
    before = {s: max(one[s], other[s]) + 1e-3 for s in one}
    now = {s: min(one[s], other[s]) for s in one}
    raw, clamp, absolute = (
        rounds_of(rule_class(negative_drop=how), before, now, samples=samples) for how in ("raw", "clamp", "abs")
    )
    assert raw[1] == pytest.approx(clamp[1], abs=1e-15)
    assert absolute == clamp


@BOTH
@given(sites=SITES)
def test_alpha_one_is_fedavg(rule_class, sites):
    samples, before, now = split(sites)
    rule = rule_class(1, 0, 0)
    assert rounds_of(rule, before, now, samples=samples) == rounds_of(FedAvg(), before, now, samples=samples)


@given(SITES, st.integers(2, 8))
def test_constant_equal_costs_move_beta_to_alpha_and_make_part_i_uniform(sites, rounds):
    samples, _, _ = split(sites)
    rule = FedPIDAvg()
    weights = rounds_of(rule, *[dict.fromkeys(samples, 0.3)] * rounds, samples=samples)[-1]
    total = sum(samples.values())
    assert weights == pytest.approx({s: 0.9 * n / total + 0.1 / len(samples) for s, n in samples.items()}, abs=1e-12)
    assert rule.last_notes["moved_to_alpha"] == ["beta"]


@BOTH
def test_all_zero_costs_are_fedavg(rule_class):
    rule = rule_class()
    rounds = rounds_of(rule, *[{"a": 0.0, "b": 0.0}] * 2, samples={"a": 1, "b": 3})
    assert rounds[1] == {"a": 0.25, "b": 0.75}
    assert rule.last_notes["moved_to_alpha"] == ["beta", "gamma"]


def test_the_window_covers_the_last_costs_only():
    # Costs of a: 9, 1, 1, 1 and of b: 1, 1, 1, 1. In a window of 4 means are 3 and 1; in one of 3 both are 1.
    rounds = [{"a": 9.0, "b": 1.0}, *[{"a": 1.0, "b": 1.0}] * 3]
    assert rounds_of(FedPIDAvg(0, 0, 1, window=4), *rounds)[-1] == pytest.approx({"a": 0.75, "b": 0.25})
    assert rounds_of(FedPIDAvg(0, 0, 1, window=3), *rounds)[-1] == pytest.approx({"a": 0.5, "b": 0.5})


@given(SITES)
def test_with_equally_many_costs_the_mean_is_the_sum(sites):
    _, before, now = split(sites)
    weights = rounds_of(FedPIDAvg(0, 0, 1), before, now)[1]
    total = sum(before.values()) + sum(now.values())
    assert weights == pytest.approx({s: (before[s] + now[s]) / total for s in before}, rel=1e-12)


def test_a_site_that_joined_late_is_not_light_for_want_of_rounds():
    # After five rounds at 0.4, a's sum would be 2.0 and that of b, which joins, 0.4.
    rounds = rounds_of(FedPIDAvg(0, 0, 1), *[{"a": 0.4}] * 4, {"a": 0.4, "b": 0.4})
    assert rounds[-1] == pytest.approx({"a": 0.5, "b": 0.5})


def test_sites_without_a_cost_have_no_drop_and_the_mean_past():
    rule = FedPIDAvg(0.5, 0.3, 0.2, cost="val_loss")
    rounds = rounds_of(rule, {"a": 0.9, "b": 0.4, "c": None}, {"a": 0.3, "b": 0.2, "c": None}, field="val_loss_after")
    # Means 0.6, 0.3, for c their mean 0.45: shares 4/9, 2/9, 3/9; drops 0.6, 0.2, 0: shares .75, .25, 0.
    expected = {"a": 1 / 6 + 0.225 + 0.8 / 9, "b": 1 / 6 + 0.075 + 0.4 / 9, "c": 1 / 6 + 0.6 / 9}
    assert rounds[1] == pytest.approx(expected, abs=1e-15)
    assert rule.last_notes["neutral"] == ["c"]


@given(st.lists(st.lists(COST, min_size=3, max_size=3), min_size=2, max_size=7))
def test_drops_since_the_first_round_are_the_sum_of_all_drops_of_falling_costs(table):
    falling = [sorted(column, reverse=True) for column in zip(*table, strict=True)]
    rule, telescoped = FedPID(), dict.fromkeys("abc", 0.0)
    for number in range(len(table)):
        rounds_of(rule, {s: falling[i][number] for i, s in enumerate("abc")})
        if number:
            telescoped = {s: telescoped[s] + rule.last_notes["drops"][s] for s in "abc"}
            assert rule.last_notes["past"] == pytest.approx(telescoped, rel=1e-9, abs=1e-9)


def test_first_costs_are_those_of_each_sites_own_first_round():
    rule = FedPID(0, 0, 1)
    rounds = rounds_of(rule, {"a": 1.0}, {"a": 0.9, "b": 0.6}, {"a": 0.8, "b": 0.5})
    # Since their first rounds a fell by 0.2 and b by 0.1.
    assert rounds[2] == pytest.approx({"a": 2 / 3, "b": 1 / 3})


@BOTH
def test_costs_of_the_sites_own_models_need_the_setting(rule_class):
    rule_class(cost="val_dice").check_plan(plan_with(True))
    rule_class().check_plan(plan_with(False))
    with pytest.raises(ConfigurationError, match=f"true with {rule_class.__name__} by val_dice"):
        rule_class(cost="val_dice").check_plan(plan_with(False))


@BOTH
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 0.5}, r"alpha \+ beta \+ gamma is 1.05, but must be 1"),
        ({"alpha": -0.1, "beta": 1, "gamma": 0.1}, "alpha is -0.1, but must be a number from 0 to 1"),
        ({"gamma": "0.1"}, "gamma is '0.1'"),
        ({"negative_drop": "zero"}, "negative_drop is 'zero', but must be one of"),
        ({"cost": "dice"}, "cost is 'dice'"),
    ],
)
def test_wrong_arguments_are_refused(rule_class, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        rule_class(**arguments)


@pytest.mark.parametrize("window", [0, 2.0, None, True])
def test_a_wrong_window_is_refused(window):
    with pytest.raises(ConfigurationError, match=r"window is .* a whole number of at least 1"):
        FedPIDAvg(window=window)


def test_descriptions():
    shared = {"alpha": 0.45, "beta": 0.45, "gamma": 0.1, "cost": "train_loss", "negative_drop": "clamp"}
    assert FedPIDAvg().describe() == {"name": "FedPIDAvg", **shared, "window": 6}
    assert FedPID().describe() == {"name": "FedPID", **shared}
