import statistics

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize

from aggregators.test_fedavg import aggregate, make_update
from fedseg.aggregators.robust import CoordinateMedian, GeometricMedian, TrimmedMean
from fedseg.aggregators.spool import sums
from fedseg.errors import ConfigurationError

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12)


def on_a_line(*places):
    return in_space([[x] for x in places])


def in_space(points, samples=None):
    samples = samples or [1] * len(points)
    return [
        make_update(f"s{i:02d}", {"w": np.array(p, float)}, n)
        for i, (p, n) in enumerate(zip(points, samples, strict=True))
    ]


def mean_distance(x, points, shares):
    return float(shares @ np.linalg.norm(points - x, axis=1))


# ---------------------------------------------------------------- per coordinate


@pytest.mark.parametrize(
    ("rule", "places", "expected"),
    [
        (CoordinateMedian(), [5.0, -1e30, 3.0], 3.0),
        # (3 + 5) / 2
        (CoordinateMedian(), [5.0, -100.0, 3.0, 100.0], 4.0),
        # one of four is cut at each end although 0.2 * 4 < 1: (2 + 4) / 2
        (TrimmedMean(), [4.0, 2.0, 1e30, -1e30], 3.0),
        # floor(0.2 * 11) = 2 of 11: the mean of 2..8
        (TrimmedMean(), [*map(float, range(11))], 5.0),
        # floor(0.4 * 5) = 2 leave the median
        (TrimmedMean(0.4), [1.0, 2.0, 30.0, 400.0, 5000.0], 30.0),
        # two cannot be told apart, and 0 cuts nothing
        (TrimmedMean(), [1.0, 5.0], 3.0),
        (TrimmedMean(0), [1.0, 5.0, 9.0, 25.0], 10.0),
    ],
)
def test_middles_by_hand(rule, places, expected):
    assert aggregate(rule, on_a_line(*places))["w"].tolist() == [expected]
    assert rule.last_weights == {}


@given(NUMBERS)
def test_coordinate_median_is_the_median_of_the_standard_library(places):
    result = aggregate(CoordinateMedian(), on_a_line(*places))["w"].item()
    assert result == pytest.approx(statistics.median(places), rel=1e-12, abs=1e-12)


@given(NUMBERS, st.floats(0, 0.49))
def test_trimmed_mean_is_the_slow_loop(places, trim):
    assume(abs(trim * len(places) - round(trim * len(places))) > 1e-6 or trim == 0)
    cut = int(trim * len(places))
    cut = max(cut, 1) if trim > 0 and len(places) >= 3 else cut
    rest = sorted(places)[cut : len(places) - cut]
    result = aggregate(TrimmedMean(trim), on_a_line(*places))["w"].item()
    assert result == pytest.approx(statistics.fmean(rest), rel=1e-12, abs=1e-9)


@pytest.mark.parametrize(("sites", "trim", "cut"), [(2, 0.2, 0), (4, 0.2, 1), (10, 0.3, 3), (100, 0.29, 29), (3, 0, 0)])
def test_the_number_that_is_cut_is_noted(sites, trim, cut):
    rule = TrimmedMean(trim)
    aggregate(rule, on_a_line(*range(sites)))
    assert rule.last_notes == {"cut": cut}


@pytest.mark.parametrize("rule", [CoordinateMedian(), TrimmedMean()])
def test_in_pieces_it_is_the_same_to_the_bit(rule, monkeypatch):
    generator = np.random.default_rng(0)
    updates = [make_update(s, {"w": generator.normal(size=(7, 5, 3)).astype(np.float32)}) for s in "abcde"]
    whole = aggregate(rule, updates)["w"]
    assert (whole.shape, whole.dtype) == ((7, 5, 3), np.float32)
    monkeypatch.setattr(sums, "_STRIP", 4 * 5)
    np.testing.assert_array_equal(aggregate(rule, updates)["w"], whole)


