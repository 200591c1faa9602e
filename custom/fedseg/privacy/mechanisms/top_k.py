"""The largest coordinates of an update: what partial sharing sends (Shokri and Shmatikov, 2015; Li et al., 2019).

Selection alone protects no patient: it limits what is sent, but the values that are sent are exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from fedseg import allowed
from fedseg.privacy.mechanisms.clipping import check_floating

Masks = dict[str, np.ndarray]


def largest(arrays: Mapping[str, np.ndarray], fraction: float, per_layer: bool = False) -> Masks:
    """Where the coordinates of largest magnitude are.

    Of equal magnitudes the earlier one is taken, arrays in the order of their names. Memory: twice the magnitudes.

    Args:
        arrays: floating point arrays of any shapes.
        fraction: above 0, at most 1.
        per_layer: the fraction of each array instead of the fraction of all coordinates together.

    Returns:
        For each name a mask of the array's shape. Exactly ``selected_count(fraction, n)`` coordinates are True, with n
        the coordinates of all arrays, or of each one.

    Raises:
        ConfigurationError: ``fraction`` is out of its range.
        RefusalError: an array is not of floating point or not finite (reason ``weights``).
    """
    allowed.number("fraction", fraction, above=0, most=1)
    check_floating(arrays)
    if per_layer:
        return {name: _select([value], fraction)[0] for name, value in arrays.items()}
    names = sorted(arrays)
    masks = _select([arrays[name] for name in names], fraction) if names else []
    found = dict(zip(names, masks, strict=True))
    return {name: found[name] for name in arrays}


def largest_of(magnitudes: np.ndarray, count: int) -> np.ndarray:
    """Where the ``count`` largest of a row of magnitudes are, the earlier ones first among equal ones.

    Args:
        magnitudes: [n], not negative, finite.
        count: 0 to n.

    Returns:
        A mask [n] with exactly ``count`` True.
    """
    if count in (0, magnitudes.size):
        return np.full(magnitudes.size, count > 0)
    threshold = np.partition(magnitudes, magnitudes.size - count)[magnitudes.size - count]
    mask = magnitudes > threshold
    ties = np.flatnonzero(magnitudes == threshold)
    mask[ties[: count - int(mask.sum())]] = True
    return mask


def selected_count(fraction: float, count: int) -> int:
    """ceil(fraction * count), with the fraction taken as it is written: 0.1 of 30 is 3, though 0.1 * 30 > 3."""
    return math.ceil(Fraction(repr(float(fraction))) * count)


def _select(arrays: list[np.ndarray], fraction: float) -> list[np.ndarray]:
    """Masks of the largest coordinates of all arrays together."""
    kind = np.result_type(np.float32, *arrays)
    magnitudes = np.concatenate([np.abs(value, dtype=kind).ravel() for value in arrays])
    count = selected_count(fraction, magnitudes.size)
    mask = largest_of(magnitudes, count)
    bounds = np.cumsum([value.size for value in arrays])[:-1]
    return [part.reshape(value.shape) for part, value in zip(np.split(mask, bounds), arrays, strict=True)]
