"""Clipping: hand-computed norms, and bounds that hold for the rounded result."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.privacy.mechanisms.clipping import clip_coordinates, clip_l1, clip_l2, l1_norm, l2_norm

KINDS = [np.float16, np.float32, np.float64]
ARRAYS = st.sampled_from(KINDS).flatmap(
    lambda kind: st.dictionaries(
        st.sampled_from("abc"),
        hnp.arrays(
            kind,
            hnp.array_shapes(min_dims=0, max_dims=3, max_side=6),
            elements=st.floats(-100, 100, width=np.dtype(kind).itemsize * 8),
        ),
        max_size=3,
    )
)


def example(kind=np.float32):
    """Joint L2 norm 13 = sqrt(9 + 16 + 144), joint L1 norm 19."""
    return {"a": np.array([[3.0], [-4.0]], kind), "b": np.array(12.0, kind)}


def test_norms_are_joint_over_all_arrays():
    assert l2_norm(example()) == 13.0
    assert l1_norm(example()) == 19.0
    assert l2_norm({}) == l1_norm({}) == 0.0


def test_norm_is_summed_in_float64():
    """A million times 0.1 as float32; running sums in float32 would be off in the fourth digit."""
    value = np.full(1_000_000, 0.1, np.float32)
    assert l2_norm({"a": value}) == pytest.approx(1000 * float(np.float32(0.1)), rel=1e-12)


def test_norm_of_float16_does_not_overflow():
    assert l2_norm({"a": np.full(4, 60000.0, np.float16)}) == pytest.approx(2 * float(np.float16(60000)), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_l2_by_hand(kind):
    clipped, factor = clip_l2(example(kind), 6.5)
    assert factor == pytest.approx(0.5)
    assert clipped["a"].tolist() == [[1.5], [-2.0]]
    assert clipped["b"].shape == ()
    assert float(clipped["b"]) == 6.0
    assert {value.dtype for value in clipped.values()} == {np.dtype(kind)}


def test_l1_by_hand():
    clipped, factor = clip_l1(example(), 4.75)
    assert factor == 0.25
    assert (clipped["a"].tolist(), float(clipped["b"])) == ([[0.75], [-1.0]], 3.0)


@pytest.mark.parametrize("norm", [13, 13.0, 1e6, math.inf])
def test_within_the_bound_nothing_changes(norm):
    arrays = example()
    clipped, factor = clip_l2(arrays, norm)
    assert factor == 1.0
    assert all(clipped[name] is value for name, value in arrays.items())


@given(ARRAYS, st.floats(1e-3, 1e3))
def test_the_rounded_result_is_never_longer_than_the_bound(arrays, norm):
    for clip, measure in ((clip_l2, l2_norm), (clip_l1, l1_norm)):
        clipped, factor = clip(arrays, norm)
        assert measure(clipped) <= norm
        assert 0 <= factor <= 1
        if all(value.dtype == np.float64 for value in arrays.values()) and measure(arrays) > norm:
            assert measure(clipped) == pytest.approx(norm, rel=1e-9)
            for name, value in arrays.items():
                np.testing.assert_allclose(clipped[name], factor * value, rtol=1e-12)


@pytest.mark.parametrize("clip", [clip_l1, clip_l2, clip_coordinates])
def test_an_array_without_axes_stays_an_array(clip):
    clipped = clip({"b": np.array(12.0, np.float32)}, 1.0)
    value = (clipped if clip is clip_coordinates else clipped[0])["b"]
    assert isinstance(value, np.ndarray)
    assert (value.shape, value.dtype, float(value)) == ((), np.float32, 1.0)


def test_smallest_numbers():
    """Two of the smallest float32 numbers, to less than one: any scaling rounds up to them or down to zero."""
    tiny = np.full(2, 1.4e-45, np.float32)
    clipped, _ = clip_l2({"a": tiny}, 1e-45)
    assert clipped["a"].tolist() == [0.0, 0.0]


def test_many_equal_roundings_upwards():
    """0.1 in float32 is above 0.1: the first scaling of a million ones to 0.1 each is too long by rounding."""
    clipped, _ = clip_l2({"a": np.ones(1_000_000, np.float32)}, 100.0)
    assert l2_norm(clipped) <= 100.0
    assert l2_norm(clipped) > 100.0 * (1 - 1e-6)


def test_coordinates_by_hand():
    clipped = clip_coordinates({"a": np.array([-3.0, 0.5, 2.0], np.float32)}, 1)
    assert clipped["a"].tolist() == [-1.0, 0.5, 1.0]


@given(ARRAYS, st.floats(1e-3, 1e3))
def test_no_coordinate_is_beyond_the_bound(arrays, bound):
    """Also where the bound itself has no float32, which the nearest one may exceed."""
    for name, value in clip_coordinates(arrays, bound).items():
        assert value.dtype == arrays[name].dtype
        assert float(np.max(np.abs(value.astype(np.float64)), initial=0.0)) <= bound
        inside = np.abs(arrays[name].astype(np.float64)) <= bound
        np.testing.assert_array_equal(value[inside], arrays[name][inside])


def test_infinite_bound_of_coordinates():
    np.testing.assert_array_equal(clip_coordinates(example(), math.inf)["a"], example()["a"])


@pytest.mark.parametrize("bound", [0, -1.0, math.nan, True, "1", None])
def test_bounds_that_are_refused(bound):
    with pytest.raises(ConfigurationError, match=r"norm is .* but must be a number above 0"):
        clip_l2(example(), bound)
    with pytest.raises(ConfigurationError, match=r"bound is .* but must be a number above 0"):
        clip_coordinates(example(), bound)


@pytest.mark.parametrize("clip", [clip_l1, clip_l2, clip_coordinates])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([1.0, math.nan]), "a holds values that are not finite"),
        (np.array([1.0, math.inf]), "a holds values that are not finite"),
        (np.array([1, 2]), "a is of the type int64"),
        (np.array([True]), "a is of the type bool"),
        ([1.0], "a is of the type list"),
    ],
)
def test_arrays_that_are_refused(clip, value, message):
    with pytest.raises(RefusalError, match=message) as error:
        clip({"a": value}, 1.0)
    assert error.value.reason == "weights"
