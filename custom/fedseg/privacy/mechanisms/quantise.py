"""Fewer bits for each value: float16 or int8 with stochastic rounding, so that the mean stays right.

A value between two numbers of the short type goes to the upper one with the probability by which it is above the lower
one, as in QSGD (Alistarh et al., NeurIPS 2017). Its expectation is then the value itself, and the errors of many sites
and rounds average out; rounding to the nearest would lose every change that is small beside the largest.

Fewer bits protect no patient. They follow the sparse form (see ``sparse``): ``values`` is of the short type, and
``scales`` (float64, one for each array) says what a value of 1 stands for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedseg import allowed
from fedseg.errors import RefusalError
from fedseg.networks.weights import Arrays
from fedseg.privacy.mechanisms.sparse import VALUES, Shapes, check_layout, from_sparse, read_layout, values_per_array

SCALES = "scales"
BITS = (8, 16)
_KINDS: dict[int, np.dtype[Any]] = {8: np.dtype(np.int8), 16: np.dtype(np.float16)}
_LARGEST_INT8 = 127
# The largest magnitude of an array comes to lie from 2**14 to 2**15: below float16's largest number, 65504, and with
# all its precision for everything down to a 2**28th of it.
_FLOAT16_EXPONENT = 15


def quantise(wire: Mapping[str, np.ndarray], bits: int, generator: np.random.Generator) -> Arrays:
    """The sparse form with short values.

    Args:
        wire: from ``sparse.to_sparse``.
        bits: 16 (float16) or 8 (int8).
        generator: for the rounding.

    Raises:
        RefusalError: a value is so large that it could be rounded to one beyond its type (reason ``weights``).
    """
    allowed.one_of("bits", bits, BITS)
    if np.abs(wire[VALUES]).max(initial=0.0) > np.finfo(wire[VALUES].dtype).max / 2:
        raise RefusalError("weights", "The update holds values that are too large to be quantised.")
    counts = values_per_array(wire, read_layout(wire))
    scales, short = np.ones(len(counts)), np.empty(wire[VALUES].size, _KINDS[bits])
    start = 0
    for index, count in enumerate(counts):
        values = wire[VALUES][start : start + count].astype(np.float64)
        scales[index] = _scale(values, bits)
        rounded = _to_int8 if bits == 8 else _to_float16
        short[start : start + count] = rounded(values / scales[index], generator.random(count))
        start += count
    return {**wire, VALUES: short, SCALES: scales}


def from_quantised(wire: Mapping[str, np.ndarray], shapes: Shapes) -> Arrays:
    """The dense arrays; nothing in ``wire`` is trusted. See ``sparse.from_sparse``.

    Raises:
        RefusalError: it is not what ``quantise`` makes (reason ``weights``).
    """
    layout = read_layout(wire)
    check_layout(layout, shapes)
    counts = values_per_array(wire, layout)
    scales, short = wire.get(SCALES), wire.get(VALUES)
    if not isinstance(short, np.ndarray) or short.dtype not in _KINDS.values() or short.shape != (sum(counts),):
        raise RefusalError("weights", f"The quantised update does not hold {sum(counts)} values of 8 or 16 bits.")
    if (
        not isinstance(scales, np.ndarray)
        or scales.dtype != np.float64
        or scales.shape != (len(counts),)
        or not (np.isfinite(scales) & (scales > 0)).all()
    ):
        raise RefusalError("weights", "The quantised update does not hold one positive scale for each array.")
    with np.errstate(over="ignore"):
        values = (short * np.repeat(scales, counts)).astype(layout.value_kind)
    return from_sparse({**{name: wire[name] for name in wire if name != SCALES}, VALUES: values}, shapes)


def _scale(values: np.ndarray, bits: int) -> float:
    """What a quantised value of 1 stands for; a power of two for float16, so that scaling rounds nothing."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0:
        return 1.0
    if bits == 8:
        return max(largest / _LARGEST_INT8, np.finfo(np.float64).tiny)
    return math.ldexp(1.0, max(math.frexp(largest)[1] - _FLOAT16_EXPONENT, -1022))


def _to_int8(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(values + draws), -_LARGEST_INT8, _LARGEST_INT8).astype(np.int8)


def _to_float16(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    nearest = values.astype(np.float16)
    lower = np.where(nearest > values, np.nextafter(nearest, np.float16(-np.inf)), nearest)
    upper = np.nextafter(lower, np.float16(np.inf))
    gap = upper.astype(np.float64) - lower
    return np.where(draws * gap < values - lower, upper, lower)
