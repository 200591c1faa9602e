"""Quantised values: unbiased, bounded in their error, and finite."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.privacy.mechanisms.quantise import SCALES, from_quantised, quantise
from fedseg.privacy.mechanisms.sparse import POSITIONS, VALUES, to_sparse
from fedseg.privacy.mechanisms.top_k import largest


def there_and_back(arrays, bits, seed=0, masks=None):
    wire = quantise(to_sparse(arrays, masks), bits, np.random.default_rng(seed))
    return from_quantised(wire, {name: value.shape for name, value in arrays.items()})


def test_int8_by_hand():
    """Largest 127 -> scale 1; 0.25 becomes 0 or 1; with the array's own scale, 2 * 127 -> scale 2 and 3 -> 1 or 2."""
    arrays = {"a": np.array([127.0, 0.25, -4.0], np.float32), "b": np.array([-254.0, 3.0], np.float32)}
    wire = quantise(to_sparse(arrays), 8, np.random.default_rng(0))
    assert wire[VALUES].dtype == np.int8
    np.testing.assert_array_equal(wire[SCALES], [1.0, 2.0])
    assert wire[VALUES][0] == 127
    assert wire[VALUES][1] in (0, 1)
    assert wire[VALUES][2] == -4
    assert wire[VALUES][3] == -127
    assert wire[VALUES][4] in (1, 2)


def test_float16_by_hand():
    """Scaled by a power of two: 1 lies at 2**14, where numbers are 16 apart; what is representable stays exact."""
    arrays = {"a": np.array([1.0, -0.5, 2.0**-20, 1 + 2.0**-12], np.float32)}
    wire = quantise(to_sparse(arrays), 16, np.random.default_rng(0))
    assert wire[SCALES][0] == 2.0**-14
    back = from_quantised(wire, {"a": (4,)})["a"]
    np.testing.assert_array_equal(back[:3], arrays["a"][:3])
    # Float16 has 10 bits behind the leading one, so the neighbours of 1 + 2**-12 are 1 and 1 + 2**-10.
    assert back[3] in (1.0, 1 + 2.0**-10)


@pytest.mark.parametrize(("bits", "kind", "bytes_each"), [(16, np.float16, 2), (8, np.int8, 1)])
def test_the_values_are_short(bits, kind, bytes_each):
    wire = quantise(to_sparse({"a": np.ones(1000, np.float32)}), bits, np.random.default_rng(0))
    assert wire[VALUES].dtype == kind
    assert wire[VALUES].nbytes == 1000 * bytes_each


@pytest.mark.parametrize("bits", [16, 8])
def test_the_expectation_is_the_value(bits):
    """The mean of 20000 roundings lies within five standard errors, a step / (2 sqrt(20000)) at most, of the value."""
    values = np.array([1.0, 0.7001, -0.3333, 0.01234567, -0.0009, 1e-7], np.float32)
    draws = 20000
    arrays = {f"n{i}": values for i in range(draws)}
    back = np.stack(list(there_and_back(arrays, bits, seed=5).values())).astype(np.float64)
    step = np.full(values.size, 1 / 127) if bits == 8 else np.maximum(np.abs(values) * 2.0**-10, 2.0**-38)
    assert np.all(np.abs(back.mean(0) - values) <= 5 * step / (2 * np.sqrt(draws)) + 1e-12)
    assert len(np.unique(back[:, 1])) == 2, "it is rounded at random, or the mean would prove nothing"


@given(
    hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(-(2.0**126), 2.0**126, width=32)),
    st.sampled_from([8, 16]),
    st.integers(0, 1000),
)
def test_the_error_is_below_one_step_and_nothing_overflows(values, bits, seed):
    back = there_and_back({"v": values}, bits, seed)["v"].astype(np.float64)
    assert np.isfinite(back).all()
    largest_magnitude = np.abs(values.astype(np.float64)).max(initial=0)
    if bits == 8:
        bound = np.full(values.size, largest_magnitude / 127)
    else:
        bound = np.maximum(np.abs(values.astype(np.float64)) * 2.0**-10, largest_magnitude * 2.0**-37)
    # The restored value is rounded to float32 once more.
    rounding = np.maximum(np.abs(back) * 2.0**-24, 2.0**-149)
    assert np.all(np.abs(back - values) <= bound + rounding)


