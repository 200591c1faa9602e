import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.weighted import AggregationError, WeightedAggregator
from fedseg.contract.report import META_KEY, SiteReport
from fedseg.errors import ConfigurationError, RefusalError


def make_report(samples=1, steps=1, **values):
    """A report; ``values`` are its further fields."""
    return SiteReport(samples, steps, **{"train_loss": 0.5, "val_loss": 0.4, "val_scores": {"mean": 0.7}, **values})


def make_update(site, arrays, samples=1, steps=1, kind=ParamsType.DIFF, **values):
    meta = {"client_name": site, **make_report(samples, steps, **values).to_meta()}
    return FLModel(params_type=kind, params=arrays, meta=meta)


def rounds_of(rule, *rounds, samples=None, field="train_loss"):
    """The weights of each round; a round gives each site's cost, and ``samples`` its training cases (1)."""
    weights = []
    for costs in rounds:
        aggregate(
            rule,
            [make_update(s, {"w": np.ones(1)}, (samples or {}).get(s, 1), **{field: c}) for s, c in costs.items()],
        )
        weights.append(rule.last_weights)
    return weights


def aggregate(rule, updates):
    rule.reset_stats()
    for update in updates:
        rule.accept_model(update)
    return rule.aggregate_model().params


def three(dtype=np.float32):
    values = {"a": [1.0, 2.0], "b": [4.0, 0.0], "c": [0.0, 10.0]}
    samples, steps = {"a": 1, "b": 3, "c": 4}, {"a": 2, "b": 1, "c": 1}
    return [make_update(s, {"w": np.array(v, dtype)}, samples[s], steps[s]) for s, v in values.items()]


@pytest.mark.parametrize(
    ("weight_by", "expected"),
    [
        # samples 1, 3, 4 of 8: (1 + 12 + 0) / 8 and (2 + 0 + 40) / 8
        ("samples", [1.625, 5.25]),
        # steps 2, 1, 1 of 4: (2 + 4 + 0) / 4 and (4 + 0 + 10) / 4
        ("steps", [1.5, 3.5]),
        # (1 + 4 + 0) / 3 and (2 + 0 + 10) / 3
        ("uniform", [5 / 3, 4.0]),
    ],
)
def test_weights_by_hand(weight_by, expected):
    np.testing.assert_allclose(aggregate(FedAvg(weight_by), three())["w"], expected, rtol=1e-7)


def test_the_order_of_arrival_changes_no_bit():
    generator = np.random.default_rng(0)
    updates = [make_update(f"s{i}", {"w": generator.normal(size=99).astype(np.float32)}, i + 1) for i in range(7)]
    first = aggregate(FedAvg(), updates)["w"]
    for _ in range(5):
        generator.shuffle(updates)
        np.testing.assert_array_equal(aggregate(FedAvg(), updates)["w"], first)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=8))
def test_equal_sites_are_a_fixed_point_and_weights_sum_to_one(samples):
    rule, array = FedAvg(), np.array([0.1, -3.0, 1e-8], np.float32)
    result = aggregate(rule, [make_update(f"s{i:02d}", {"w": array}, n) for i, n in enumerate(samples)])
    np.testing.assert_allclose(result["w"], array, rtol=1e-6)
    assert sum(rule.last_weights.values()) == pytest.approx(1)
    assert list(rule.last_weights) == sorted(rule.last_weights)


def test_one_site_is_that_site():
    array = np.array([1.25, -7.5], np.float32)
    np.testing.assert_array_equal(aggregate(FedAvg(), [make_update("only", {"w": array}, 5)])["w"], array)


def test_an_array_that_some_sites_sent_is_averaged_over_those():
    updates = [
        make_update("a", {"w": np.array([2.0], np.float32), "head": np.array([8.0], np.float32)}, 1),
        make_update("b", {"w": np.array([4.0], np.float32)}, 3),
        make_update("c", {"w": np.array([0.0], np.float32), "head": np.array([4.0], np.float32)}, 1),
    ]
    result = aggregate(FedAvg(), updates)
    assert result["w"].item() == pytest.approx((2 + 12) / 5)
    assert result["head"].item() == pytest.approx((8 + 4) / 2)


def test_rounds_do_not_leak_into_each_other():
    rule = FedAvg()
    aggregate(rule, three())
    result = aggregate(rule, [make_update("a", {"w": np.array([7.0], np.float32)})])
    assert result["w"].tolist() == [7.0]
    assert rule.last_weights == {"a": 1.0}


def test_a_site_that_sends_twice_counts_once():
    rule = FedAvg()
    rule.accept_model(make_update("a", {"w": np.array([1.0], np.float32)}))
    rule.accept_model(make_update("a", {"w": np.array([3.0], np.float32)}))
    assert rule.aggregate_model().params["w"].tolist() == [3.0]


@pytest.mark.parametrize("shape", [(), (1,), (2, 0), (2, 3)])
def test_shapes_and_types_are_kept(shape):
    array = np.ones(shape, np.float32)
    result = aggregate(FedAvg(), [make_update("a", {"w": array}), make_update("b", {"w": array})])["w"]
    assert (result.shape, result.dtype) == (shape, np.float32)


