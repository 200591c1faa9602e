import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.test_fedavg import aggregate, make_update
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.similarity import RegAgg, SimAgg
from fedseg.errors import ConfigurationError

BOTH = pytest.mark.parametrize("rule_class", [SimAgg, RegAgg])


def weigh(rule, arrays, samples):
    """The weights of one round in which every site sends one array."""
    updates = [
        make_update(f"s{i}", {"w": np.array(a, float)}, n) for i, (a, n) in enumerate(zip(arrays, samples, strict=True))
    ]
    rule.last_result = aggregate(rule, updates)["w"]
    return list(rule.last_weights.values())


def slow(join, distance, arrays, samples):
    """The definition, site by site."""
    mean = sum(np.array(a, float) for a in arrays) / len(arrays)
    far = {
        "l1": lambda a: sum(abs(m - x) for m, x in zip(mean, a, strict=True)),
        "sum": lambda a: abs(sum(mean) - sum(a)),
    }[distance]
    close = [1 / (1e-5 + far(a)) for a in arrays]
    amounts = [join(n / sum(samples), c / sum(close)) for n, c in zip(samples, close, strict=True)]
    return [a / sum(amounts) for a in amounts]


@BOTH
def test_weights_by_hand(rule_class):
    # Arrays 0, 3, 9: mean 4, distances 4, 1, 5. 1 / d = .25, 1, .2, sum 1.45: u = 5/29, 20/29, 4/29 (but for 1e-5).
    # Cases 1, 1, 2: v = .25, .25, .5.
    #   SimAgg (u + v) / 2: .2112, .4698, .3190.  RegAgg u v in proportion to 5, 20, 8 of 33.
    expected = {SimAgg: [49 / 232, 109 / 232, 74 / 232], RegAgg: [5 / 33, 20 / 33, 8 / 33]}[rule_class]
    rule = rule_class()
    assert weigh(rule, [[0], [3], [9]], [1, 1, 2]) == pytest.approx(expected, abs=1e-5)
    assert rule.last_result.item() == pytest.approx(expected[1] * 3 + expected[2] * 9, abs=1e-4)


@BOTH
@pytest.mark.parametrize("distance", ["l1", "sum"])
@given(seed=st.integers(0, 2**32 - 1), sites=st.integers(1, 10))
def test_weights_are_the_slow_loop(rule_class, distance, seed, sites):
    generator = np.random.default_rng(seed)
    arrays, samples = generator.normal(size=(sites, 4)), generator.integers(1, 100, sites).tolist()
    join = {SimAgg: lambda v, u: v + u, RegAgg: lambda v, u: v * u}[rule_class]
    expected = slow(join, distance, arrays, samples)
    assert weigh(rule_class(distance), arrays, samples) == pytest.approx(expected, rel=1e-9)


def test_sums_are_blind_to_changes_of_opposite_sign_and_l1_is_not():
    arrays, samples = [[1, -1], [5, -5], [0, 0]], [1, 1, 1]
    assert weigh(RegAgg("sum"), arrays, samples) == [1 / 3] * 3
    # Mean [2, -2], true distances 2, 6, 4: 1 / d in proportion to 6, 2, 3 of 11.
    assert weigh(RegAgg("l1"), arrays, samples) == pytest.approx([6 / 11, 2 / 11, 3 / 11], abs=1e-5)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=8).filter(lambda n: len(n) % 2 == 0), st.floats(1e-6, 1e6))
def test_equal_distances_say_nothing(samples, size):
    arrays = [[size if i % 2 else -size] for i in range(len(samples))]
    shares = [n / sum(samples) for n in samples]
    assert weigh(RegAgg(), arrays, samples) == pytest.approx(shares, rel=1e-9)
    half = [share / 2 + 0.5 / len(samples) for share in shares]
    assert weigh(SimAgg(), arrays, samples) == pytest.approx(half, rel=1e-9)


@BOTH
@given(samples=st.lists(st.integers(1, 1000), min_size=1, max_size=10))
def test_equal_updates_are_fedavg_to_the_last_bit(rule_class, samples):
    array = np.array([0.1, -3.0, 1e-8], np.float32)
    updates = [make_update(f"s{i:02d}", {"w": array}, n) for i, n in enumerate(samples)]
    rule, reference = rule_class(), FedAvg()
    np.testing.assert_array_equal(aggregate(rule, updates)["w"], aggregate(reference, updates)["w"])
    assert rule.last_weights == pytest.approx(reference.last_weights, rel=1e-15)


