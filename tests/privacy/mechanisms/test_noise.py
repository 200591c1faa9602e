"""Noise: distributions against scipy's, independence of sources, and the mechanisms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.privacy.mechanisms.clipping import l1_norm, l2_norm
from fedseg.privacy.mechanisms.noise import SecureNoise, SeededNoise, gaussian_mechanism, laplace_mechanism

COUNT = 400_000
SOURCES = [SecureNoise(), SeededNoise(3, "site-1", 0)]


@pytest.mark.parametrize("noise", SOURCES, ids=lambda source: type(source).__name__)
@pytest.mark.parametrize(
    ("name", "exact"),
    [("normal", stats.norm(scale=2.5)), ("laplace", stats.laplace(scale=2.5)), ("uniform", stats.uniform())],
)
def test_draws_follow_their_distribution(noise, name, exact):
    """Kolmogorov and Smirnov's distance, and the variance; a sound source fails once in a million runs."""
    shape = (COUNT // 4, 4)
    drawn = noise.uniform(shape) if name == "uniform" else getattr(noise, name)(shape, 2.5)
    assert (drawn.shape, drawn.dtype) == (shape, np.float64)
    assert stats.kstest(drawn.ravel(), exact.cdf).pvalue > 1e-6
    variance, kurtosis = exact.var(), float(exact.stats("k"))
    spread = variance * math.sqrt((kurtosis + 2) / COUNT)
    assert abs(drawn.var() - variance) < 6 * spread
    assert abs(drawn.mean() - exact.mean()) < 6 * math.sqrt(variance / COUNT)


@pytest.mark.parametrize("name", ["normal", "laplace"])
def test_secure_draws_are_independent_of_each_other(name):
    """Neighbouring draws, and draws at the distance at which pieces are combined, are uncorrelated."""
    drawn = getattr(SecureNoise(), name)((COUNT,), 1.0)
    for lag in (1, 2, COUNT // 4, COUNT // 2, 1 << 18):
        correlation = np.corrcoef(drawn[lag:], drawn[:-lag])[0, 1]
        assert abs(correlation) < 6 / math.sqrt(COUNT - lag)
    assert np.unique(drawn).size == COUNT


def test_secure_tails_are_there():
    """Of 4 million draws 27 lie beyond 4.5 on average (none with a probability of 2e-12), and none beyond 8."""
    largest = max(float(np.abs(SecureNoise().normal((COUNT,), 1.0)).max()) for _ in range(10))
    assert 4.5 < largest < 8


def test_uniform_draws_never_reach_one():
    drawn = SecureNoise().uniform((COUNT,))
    assert drawn.min() >= 0
    assert drawn.max() < 1


def test_a_seeded_source_repeats_and_a_secure_one_does_not():
    first, second = (SeededNoise(1, "a").normal((5,), 1.0) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, SeededNoise(1, "b").normal((5,), 1.0))
    assert not np.array_equal(SecureNoise().normal((5,), 1.0), SecureNoise().normal((5,), 1.0))
    assert (SecureNoise.secure, SeededNoise.secure) == (True, False)


def test_a_source_goes_on_where_it_stopped():
    source = SeededNoise(1)
    assert not np.array_equal(source.normal((5,), 1.0), source.normal((5,), 1.0))


def test_no_shape_and_no_draws():
    assert SecureNoise().normal((), 1.0).shape == ()
    assert SecureNoise().laplace((0, 3), 1.0).shape == (0, 3)
    assert SecureNoise().normal((2, 2), 0).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("scale", [-1.0, math.inf, math.nan, None, True])
def test_scales_that_are_refused(scale):
    with pytest.raises(ConfigurationError, match=r"scale is .* but must be a finite number from 0 up"):
        SecureNoise().normal((2,), scale)


def test_a_seeded_source_needs_a_seed():
    with pytest.raises(ConfigurationError, match="at least one word"):
        SeededNoise()


# ------------------------------------------------------------- mechanisms


def update(scale=1.0):
    return {"a": np.full((300, 300), scale, np.float32), "b": np.array(scale, np.float32)}


@pytest.mark.parametrize("mechanism", [gaussian_mechanism, laplace_mechanism])
def test_without_noise_only_the_clipping_is_left(mechanism):
    arrays = update()
    same = mechanism(arrays, 1e9, 0, SeededNoise(1))
    np.testing.assert_array_equal(same["a"], arrays["a"])
    measure = l2_norm if mechanism is gaussian_mechanism else l1_norm
    assert measure(mechanism(arrays, 2.0, 0, SeededNoise(1))) == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize(
    ("mechanism", "variance", "fourth"),
    # Standard deviation 0.7 * 2; scale 0.7 * 2, and a Laplace variance of 2 scale^2 with an excess kurtosis of 3.
    [(gaussian_mechanism, 1.4**2, 0), (laplace_mechanism, 2 * 1.4**2, 3)],
)
def test_noise_is_measured_against_the_clip(mechanism, variance, fourth):
    noisy = mechanism(update(0.0), 2.0, 0.7, SecureNoise())["a"]
    assert noisy.dtype == np.float32
    spread = variance * math.sqrt((fourth + 2) / noisy.size)
    assert abs(noisy.var(dtype=np.float64) - variance) < 6 * spread


def test_each_array_has_draws_of_its_own():
    arrays = {name: np.zeros(8, np.float32) for name in "ab"}
    noisy = gaussian_mechanism(arrays, 1.0, 1.0, SeededNoise(1))
    assert not np.array_equal(noisy["a"], noisy["b"])


def test_an_array_without_axes_stays_an_array():
    noisy = gaussian_mechanism(update(), 1.0, 1.0, SeededNoise(1))["b"]
    assert isinstance(noisy, np.ndarray)
    assert (noisy.shape, noisy.dtype) == ((), np.float32)


def test_draws_do_not_depend_on_the_order_of_names():
    arrays = {name: np.zeros(3, np.float32) for name in "ab"}
    first = gaussian_mechanism(arrays, 1.0, 1.0, SeededNoise(1))
    second = gaussian_mechanism(dict(reversed(arrays.items())), 1.0, 1.0, SeededNoise(1))
    assert {name: value.tolist() for name, value in first.items()} == {n: v.tolist() for n, v in second.items()}


@given(st.floats(1e-3, 1e3), st.floats(0.01, 10), st.integers(0, 2**32))
def test_noise_scales_with_the_clip(clip, multiplier, seed):
    """Doubling the clip of an empty update doubles every coordinate: the draws are the same, to a rounding."""
    arrays = {"a": np.zeros(4)}
    once = gaussian_mechanism(arrays, clip, multiplier, SeededNoise(seed))["a"]
    twice = gaussian_mechanism(arrays, 2 * clip, multiplier, SeededNoise(seed))["a"]
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-12)


@pytest.mark.parametrize("mechanism", [gaussian_mechanism, laplace_mechanism])
def test_arguments_that_are_refused(mechanism):
    with pytest.raises(ConfigurationError, match="clip is 0"):
        mechanism(update(), 0, 1.0, SeededNoise(1))
    with pytest.raises(ConfigurationError, match="noise_multiplier is -1"):
        mechanism(update(), 1.0, -1, SeededNoise(1))
    with pytest.raises(ConfigurationError, match="clip is inf, but must be finite"):
        mechanism(update(), math.inf, 1.0, SeededNoise(1))
    with pytest.raises(RefusalError, match="not finite"):
        mechanism({"a": np.array([math.nan])}, 1.0, 1.0, SeededNoise(1))