def test_the_type_of_one_site_does_not_decide_for_all():
    updates = [make_update("a", {"w": np.zeros(2, np.float16)}), make_update("b", {"w": np.full(2, 1e-9, np.float32)})]
    result = aggregate(FedAvg(), updates)["w"]
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, 5e-10, rtol=1e-6)


def test_whole_weights_are_refused():
    with pytest.raises(AggregationError, match="WEIGHT_DIFF"):
        FedAvg().accept_model(make_update("a", {"w": np.ones(1)}, kind=ParamsType.FULL))


def test_nothing_to_aggregate_is_an_error():
    with pytest.raises(AggregationError, match="No site"):
        FedAvg().aggregate_model()


@pytest.mark.parametrize(
    "change",
    [
        {"num_samples": -1},
        {"num_samples": 0},
        {"train_loss": float("nan")},
        {"train_loss": 10**400},
        {"val_scores": "abc"},
        {"val_scores": {"mean": 2}},
        {"surprise": 1},
    ],
)
def test_a_wrong_report_is_refused(change):
    update = make_update("a", {"w": np.ones(1, np.float32)})
    update.meta[META_KEY] = {**update.meta[META_KEY], **change}
    with pytest.raises(RefusalError):
        FedAvg().accept_model(update)


@pytest.mark.parametrize(
    "weights", [{"a": 0.5, "b": 0.6}, {"a": 1.5, "b": -0.5}, {"a": 1.0}, {"a": float("nan"), "b": 1.0}]
)
def test_a_rule_with_unusable_weights_is_stopped(weights):
    class Broken(WeightedAggregator):
        def site_weights(self, reports):
            return weights

    rule = Broken()
    for site in "ab":
        rule.accept_model(make_update(site, {"w": np.ones(1, np.float32)}))
    with pytest.raises(AggregationError):
        rule.aggregate_model()


def test_half_fedavg_half_uniform():
    # FeTS sizes 511, 382, 47, 35, 6 of 981: 511 / 1962 + 1 / 10 = 0.36045 and so on.
    sizes = {"a": 511, "b": 382, "c": 47, "d": 35, "e": 6}
    (weights,) = rounds_of(FedAvg(uniform_share=0.5), dict.fromkeys(sizes, 0.1), samples=sizes)
    assert [round(w, 5) for w in weights.values()] == [0.36045, 0.29470, 0.12396, 0.11784, 0.10306]


@given(st.floats(0, 1), st.lists(st.integers(1, 10**6), min_size=1, max_size=10))
def test_a_uniform_share_lies_between_fedavg_and_uniform(share, samples):
    cases = {f"s{i:02d}": n for i, n in enumerate(samples)}
    costs = dict.fromkeys(cases, 0.1)
    (weights,) = rounds_of(FedAvg(uniform_share=share), costs, samples=cases)
    (own,) = rounds_of(FedAvg(), costs, samples=cases)
    for site, weight in weights.items():
        bounds = sorted([own[site], 1 / len(samples)])
        assert bounds[0] - 1e-12 <= weight <= bounds[1] + 1e-12
    assert rounds_of(FedAvg(uniform_share=0), costs, samples=cases) == [own]
    assert rounds_of(FedAvg(uniform_share=1), costs, samples=cases)[0] == dict.fromkeys(cases, 1 / len(samples))


def test_equal_sizes_are_the_arithmetic_mean_whatever_the_steps():
    updates = [make_update(s, {"w": np.array([v])}, 5, steps) for s, v, steps in (("a", 1.0, 1), ("b", 4.0, 99))]
    assert aggregate(FedAvg(), updates)["w"].item() == 2.5


def test_one_full_batch_step_at_each_site_is_one_pooled_step():
    # Least squares y = w x: the pooled gradient is the mean over all cases, sites hold 2, 5 and 11 of them.
    generator = np.random.default_rng(3)
    x, y, rate, start = generator.normal(size=(18, 4)), generator.normal(size=18), 0.1, generator.normal(size=4)
    parts = {"a": slice(0, 2), "b": slice(2, 7), "c": slice(7, 18)}

    def step(rows):
        return -rate * x[rows].T @ (x[rows] @ start - y[rows]) / len(y[rows])

    updates = [make_update(s, {"w": step(rows)}, len(y[rows])) for s, rows in parts.items()]
    np.testing.assert_allclose(aggregate(FedAvg(), updates)["w"], step(slice(None)), rtol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_by": "cases"}, "weight_by is 'cases', but must be one of"),
        ({"uniform_share": 1.5}, "uniform_share is 1.5, but must be a number from 0 to 1"),
        ({"uniform_share": "half"}, "uniform_share is 'half'"),
        ({"uniform_share": True}, "uniform_share is True"),
        ({"uniform_share": float("nan")}, "uniform_share is nan"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        FedAvg(**arguments)


def test_description():
    expected = {"name": "FedAvg", "weight_by": "steps", "uniform_share": 0.25, "unbiased": False}
    assert FedAvg("steps", 0.25).describe() == expected