@BOTH
@pytest.mark.parametrize("distance", ["l1", "sum"])
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=10, unique=True))
def test_the_farther_from_the_mean_the_less_weight(rule_class, distance, values):
    weights = weigh(rule_class(distance), [[v] for v in values], [7] * len(values))
    far = np.abs(np.array(values) - np.mean(values))
    by_distance = np.array(weights)[np.argsort(far)]
    assert (np.diff(by_distance) <= 1e-12).all()


@pytest.mark.parametrize(("sites", "limit"), [(3, 1 / 5), (5, 1 / 17), (10, 1 / 82)])
def test_the_mean_follows_an_outlier_so_its_weight_has_a_floor(sites, limit):
    # The mean is at far / J: distance far / J for the others, far (J - 1) / J for the outlier.
    for far in (1e3, 1e9):
        weights = weigh(RegAgg(), [[far]] + [[0.0]] * (sites - 1), [4] * sites)
        assert weights[0] == pytest.approx(limit, rel=1e-6)


def test_each_array_has_weights_of_its_own():
    # In "a" sites 1 and 2 agree, in "b" sites 2 and 3.
    near, far = np.zeros(3, np.float32), np.full(3, 9, np.float32)
    updates = [
        make_update("s1", {"a": near, "b": far}),
        make_update("s2", {"a": near, "b": near}),
        make_update("s3", {"a": far, "b": near}),
    ]
    rule = RegAgg()
    result = aggregate(rule, updates)
    # Mean 3, distances 9, 9, 18 in both: 1 / d in proportion to 2, 2, 1; the far one has 1/5 of the weight.
    np.testing.assert_allclose([result["a"], result["b"]], 9 / 5, rtol=1e-6)
    assert rule.last_weights == pytest.approx({"s1": 0.3, "s2": 0.4, "s3": 0.3}, abs=1e-6)
    assert "each array has its own" in rule.last_notes["weights"]


@BOTH
def test_an_array_that_some_sites_sent_is_combined_over_those(rule_class):
    body, head = np.zeros(6, np.float32), np.array([4.0, 4.0], np.float32)
    updates = [
        make_update("a", {"body": body, "head": head}, 1),
        make_update("b", {"body": body, "head": -head}, 3),
        make_update("c", {"body": body}, 4),
    ]
    rule = rule_class()
    result = aggregate(rule, updates)
    # Both are as far from the head's mean, so weights there are .25, .75 (RegAgg), .375, .625 (SimAgg).
    own = {RegAgg: 0.25, SimAgg: 0.375}[rule_class]
    np.testing.assert_allclose(result["head"], 4 * (own - (1 - own)), rtol=1e-6)
    # The body's weights are the shares 1/8, 3/8, 4/8; it has 6 of 8 elements.
    expected = {"a": 0.75 / 8 + own / 4, "b": 0.75 * 3 / 8 + (1 - own) / 4, "c": 0.375}
    assert rule.last_weights == pytest.approx(expected, rel=1e-9)


@BOTH
@pytest.mark.parametrize("shape", [(), (1,), (2, 0), (2, 3)])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_shapes_and_types_are_kept(rule_class, shape, kind):
    rule = rule_class()
    result = aggregate(
        rule, [make_update("a", {"w": np.ones(shape, kind)}, 3), make_update("b", {"w": np.zeros(shape, kind)})]
    )
    assert (result["w"].shape, result["w"].dtype) == (shape, kind)
    assert sum(rule.last_weights.values()) == pytest.approx(1)


@BOTH
def test_an_unknown_distance_is_refused(rule_class):
    with pytest.raises(ConfigurationError, match="distance is 'l2', but must be one of"):
        rule_class("l2")


def test_descriptions():
    assert SimAgg().describe() == {"name": "SimAgg", "distance": "l1"}
    assert RegAgg("sum").describe() == {"name": "RegAgg", "distance": "sum"}