@pytest.mark.parametrize("bits", [16, 8])
def test_zeros_stay_zeros_and_signs_stay(bits):
    arrays = {"z": np.zeros(5, np.float32), "s": np.array([-1e-3, 1e-3], np.float32), "none": np.zeros(0, np.float32)}
    back = there_and_back(arrays, bits)
    np.testing.assert_array_equal(back["z"], np.zeros(5))
    np.testing.assert_allclose(back["s"], arrays["s"], rtol=2.0**-10 if bits == 16 else 2.0**-23)
    assert back["none"].shape == (0,)


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("extreme", [np.finfo(np.float64).max / 2, 5e-324])
def test_the_ends_of_float64_are_no_end(bits, extreme):
    back = there_and_back({"v": np.array([extreme, 0.0, -extreme])}, bits)["v"]
    assert np.isfinite(back).all()
    assert abs(back[0] - extreme) <= max(extreme / 127, 2.0**-1022)


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_values_that_could_be_rounded_to_infinity_are_refused(bits, kind):
    with pytest.raises(RefusalError, match="too large"):
        there_and_back({"v": np.array([-np.finfo(kind).max, 1], kind)}, bits)


def test_only_what_is_sent_is_quantised():
    values = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    masks = largest({"v": values}, 0.1)
    wire = quantise(to_sparse({"v": values}, masks), 8, np.random.default_rng(0))
    assert wire[VALUES].size == 200
    back = from_quantised(wire, {"v": (40, 50)})["v"]
    assert np.count_nonzero(back[~masks["v"]]) == 0
    np.testing.assert_allclose(back[masks["v"]], values[masks["v"]], atol=np.abs(values).max() / 127)


def test_equal_seeds_round_alike():
    arrays = {"v": np.random.default_rng(0).normal(size=100).astype(np.float32)}
    first, second, other = (there_and_back(arrays, 8, seed)["v"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("bits", [4, 32, "8", True, None, 8.0])
def test_other_widths_are_refused(bits):
    with pytest.raises(ConfigurationError, match="bits"):
        quantise(to_sparse({"v": np.ones(3, np.float32)}), bits, np.random.default_rng(0))


GOOD = quantise(
    to_sparse({"v": np.arange(12, dtype=np.float32)}, {"v": np.arange(12) >= 6}), 8, np.random.default_rng(0)
)


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        (VALUES, np.zeros(6, np.float32), "6 values"),
        (VALUES, np.zeros(7, np.int8), "6 values"),
        (VALUES, None, "6 values"),
        (VALUES, np.full(6, np.inf, np.float16), "not finite"),
        (SCALES, np.array([np.nan]), "scale"),
        (SCALES, np.array([0.0]), "scale"),
        (SCALES, np.array([-1.0]), "scale"),
        (SCALES, np.ones(2), "scale"),
        (SCALES, np.ones(1, np.float32), "scale"),
        (SCALES, 1.0, "scale"),
        (SCALES, np.array([1e308]), "not finite"),
        (POSITIONS, np.zeros(5, np.uint8), "one bit"),
        ("more", np.zeros(1), "other parts"),
    ],
)
def test_a_broken_update_is_refused(part, value, said):
    wire = {**GOOD, part: value}
    with pytest.raises(RefusalError, match=said):
        from_quantised(wire, {"v": (12,)})
    assert from_quantised(GOOD, {"v": (12,)})["v"][11] == pytest.approx(11)


def test_quantised_gigabytes_are_refused_before_they_are_allocated():
    wire = quantise(to_sparse({"v": np.ones(4, np.float32)}), 8, np.random.default_rng(0))
    with pytest.raises(RefusalError, match="shape"):
        from_quantised(wire, {"v": (2**40,)})
