"""Bounds on how long an update, or one of its coordinates, may be: what noise is measured against."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedseg import allowed
from fedseg.errors import RefusalError
from fedseg.networks.weights import Arrays


def l2_norm(arrays: Mapping[str, np.ndarray]) -> float:
    """The Euclidean norm of all arrays taken as one vector, summed in float64."""
    return math.sqrt(math.fsum(float(np.sum(np.square(value, dtype=np.float64))) for value in arrays.values()))


def l1_norm(arrays: Mapping[str, np.ndarray]) -> float:
    """The sum of magnitudes over all arrays taken as one vector, in float64."""
    return math.fsum(float(np.sum(np.abs(value), dtype=np.float64)) for value in arrays.values())


def clip_l2(arrays: Mapping[str, np.ndarray], norm: float) -> tuple[Arrays, float]:
    """Scale the arrays so that their joint Euclidean norm is at most ``norm``.

    The bound holds for the rounded result, not only for the exact one: an update that is longer by a rounding error
    would have a larger sensitivity than the one that is accounted for.

    Args:
        arrays: floating point arrays of any shapes.
        norm: above 0; infinite for no bound.

    Returns:
        The arrays, each of its own type, and the factor that they were multiplied by. Arrays within the bound come
        back as they are (not copied), with the factor 1.

    Raises:
        ConfigurationError: ``norm`` is not above 0.
        RefusalError: an array is not of floating point or not finite (reason ``weights``).
    """
    return _clip_norm(arrays, norm, l2_norm)


def clip_l1(arrays: Mapping[str, np.ndarray], norm: float) -> tuple[Arrays, float]:
    """As ``clip_l2``, for the joint sum of magnitudes."""
    return _clip_norm(arrays, norm, l1_norm)


def clip_coordinates(arrays: Mapping[str, np.ndarray], bound: float) -> Arrays:
    """Limit each coordinate to the range from ``-bound`` to ``bound``; shapes and types stay.

    Args:
        arrays: floating point arrays of any shapes.
        bound: above 0; infinite for no bound.

    Raises:
        ConfigurationError: ``bound`` is not above 0.
        RefusalError: an array is not of floating point or not finite (reason ``weights``).
    """
    allowed.number("bound", bound, above=0, infinite=True)
    check_floating(arrays)
    clipped = {}
    for name, value in arrays.items():
        limit = _below(bound, value.dtype)
        clipped[name] = np.asarray(np.clip(value, -limit, limit))
    return clipped


def check_floating(arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse what cannot be clipped or given noise.

    Raises:
        RefusalError: an array is not of floating point, or holds values that are not finite (reason ``weights``).
    """
    for name, value in arrays.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            kind = getattr(value, "dtype", type(value).__name__)
            raise RefusalError("weights", f"{name} is of the type {kind}, but only floating point can be protected.")
        if not np.isfinite(value).all():
            raise RefusalError("weights", f"{name} holds values that are not finite.")


def _clip_norm(
    arrays: Mapping[str, np.ndarray], norm: float, measure: Callable[[Mapping[str, np.ndarray]], float]
) -> tuple[Arrays, float]:
    allowed.number("norm", norm, above=0, infinite=True)
    check_floating(arrays)
    length = measure(arrays)
    if length <= norm:
        return dict(arrays), 1.0
    factor, step = norm / length, float(np.finfo(np.float64).eps)
    while True:
        scaled = {name: np.asarray(value.astype(np.float64) * factor, value.dtype) for name, value in arrays.items()}
        if measure(scaled) <= norm:
            return scaled, factor
        # Rounding made it longer than it should be. Twice the step each time: denormal numbers round by half of them.
        factor *= max(0.0, 1 - step)
        step *= 2


def _below(bound: float, kind: np.dtype[Any]) -> np.floating[Any]:
    """The largest number of a type that is not above ``bound``."""
    limit = kind.type(min(bound, float(np.finfo(kind).max)))
    return limit if float(limit) <= bound else np.nextafter(limit, kind.type(0))