@pytest.mark.parametrize("rule", [CoordinateMedian(), TrimmedMean()])
def test_an_array_that_some_sites_sent_is_taken_over_those(rule):
    updates = [make_update(s, {"w": np.array([x])}) for s, x in zip("abc", (1.0, 2.0, 9.0), strict=True)]
    updates.append(make_update("d", {"w": np.array([4.0]), "head": np.array([7.0])}))
    result = aggregate(rule, updates)
    assert result["head"].tolist() == [7.0]
    assert result["w"].tolist() == [3.0]


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (1,)])
def test_shapes_without_a_length_are_kept(shape):
    result = aggregate(CoordinateMedian(), [make_update(s, {"w": np.ones(shape, np.float32)}) for s in "abc"])["w"]
    assert (result.shape, result.dtype) == (shape, np.float32)


@pytest.mark.parametrize("trim", [-0.1, 0.5, float("nan"), True, "0.2"])
def test_a_wrong_trim_is_refused(trim):
    with pytest.raises(ConfigurationError, match=r"trim is .*, but must be a number from 0 to below 0.5"):
        TrimmedMean(trim)


# -------------------------------------------------------------- geometric median


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        # on a line it is the median
        ([[0.0], [1.0], [3.0], [50.0], [1e6]], [3.0]),
        # two points: every place between is a median, and no site wins by its name
        ([[0.0], [4.0]], [2.0]),
        # four on a line: every place from 1 to 3 is one
        ([[0.0], [1.0], [3.0], [50.0]], [2.0]),
        # the corners of a square, and of a tetrahedron
        ([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], [0.0, 0.0]),
        ([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], [0.0, 0.0, 0.0]),
        # an angle of 120 degrees or more: the corner itself
        ([[0.0, 0], [1, 0], [-1, 0.1]], [0.0, 0.0]),
        # an isosceles triangle of base 2 and height 3: Fermat's point, which sees all sides under 120 degrees, is
        # 1 / sqrt(3) above the base
        ([[-1.0, 0], [1, 0], [0, 3]], [0.0, 1 / np.sqrt(3)]),
        # a convex quadrangle: where the diagonals meet, (0, 0) to (4, 4) and (0, 2) to (2, 0)
        ([[0.0, 0], [4, 4], [0, 2], [2, 0]], [1.0, 1.0]),
        ([[7.0, 8]], [7.0, 8.0]),
    ],
)
def test_geometric_median_by_hand(points, expected):
    rule = GeometricMedian()
    np.testing.assert_allclose(aggregate(rule, in_space(points))["w"], expected, atol=1e-7)
    assert rule.last_notes["converged"]


@pytest.mark.parametrize("sites", [1, 3, 6])
def test_equal_updates_get_equal_weights(sites):
    rule = GeometricMedian()
    aggregate(rule, in_space(np.repeat(np.random.default_rng(1).normal(size=(1, 50)), sites, axis=0)))
    assert len(set(rule.last_weights.values())) == 1


@given(st.integers(0, 2**32 - 1), st.integers(3, 9), st.integers(2, 5), st.booleans())
def test_no_other_point_is_better(seed, sites, size, by_samples):
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(sites, size)) * 10.0 ** generator.integers(-3, 4)
    samples = generator.integers(1, 50, size=sites).tolist()
    rule = GeometricMedian(weight_by="samples" if by_samples else "uniform", max_iterations=100_000)
    result = aggregate(rule, in_space(points, samples))["w"]
    shares = np.array(samples) / sum(samples) if by_samples else np.full(sites, 1 / sites)
    assert rule.last_notes["converged"]
    ours = mean_distance(result, points, shares)
    apart = np.linalg.norm(points - result, axis=1)
    scale = np.abs(points).max()
    if apart.min() > 1e-6 * scale:
        # The gradient, from the points themselves.
        gradient = ((result - points) / apart[:, None] * shares[:, None]).sum(axis=0)
        assert np.linalg.norm(gradient) < 1e-7
    start = points.mean(axis=0) / scale
    found = minimize(lambda x: mean_distance(x, points / scale, shares), start, method="BFGS", options={"gtol": 1e-10})
    assert ours / scale <= found.fun * (1 + 1e-9)


