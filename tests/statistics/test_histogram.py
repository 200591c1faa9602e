"""Histograms against the values themselves: quantiles, means and distances within the stated error."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from fedseg.errors import DataError
from fedseg.statistics.histogram import Histogram
from fedseg.statistics.scales import Linear, Relative
from fedseg.statistics.tally import BinTally

SCALE = Linear(0.5, -50, 50)
values_of = st.lists(st.floats(-40, 40), min_size=1, max_size=30)


def histogram(values, minimum=1, scale=SCALE):
    tally = BinTally(scale)
    for number, value in enumerate(values):
        tally.count(np.array([value]), str(number))
    return tally.histogram(minimum)


@given(values=values_of, level=st.floats(0, 1), minimum=st.integers(1, 6))
def test_a_quantile_of_the_values_lies_within_the_stated_error(values, level, minimum):
    found = histogram(values, minimum).quantile(level)
    if len(values) < minimum:
        assert found is None
        return
    exact = np.quantile(values, level, method="inverted_cdf")
    assert abs(found.value - exact) <= found.error + 1e-9


@given(values=values_of, level=st.floats(0, 1), minimum=st.integers(1, 6))
def test_between_values_it_is_numpys_quantile_within_the_stated_error(values, level, minimum):
    found = histogram(values, minimum).quantile(level, linear=True)
    if found is not None:
        assert abs(found.value - np.quantile(values, level)) <= found.error + 1e-6


@given(values=values_of, minimum=st.integers(1, 3))
def test_the_mean_lies_within_the_stated_error(values, minimum):
    found = histogram(values, minimum).mean()
    if found is not None:
        assert abs(found.value - np.mean(values)) <= found.error + 1e-9


@given(values_of, values_of, st.integers(1, 3))
def test_the_distance_is_that_of_the_values_within_the_stated_error(one, other, minimum):
    found = histogram(one, minimum).distance(histogram(other, minimum))
    if found is not None:
        assert abs(found.value - wasserstein_distance(one, other)) <= found.error + 1e-9


def test_the_distance_of_shifted_values_is_the_shift():
    values = np.arange(0, 20, 0.5)
    found = histogram(values).distance(histogram(values + 3))
    assert (found.value, found.error) == (pytest.approx(3), pytest.approx(0.5))


@given(st.lists(values_of, min_size=3, max_size=3), st.integers(1, 4))
def test_merging_knows_no_order_and_no_grouping(parts, minimum):
    a, b, c = (histogram(part, minimum) for part in parts)
    assert a.merge(b).bins == b.merge(a).bins
    left, right = a.merge(b).merge(c).bins, a.merge(b.merge(c)).bins
    assert left.keys() == right.keys()
    assert all(left[group] == pytest.approx(right[group], abs=1e-9) for group in left)


@given(st.lists(values_of, min_size=2, max_size=4))
def test_merged_parts_equal_all_values_in_one_place(parts):
    merged = histogram([])
    for part in parts:
        merged = merged.merge(histogram(part))
    whole = histogram([value for part in parts for value in part])
    assert merged.bins == pytest.approx(whole.bins, abs=1e-9)


def test_other_bins_cannot_be_merged_or_compared():
    one, other = histogram([1.0]), histogram([1.0], scale=Relative(0.1, 1, 100))
    with pytest.raises(DataError, match="different bins"):
        one.merge(other)
    with pytest.raises(DataError, match="different bins"):
        one.distance(other)


def test_negative_weights_of_noise_count_as_empty():
    noisy = Histogram(SCALE, {(0, 0): -2.0, (4, 4): 3.0})
    assert noisy.quantile(0.5).value == noisy.mean().value == 2.0
    assert Histogram(SCALE, {(0, 0): -1.0}).quantile(0.5) is None
    assert noisy.weight == 1.0
