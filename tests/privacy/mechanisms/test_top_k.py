"""Selection of the largest coordinates, against a slow sort."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.privacy.mechanisms.top_k import largest, largest_of, selected_count

# Few values, so that ties are common.
ARRAYS = st.dictionaries(
    st.sampled_from("abcd"),
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
        elements=st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0]),
    ),
    max_size=4,
)
PERCENT = st.integers(1, 100)


def test_by_hand():
    arrays = {"a": np.array([[0.1, -5.0], [2.0, 0.0]], np.float32), "b": np.array([3.0, -0.2], np.float32)}
    # Half of 6: 5, 3 and 2.
    assert {n: m.tolist() for n, m in largest(arrays, 0.5).items()} == {
        "a": [[False, True], [True, False]],
        "b": [True, False],
    }
    # A quarter of 4 and of 2, rounded up: one each.
    assert {n: m.tolist() for n, m in largest(arrays, 0.25, per_layer=True).items()} == {
        "a": [[False, True], [False, False]],
        "b": [True, False],
    }


@pytest.mark.parametrize(
    ("fraction", "count", "expected"), [(0.1, 30, 3), (0.1, 31, 4), (0.7, 10, 7), (1, 7, 7), (1e-9, 5, 1), (0.3, 0, 0)]
)
def test_count_takes_the_fraction_as_it_is_written(fraction, count, expected):
    """In floating point 0.1 * 30 is 3.0000000000000004, whose ceiling is 4."""
    assert selected_count(fraction, count) == expected


@given(ARRAYS, PERCENT)
def test_as_a_stable_sort_selects(arrays, percent):
    fraction = percent / 100
    masks = largest(arrays, fraction)
    assert list(masks) == list(arrays)
    flat = [(-abs(float(v)), name, i) for name in sorted(arrays) for i, v in enumerate(arrays[name].ravel())]
    chosen = sorted(flat)[: math.ceil(Fraction(percent, 100) * len(flat))]
    found = {(name, int(i)) for name in arrays for i in np.flatnonzero(masks[name])}
    assert found == {(name, i) for _, name, i in chosen}
    assert all(masks[name].shape == value.shape for name, value in arrays.items())


@given(ARRAYS, PERCENT)
def test_per_layer_is_the_selection_of_each_array_alone(arrays, percent):
    masks = largest(arrays, percent / 100, per_layer=True)
    for name, value in arrays.items():
        np.testing.assert_array_equal(masks[name], largest({name: value}, percent / 100)[name])
        assert masks[name].sum() == math.ceil(Fraction(percent, 100) * value.size)


def test_magnitudes_of_float64_are_compared_as_such():
    value = np.array([1.0, 1.0 + 1e-12, 1.0])
    assert largest({"a": value}, 1 / 3)["a"].tolist() == [False, True, False]


def test_a_million_coordinates_of_equal_magnitude():
    mask = largest({"a": np.ones(1_000_000, np.float32)}, 0.1)["a"]
    assert mask[:100_000].all()
    assert mask.sum() == 100_000


def test_none_of_a_row():
    assert largest_of(np.array([1.0, 2.0]), 0).tolist() == [False, False]


@pytest.mark.parametrize("fraction", [0, 1.1, -0.1, math.nan, "0.1", True])
def test_fractions_that_are_refused(fraction):
    with pytest.raises(ConfigurationError, match=r"fraction is .* above 0, at most 1"):
        largest({"a": np.ones(3)}, fraction)


def test_arrays_that_are_refused():
    with pytest.raises(RefusalError, match="not finite"):
        largest({"a": np.array([1.0, math.nan])}, 0.5)
    with pytest.raises(RefusalError, match="int64"):
        largest({"a": np.array([1, 2])}, 0.5)