@pytest.mark.parametrize("size", [10.0, 1e6, 1e15, 1e30])
def test_one_of_five_corrupt_moves_it_by_a_bounded_distance_only(size):
    # With a share of 1/5 the corrupt one pulls with at most 1/5. Four honest points in a ball of radius r around c then
    # keep the median within r / sqrt(1 - (1/4)^2) of c: further out, each of their unit pulls has a part of more than
    # 1/4 towards c, together more than 1/5.
    generator = np.random.default_rng(0)
    honest = generator.normal(size=(4, 30))
    radius = np.linalg.norm(honest - honest.mean(axis=0), axis=1).max()
    corrupt = size * generator.normal(size=(1, 30))
    points = np.concatenate([honest, corrupt])
    result = aggregate(GeometricMedian(), in_space(points))["w"]
    units = (points - result) / np.linalg.norm(points - result, axis=1, keepdims=True)
    assert np.linalg.norm(units.mean(axis=0)) < 1e-8
    assert np.linalg.norm(result - honest.mean(axis=0)) < radius / np.sqrt(1 - 1 / 16)


def test_a_minority_in_one_place_is_no_trap():
    # Three coincide at 0; the four others pull to the right with 4 * cos, more than 3: the median lies off 0, on the
    # axis by symmetry, where 4 cos = 3. There cot = 3 / sqrt(7), and the four lie 4 cot further along the axis.
    points = [[0.0, 0, 0]] * 3 + [[10.0, 4, 0], [10, -4, 0], [10, 0, 4], [10, 0, -4]]
    result = aggregate(GeometricMedian(), in_space(points))["w"]
    np.testing.assert_allclose(result, [10 - 12 / np.sqrt(7), 0, 0], atol=1e-7)


def test_a_majority_in_one_place_decides():
    points = [[1.0, 2]] * 3 + [[50.0, -3], [1e9, 1e9]]
    np.testing.assert_array_equal(aggregate(GeometricMedian(), in_space(points))["w"], [1.0, 2.0])


def test_near_points_far_from_the_origin_lose_no_digits():
    generator = np.random.default_rng(5)
    points = generator.normal(size=(5, 4)) * 1e-6
    near = aggregate(GeometricMedian(), in_space(points))["w"]
    far = aggregate(GeometricMedian(), in_space(points + 1.0))["w"]
    np.testing.assert_allclose(far - 1.0, near, atol=1e-12)


def test_samples_as_shares():
    # Half of all cases: this site decides alone. On a line with shares 1, 2, 2 of 5 it is the middle one.
    rule = GeometricMedian(weight_by="samples")
    assert aggregate(rule, in_space([[0.0, 0], [1, 5], [9, 2]], [60, 20, 40]))["w"].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(aggregate(rule, in_space([[0.0], [1.0], [9.0]], [10, 20, 20]))["w"], [1.0])


def test_the_last_iteration_is_used_and_noted():
    rule = GeometricMedian(max_iterations=2)
    aggregate(rule, in_space(np.random.default_rng(3).normal(size=(5, 4))))
    assert rule.last_notes == {"iterations": 2, "converged": False}
    assert sum(rule.last_weights.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": 0}, "tolerance is 0, but must be a number above 0 and below 1"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"max_iterations": 0}, "max_iterations is 0, but must be a whole number of at least 1"),
        ({"max_iterations": 10.0}, "max_iterations is 10.0"),
        ({"weight_by": "steps"}, "weight_by is 'steps', but must be one of"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        GeometricMedian(**arguments)


def test_descriptions():
    assert CoordinateMedian().describe() == {"name": "CoordinateMedian"}
    assert TrimmedMean().describe() == {"name": "TrimmedMean", "trim": 0.2}
    described = {"name": "GeometricMedian", "tolerance": 1e-9, "max_iterations": 1000, "weight_by": "uniform"}
    assert GeometricMedian().describe() == described
