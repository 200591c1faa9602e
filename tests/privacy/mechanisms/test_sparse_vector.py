"""The sparse vector technique: limits without noise, scales of the noise, charges, and its measured selection."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import integrate, stats

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.privacy.mechanisms.noise import NoiseSource, SecureNoise, SeededNoise
from fedseg.privacy.mechanisms.sparse_vector import sparse_vector
from fedseg.privacy.mechanisms.top_k import largest_of

NO_NOISE = {"epsilon_threshold": math.inf, "epsilon_query": math.inf, "epsilon_release": math.inf}
ROWS = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-3, 3, width=32))


def update(count=1000, seed=0):
    return np.random.default_rng(seed).normal(0, 1, count).astype(np.float32)


class Scripted(NoiseSource):
    """Gives what a test says, and notes the scales that it was asked for."""

    secure = False

    def __init__(self, laplace, order):
        self._laplace, self._order, self.scales = list(laplace), order, []

    def laplace(self, shape, scale):
        self.scales.append(scale)
        return np.array(self._laplace.pop(0), float).reshape(tuple(shape))

    def uniform(self, shape):
        return np.array(self._order[: shape[0]], float)

    _standard_normal = _standard_laplace = _standard_uniform = None


# ---------------------------------------------------------------- limits


@given(ROWS, st.floats(0.0625, 5, width=32))
def test_everything_selected_without_noise_is_the_clipped_update(values, clip):
    result = sparse_vector(values, values.size, clip, 0.0, **NO_NOISE, noise=SeededNoise(1))
    assert result.indices.tolist() == list(range(values.size))
    np.testing.assert_array_equal(result.released, np.clip(values.astype(float), -clip, clip))
    assert (result.passes, result.epsilon, result.overlap_with_top_k) == (1, math.inf, 1.0)


def test_without_any_clip_it_is_the_update():
    values = update()
    result = sparse_vector(values, values.size, math.inf, 0.0, **NO_NOISE, noise=SeededNoise(1))
    np.testing.assert_array_equal(result.released, values.astype(float))


@pytest.mark.parametrize("charge", ["single_pass", "every_pass"])
def test_without_noise_and_with_the_right_threshold_it_is_the_exact_top(charge):
    values = update()
    threshold = float(np.sort(np.abs(values))[-100])
    result = sparse_vector(values, 100, 10.0, threshold, **NO_NOISE, noise=SeededNoise(1), charge=charge)
    np.testing.assert_array_equal(result.indices, np.flatnonzero(largest_of(np.abs(values), 100)))
    np.testing.assert_array_equal(result.released, values[result.indices].astype(float))
    assert result.overlap_with_top_k == 1.0


# --------------------------------------------------------- step by step


def test_one_pass_by_hand():
    """Clip 2, threshold 1, two acceptances allowed; the order of questions is 3, 0, 2, 1.

    The noisy threshold is 1 + 0.5. Coordinate 3: 2 (clipped) - 1 = 1, no. Coordinate 0: 0.2 + 1.4 = 1.6, yes.
    Coordinate 2: 1.5 + 0 = 1.5, yes (equal), and the pass ends; coordinate 1 is not asked.
    Released: 0.2 + 0.3 and -1.5 - 0.9, the second clipped again to -2.
    """
    noise = Scripted([[0.5], [-1.0, 1.4, 0.0, 9.0], [0.3, -0.9]], [0.2, 0.9, 0.3, 0.1])
    values = np.array([0.2, 1.9, -1.5, 7.0])
    result = sparse_vector(values, 2, 2.0, 1.0, 0.25, 0.5, 2.0, noise)
    assert result.indices.tolist() == [0, 2]
    assert result.released == pytest.approx([0.5, -2.0])
    # 2 / 0.25; 2 * 2 * 2 / 0.5; 2 * 2 * 2 / 2.
    assert noise.scales == [8.0, 16.0, 4.0]
    assert (result.passes, result.epsilon) == (1, 0.25 + 0.5 + 2.0)
    # The two largest are coordinates 3 and 1: none of the selected ones.
    assert result.overlap_with_top_k == 0.0


def test_every_pass_by_hand():
    """Of three acceptances the first pass gives coordinate 1; the second asks 0 and 2, with noise for the two left."""
    noise = Scripted([[0.0], [0.0, 0.0, 0.0], [0.0], [5.0, 5.0], [0.0, 0.0, 0.0]], [0.1, 0.2, 0.3])
    result = sparse_vector(np.array([0.1, 1.0, 0.2]), 3, 1.0, 0.5, 1.0, 2.0, 4.0, noise, charge="every_pass")
    assert result.indices.tolist() == [0, 1, 2]
    # Threshold 1/1 twice; questions 2 * 3 / 2, then 2 * 2 / 2; release 2 * 3 / 4.
    assert noise.scales == [1.0, 3.0, 1.0, 2.0, 1.5]
    assert (result.passes, result.epsilon) == (2, 2 * (1.0 + 2.0) + 4.0)


def test_a_single_pass_stops_with_fewer_than_allowed():
    noise = Scripted([[0.0], [0.0, 0.0, 0.0], [0.0]], [0.1, 0.2, 0.3])
    result = sparse_vector(np.array([0.1, 1.0, 0.2]), 3, 1.0, 0.5, 1.0, 2.0, 4.0, noise)
    assert (result.indices.tolist(), result.passes, result.epsilon) == ([1], 1, 7.0)


def test_nothing_selected():
    result = sparse_vector(np.array([0.1]), 1, 1.0, 5.0, **NO_NOISE, noise=SeededNoise(1))
    assert (result.indices.size, result.released.size, result.overlap_with_top_k) == (0, 0, None)


def test_passes_have_an_end():
    result = sparse_vector(
        np.array([0.1]), 1, 1.0, 5.0, **NO_NOISE, noise=SeededNoise(1), charge="every_pass", max_passes=7
    )
    assert (result.indices.size, result.passes) == (0, 7)


# ------------------------------------------------------------ statistics


def test_acceptance_has_the_probability_that_the_scales_give():
    """One coordinate |v| = 0.3 against the threshold 1: P(0.3 + q >= 1 + r), integrated over both Laplace densities.

    Scales 1 / 0.8 for the threshold and 2 / 1.5 for the question; 6 standard deviations of 20,000 trials.
    """
    threshold, question = stats.laplace(scale=1 / 0.8), stats.laplace(scale=2 / 1.5)
    expected, _ = integrate.quad(lambda r: threshold.pdf(r) * question.sf(0.7 + r), -60, 60, points=[0.0, -0.7])
    noise, trials = SeededNoise(5), 20_000
    values = np.array([0.3])
    accepted = sum(sparse_vector(values, 1, 1.0, 1.0, 0.8, 1.5, 1.0, noise).indices.size for _ in range(trials))
    assert abs(accepted / trials - expected) < 6 * math.sqrt(expected * (1 - expected) / trials)


def test_released_noise_has_its_scale():
    """Zeros with 5,000 releases: scale 2 * 1 * 5,000 / 100,000 = 0.1, so that clipping at 1 cuts off e^-10 of it."""
    values = np.zeros(5000)
    result = sparse_vector(values, 5000, 1.0, 0.0, math.inf, math.inf, 1e5, SeededNoise(2))
    assert result.released.size == 5000
    assert abs(result.released.mean()) < 6 * math.sqrt(2 * 0.1**2 / 5000)
    assert abs(result.released.var() - 2 * 0.1**2) < 6 * 2 * 0.1**2 * math.sqrt(5 / 5000)


@given(
    ROWS,
    st.data(),
    st.floats(0.01, 100),
    st.sampled_from(["single_pass", "every_pass"]),
    st.integers(0, 1000),
)
def test_properties(values, data, epsilon, charge, seed):
    """At most ``count`` distinct coordinates, in bounds, and a charge for each pass."""
    count = data.draw(st.integers(1, values.size))
    result = sparse_vector(
        values, count, 0.5, 0.2, epsilon, epsilon, epsilon, SeededNoise(seed), charge, max_passes=500
    )
    assert np.unique(result.indices).size == result.indices.size <= count
    assert np.all(np.diff(result.indices) > 0)
    assert np.abs(result.released).max(initial=0.0) <= 0.5
    assert result.epsilon == pytest.approx(result.passes * 2 * epsilon + epsilon)
    assert result.passes == 1 or charge == "every_pass"
    if charge == "every_pass" and result.passes < 500:
        assert result.indices.size == count
    again = sparse_vector(values, count, 0.5, 0.2, epsilon, epsilon, epsilon, SeededNoise(seed), charge, max_passes=500)
    np.testing.assert_array_equal(result.indices, again.indices)
    np.testing.assert_array_equal(result.released, again.released)


def test_with_useful_budgets_the_selection_is_no_better_than_chance():
    """100,000 coordinates, a tenth selected: the overlap with the true top tenth is a tenth, give or take 1.5 points.

    With an epsilon of 30,000 it is better than chance, which shows that the measurement can tell.
    """
    values = np.random.default_rng(0).normal(0, 1e-4, 100_000)
    arguments = {"count": 10_000, "clip": 1e-4, "threshold": 5e-5, "noise": SeededNoise(4)}
    for epsilon in (0.1, 21.0):
        overlap = sparse_vector(
            values, **arguments, epsilon_threshold=epsilon, epsilon_query=epsilon, epsilon_release=epsilon
        ).overlap_with_top_k
        assert overlap == pytest.approx(0.1, abs=0.015)
    huge = sparse_vector(values, **arguments, epsilon_threshold=3e4, epsilon_query=3e6, epsilon_release=3e4)
    assert huge.overlap_with_top_k > 0.13


def test_the_order_of_questions_is_random():
    """With everything acceptable, which ten of a thousand are taken depends on the draws alone, uniformly."""
    noise = SecureNoise()
    taken = np.concatenate(
        [sparse_vector(np.ones(1000), 10, 1.0, 0.0, **NO_NOISE, noise=noise).indices for _ in range(200)]
    )
    assert stats.kstest(taken / 1000, "uniform").pvalue > 1e-6


# ------------------------------------------------------------ wrong usage


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"count": 0}, "count is 0, but must be a whole number from 1 to the 3"),
        ({"count": 4}, "count is 4"),
        ({"clip": 0}, "clip is 0"),
        ({"threshold": -1.0}, "threshold is -1.0"),
        ({"threshold": math.inf}, "threshold is inf"),
        ({"epsilon_threshold": 0}, "epsilon_threshold is 0"),
        ({"epsilon_query": -1.0}, "epsilon_query is -1.0"),
        ({"epsilon_release": None}, "epsilon_release is missing"),
        ({"clip": math.inf}, "clip is inf, but must be finite"),
        ({"charge": "never"}, "charge is 'never'"),
        ({"max_passes": 0}, "max_passes is 0"),
        ({"values": np.ones((2, 2))}, "values is \\[2, 2\\]"),
        ({"values": np.ones(0)}, "values is \\[0\\]"),
    ],
)
def test_arguments_that_are_refused(changed, message):
    arguments = {
        "values": np.ones(3),
        "count": 1,
        "clip": 1.0,
        "threshold": 0.5,
        "epsilon_threshold": 1.0,
        "epsilon_query": 1.0,
        "epsilon_release": 1.0,
        "noise": SeededNoise(1),
    }
    with pytest.raises(ConfigurationError, match=message):
        sparse_vector(**{**arguments, **changed})


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(RefusalError, match="not finite"):
        sparse_vector(np.array([math.nan]), 1, 1.0, 0.5, 1.0, 1.0, 1.0, SeededNoise(1))
