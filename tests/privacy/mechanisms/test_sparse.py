"""The sparse form: what goes in comes out, at the size that was promised, and nothing else is believed."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.errors import RefusalError
from fedseg.privacy.mechanisms.sparse import (
    LAYOUT,
    POSITIONS,
    VALUES,
    from_sparse,
    read_layout,
    to_sparse,
    values_per_array,
)
from fedseg.privacy.mechanisms.top_k import largest

ARRAYS = {
    "a": np.array([[1.0, -2.0, 3.0], [4.0, -0.0, 6.0]], np.float32),
    "b": np.array(7.5, np.float32),
    "c": np.zeros((0, 2), np.float32),
}
SHAPES = {name: value.shape for name, value in ARRAYS.items()}


def dense(wire, shapes=SHAPES):
    return from_sparse(wire, shapes)


def assert_same_bits(left, right):
    assert list(left) == list(right)
    for name in left:
        assert (left[name].dtype, left[name].shape) == (right[name].dtype, right[name].shape)
        assert left[name].tobytes() == right[name].tobytes()


def test_all_coordinates_come_back_bit_for_bit_without_positions():
    wire = to_sparse(ARRAYS)
    assert set(wire) == {LAYOUT, VALUES}
    assert_same_bits(dense(wire), ARRAYS)


def test_what_was_not_chosen_is_zero():
    masks = {
        "a": np.array([[False, True, False], [False, False, True]]),
        "b": np.array(True),
        "c": np.zeros((0, 2), bool),
    }
    wire = to_sparse(ARRAYS, masks)
    # Coordinates 1, 5 (of a) and 6 (b): 0100 0110 -> 64 + 4 + 2.
    np.testing.assert_array_equal(wire[POSITIONS], [70])
    np.testing.assert_array_equal(wire[VALUES], np.array([-2, 6, 7.5], np.float32))
    assert values_per_array(wire, read_layout(wire)) == [2, 1, 0]
    restored = dense(wire)
    np.testing.assert_array_equal(restored["a"], [[0, -2, 0], [0, 0, 6]])
    assert restored["b"] == 7.5
    assert restored["b"].shape == ()


def test_float64_arrays_keep_their_type_beside_float32():
    arrays = {"x": np.array([0.1, 0.2]), "y": np.array([0.1], np.float32)}
    assert_same_bits(from_sparse(to_sparse(arrays), {"x": (2,), "y": (1,)}), arrays)


@pytest.mark.parametrize(
    ("chosen", "kind", "size"),
    [
        # 6400 coordinates: 800 bytes of bits, so numbers pay below 200 of them.
        (199, np.uint32, 4 * 199),
        (200, np.uint8, 800),
        (640, np.uint8, 800),
    ],
)
def test_positions_take_the_shorter_coding(chosen, kind, size):
    values = np.random.default_rng(0).normal(size=6400).astype(np.float32)
    mask = np.zeros(6400, bool)
    mask[np.random.default_rng(1).permutation(6400)[:chosen]] = True
    wire = to_sparse({"v": values}, {"v": mask})
    assert wire[POSITIONS].dtype == kind
    assert wire[POSITIONS].nbytes == size
    np.testing.assert_array_equal(from_sparse(wire, {"v": (6400,)})["v"], np.where(mask, values, 0))


@given(
    st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
)
def test_any_choice_of_any_arrays_comes_back(shapes, seed, share):
    """Against a slow way: the arrays times their masks."""
    random = np.random.default_rng(seed)
    arrays = {f"n{i}": random.normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes)}
    masks = {name: random.random(value.shape) < share for name, value in arrays.items()}
    masks = {name: np.asarray(mask) for name, mask in masks.items()}
    restored = from_sparse(to_sparse(arrays, masks), {n: v.shape for n, v in arrays.items()})
    for name, value in arrays.items():
        expected = np.where(masks[name], value, np.float32(0))
        np.testing.assert_array_equal(restored[name], expected)
        assert (restored[name].dtype, restored[name].shape) == (np.float32, value.shape)


# ---------------------------------------------------------------- what is not believed


def changed(**parts):
    """A good update of 1600 coordinates, 10 of them chosen, with parts replaced; None removes one."""
    wire = to_sparse({"v": np.arange(1600, dtype=np.float32)}, {"v": np.arange(1600) >= 1590}) | parts
    return {name: value for name, value in wire.items() if value is not None}


def bitmap(**parts):
    wire = to_sparse({"v": np.arange(12, dtype=np.float32)}, {"v": np.arange(12) >= 6}) | parts
    return {name: value for name, value in wire.items() if value is not None}


def layout(coding="numbers", arrays=(("v", [1600], "f4"),)):
    return np.frombuffer(json.dumps({"coding": coding, "arrays": arrays}).encode(), np.uint8)


NUMBERS = np.arange(1590, 1600, dtype=np.uint32)
BROKEN = {
    "no layout": (changed(layout=None), "no layout"),
    "layout of another type": (changed(layout=layout().astype(np.int16)), "no layout"),
    "layout that is no JSON": (changed(layout=np.frombuffer(b"{", np.uint8)), "cannot be read"),
    "layout nested without end": (changed(layout=np.frombuffer(b"[" * 100000, np.uint8)), "cannot be read"),
    "layout without arrays": (changed(layout=layout(arrays=())), "cannot be read"),
    "layout that is a list": (changed(layout=np.frombuffer(b"[1]", np.uint8)), "cannot be read"),
    "unknown coding": (changed(layout=layout("pickle")), "unknown entries"),
    "coding that is no text": (changed(layout=layout(["numbers"])), "unknown entries"),
    "unknown type": (changed(layout=layout(arrays=[("v", [1600], "O")])), "unknown entries"),
    "negative length": (changed(layout=layout(arrays=[("v", [-1600], "f4")])), "unknown entries"),
    "length that is no number": (changed(layout=layout(arrays=[("v", [True], "f4")])), "unknown entries"),
    "a name twice": (changed(layout=layout(arrays=[("v", [800], "f4"), ("v", [800], "f4")])), "twice"),
    "unknown name": (changed(layout=layout(arrays=[("w", [1600], "f4")])), "unknown name"),
    "gigabytes": (changed(layout=layout(arrays=[("v", [2**40], "f4")])), "has the shape"),
    "beyond all integers": (changed(layout=layout(arrays=[("v", [2**70], "f4")])), "has the shape"),
    "a part too many": (changed(more=np.zeros(1)), "other parts"),
    "no positions": (changed(positions=None), "other parts"),
    "positions though all travel": (changed(layout=layout("all")), "other parts"),
    "no values": (changed(values=None), "other parts"),
    "too few values": (changed(values=np.zeros(9, np.float32)), "10 values"),
    "values of another type": (changed(values=np.zeros(10, np.float64)), "10 values"),
    "values that are a list": (changed(values=[0.0] * 10), "10 values"),
    "values in two dimensions": (changed(values=np.zeros((10, 1), np.float32)), "10 values"),
    "a value that is not a number": (changed(values=np.full(10, np.nan, np.float32)), "not finite"),
    "an infinite value": (changed(values=np.full(10, np.inf, np.float32)), "not finite"),
    "a number out of range": (changed(positions=NUMBERS + np.uint32(1)), "out of range"),
    "a number twice": (changed(positions=np.sort(np.r_[NUMBERS[1:], NUMBERS[-1:]])), "repeated"),
    "numbers not in order": (changed(positions=NUMBERS[::-1].copy()), "not in order"),
    "numbers of another type": (changed(positions=NUMBERS.astype(np.int64)), "no numbers"),
    "numbers in two dimensions": (changed(positions=NUMBERS[None]), "no numbers"),
    "bits too few": (bitmap(positions=np.zeros(1, np.uint8)), "one bit"),
    "bits too many": (bitmap(positions=np.zeros(3, np.uint8)), "one bit"),
    "bits beyond the end": (bitmap(positions=np.array([3, 255], np.uint8)), "beyond"),
    "other bits than values": (bitmap(positions=np.array([255, 240], np.uint8)), "12 values"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_update_is_refused(case):
    wire, said = BROKEN[case]
    with pytest.raises(RefusalError, match=said) as caught:
        from_sparse(wire, {"v": (12,) if case.startswith(("bits", "other bits")) else (1600,)})
    assert caught.value.reason == "weights"


def test_a_value_that_only_a_wider_type_holds_is_refused():
    """A double announced for a float32 array: it would become infinite."""
    arrays = [("v", [1], "f4"), ("w", [1], "f8")]
    wire = {LAYOUT: layout("all", arrays), VALUES: np.array([1e300, 1.0])}
    with pytest.raises(RefusalError, match="not finite"):
        from_sparse(wire, {"v": (1,), "w": (1,)})


def test_the_good_ones_are_good():
    """Else the refusals above would prove nothing."""
    assert dense(changed(), {"v": (1600,)})["v"].sum() == sum(range(1590, 1600))
    assert dense(bitmap(), {"v": (12,)})["v"].sum() == sum(range(6, 12))


def test_ten_per_cent_of_five_million_takes_the_bytes_that_follow():
    """5e6/8 bytes of bits and 4 bytes for each of 5e5 values: 0.131 of the dense 2e7."""
    values = np.random.default_rng(0).normal(size=5_000_000).astype(np.float32)
    wire = to_sparse({"v": values}, largest({"v": values}, 0.1))
    assert sum(part.nbytes for part in wire.values()) == 625_000 + 2_000_000 + wire[LAYOUT].nbytes
    assert wire[LAYOUT].nbytes < 100
