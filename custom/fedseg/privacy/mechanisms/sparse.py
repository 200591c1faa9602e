"""The sparse form of an update: only the chosen coordinates travel, with their positions in the cheapest coding.

The form describes itself, so that a server can restore it without knowing which filter made it:

    layout     uint8, JSON: the coding of the positions, and name, shape and type of every array, in order
    positions  absent if all coordinates travel; else a bit for each coordinate (uint8) or their numbers (uint32)
    values     the chosen coordinates of all arrays, one behind the other

A coordinate's number counts over all arrays, each in row-major order. With a fraction f of n float32 coordinates the
bits take n/8 bytes and the numbers 4 f n, so below f = 1/32 the numbers are shorter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from fedseg.errors import RefusalError
from fedseg.networks.weights import Arrays
from fedseg.privacy.mechanisms.top_k import Masks

LAYOUT, POSITIONS, VALUES = "layout", "positions", "values"
ALL, BITS, NUMBERS = "all", "bits", "numbers"
Shapes = Mapping[str, tuple[int, ...]]

_KINDS: dict[str, np.dtype[Any]] = {"f4": np.dtype(np.float32), "f8": np.dtype(np.float64)}
_LONGEST_LAYOUT = 1 << 22
_MOST_NUMBERED = 1 << 32


@dataclass(frozen=True)
class Layout:
    """What stands in the layout of a sparse update.

    Attributes:
        coding: how the positions are written: ``all``, ``bits`` or ``numbers``.
        names, shapes, kinds: of the arrays, in the order of their coordinates; a kind is ``f4`` or ``f8``.
    """

    coding: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]

    @property
    def ends(self) -> list[int]:
        """Where each array ends, in coordinates."""
        return np.cumsum([prod(shape) for shape in self.shapes], dtype=np.int64).tolist()

    @property
    def value_kind(self) -> np.dtype[Any]:
        """The type that holds the values of every array exactly."""
        return _KINDS[max(self.kinds)]

    def encode(self) -> np.ndarray:
        """The array that travels."""
        arrays = [list(entry) for entry in zip(self.names, self.shapes, self.kinds, strict=True)]
        text = json.dumps({"coding": self.coding, "arrays": arrays}, separators=(",", ":"))
        return np.frombuffer(text.encode(), np.uint8)


def to_sparse(arrays: Mapping[str, np.ndarray], masks: Masks | None = None) -> Arrays:
    """The sparse form of some coordinates.

    Args:
        arrays: float32 or float64, of any shapes.
        masks: for each array a mask of its shape that is True where a coordinate travels; None sends all.
    """
    names = list(arrays)
    chosen = [np.ones(np.shape(arrays[n]), bool) if masks is None else masks[n] for n in names]
    mask = np.concatenate([part.ravel() for part in chosen])
    count, total = int(mask.sum()), mask.size
    bits = -(-total // 8)
    coding = ALL if count == total else NUMBERS if 4 * count < bits and total <= _MOST_NUMBERED else BITS
    kinds = tuple("f8" if arrays[n].dtype == np.float64 else "f4" for n in names)
    layout = Layout(coding, tuple(names), tuple(arrays[n].shape for n in names), kinds)
    values = np.concatenate([arrays[n][part].ravel() for n, part in zip(names, chosen, strict=True)])
    wire = {LAYOUT: layout.encode(), VALUES: values.astype(layout.value_kind, copy=False)}
    if coding == BITS:
        wire[POSITIONS] = np.packbits(mask)
    elif coding == NUMBERS:
        wire[POSITIONS] = np.flatnonzero(mask).astype(np.uint32)
    return wire


def from_sparse(wire: Mapping[str, np.ndarray], shapes: Shapes) -> Arrays:
    """The dense arrays, zero where nothing travelled; nothing in ``wire`` is trusted.

    Args:
        wire: what came.
        shapes: of all arrays that may be in an update; they bound what is allocated.

    Raises:
        RefusalError: it is not what ``to_sparse`` makes of some of these arrays (reason ``weights``).
    """
    layout = read_layout(wire)
    check_layout(layout, shapes)
    if set(wire) != {LAYOUT, VALUES} | (set() if layout.coding == ALL else {POSITIONS}):
        raise _wrong("has other parts than its layout says")
    where = read_positions(wire, layout)
    values = wire[VALUES]
    total = layout.ends[-1]
    count = total if where is None else where.size
    if not isinstance(values, np.ndarray) or values.dtype != layout.value_kind or values.shape != (count,):
        raise _wrong(f"does not hold the {count} values that its positions announce")
    flat = values
    if where is not None:
        flat = np.zeros(total, layout.value_kind)
        flat[where] = values
    parts = np.split(flat, layout.ends[:-1])
    arrays: Arrays = {}
    for name, shape, kind, part in zip(layout.names, layout.shapes, layout.kinds, parts, strict=True):
        with np.errstate(over="ignore"):
            arrays[name] = part.astype(_KINDS[kind]).reshape(shape)
        if not np.isfinite(arrays[name]).all():
            raise _wrong(f"holds values of {name} that are not finite")
    return arrays


def read_layout(wire: Mapping[str, np.ndarray]) -> Layout:
    """The layout of a sparse update, checked in itself.

    Raises:
        RefusalError: it is none (reason ``weights``).
    """
    content = wire.get(LAYOUT)
    if not isinstance(content, np.ndarray) or content.dtype != np.uint8 or not 0 < content.size <= _LONGEST_LAYOUT:
        raise _wrong("has no layout")
    try:
        parsed = json.loads(content.tobytes())
        coding, arrays = parsed["coding"], parsed["arrays"]
        names, shapes, kinds = zip(*arrays, strict=True)
        layout = Layout(coding, names, tuple(tuple(shape) for shape in shapes), kinds)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _wrong("has a layout that cannot be read") from None
    whole = all(type(length) is int and length >= 0 for shape in layout.shapes for length in shape)
    texts = all(isinstance(value, str) for value in (coding, *names, *kinds))
    if not whole or not texts or coding not in (ALL, BITS, NUMBERS) or not set(kinds) <= set(_KINDS):
        raise _wrong("has a layout with unknown entries")
    if len(set(names)) != len(names):
        raise _wrong("names an array twice")
    return layout


def check_layout(layout: Layout, shapes: Shapes) -> None:
    """Refuse arrays that the network does not have: what the layout says decides how much is allocated.

    Raises:
        RefusalError: a name or a shape is another (reason ``weights``).
    """
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if name not in shapes:
            raise _wrong("has an array of an unknown name")
        if shape != tuple(shapes[name]):
            raise _wrong(f"says that {name} has the shape {shape}, expected {tuple(shapes[name])}")


def read_positions(wire: Mapping[str, np.ndarray], layout: Layout) -> np.ndarray | None:
    """Ascending numbers (int64) of the coordinates that travelled; None for all.

    Raises:
        RefusalError: they are not distinct coordinates of the layout (reason ``weights``).
    """
    if layout.coding == ALL:
        return None
    found, total = wire.get(POSITIONS), layout.ends[-1]
    if layout.coding == NUMBERS:
        if not isinstance(found, np.ndarray) or found.dtype != np.uint32 or found.ndim != 1:
            raise _wrong("has no numbers of coordinates")
        numbers = found.astype(np.int64)
        if numbers.size and (numbers[-1] >= total or not (np.diff(numbers) > 0).all()):
            raise _wrong("has numbers of coordinates that are out of range, repeated or not in order")
        return numbers
    if not isinstance(found, np.ndarray) or found.dtype != np.uint8 or found.shape != (-(-total // 8),):
        raise _wrong("has not one bit for each coordinate")
    bits = np.unpackbits(found)
    if bits[total:].any():
        raise _wrong("has bits beyond its last coordinate")
    return np.flatnonzero(bits[:total])


def values_per_array(wire: Mapping[str, np.ndarray], layout: Layout) -> list[int]:
    """How many values of each array travelled, in the layout's order."""
    where = read_positions(wire, layout)
    ends = layout.ends if where is None else np.searchsorted(where, layout.ends).tolist()
    return np.diff([0, *ends]).tolist()


def _wrong(what: str) -> RefusalError:
    return RefusalError("weights", f"The sparse update {what}.")
