"""Bins with too few patients joined to groups, whose bounds lie on a grid that does not depend on the values."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby, pairwise
from typing import NamedTuple

from fedseg.statistics.histogram import Group
from fedseg.statistics.scales import Scale


class _Part(NamedTuple):
    first: int
    last: int
    weight: float
    patients: frozenset[str]
    sharp: tuple[bool, bool]
    """Whether the first and the last bin each have enough patients of their own, so that this bound may be told."""

    def with_next(self, other: _Part) -> _Part:
        ends = self.sharp[0], other.sharp[1]
        return _Part(self.first, other.last, self.weight + other.weight, self.patients | other.patients, ends)


def joined(scale: Scale, counts: Mapping[int, tuple[float, frozenset[str]]], minimum: int) -> dict[Group, float]:
    """The weight of each group of bins, with at least ``minimum`` patients behind each.

    A bin stands alone where all bins with values in its cell have enough patients. Otherwise the whole cell counts as
    one, and neighbours are joined until there are enough patients. The bounds of joined bins are rounded outwards to
    multiples of the cell times a power of two that is as wide as the group; where two groups would then overlap, the
    roundest number between them parts them. So a bound tells a smallest or largest value no better than to a cell of
    the scale, and with nothing beside it no better than to the width of the group, unless a bin with enough patients
    lies there.

    Args:
        scale: of the bins.
        counts: the weight of each bin with values, and the patients behind it.
        minimum: fewest patients behind a group, at least 1. With fewer in all, nothing is left.
    """
    parts: list[_Part] = []
    for part in _cells(scale, counts, minimum):
        if parts and len(parts[-1].patients) < minimum:
            part = parts.pop().with_next(part)
        parts.append(part)
    while len(parts) > 1 and len(parts[-1].patients) < minimum:
        before, last = parts[-2:]
        parts[-2:] = [before.with_next(last)]
    parts = [part for part in parts if len(part.patients) >= minimum]
    return dict(zip(_bounds(scale, parts), (part.weight for part in parts), strict=True))


def _cells(scale: Scale, counts: Mapping[int, tuple[float, frozenset[str]]], minimum: int) -> list[_Part]:
    """Every bin of a cell whose bins all have enough patients, and every other cell as a whole."""
    found: list[_Part] = []
    for number, members in groupby(sorted(counts), key=lambda n: n // scale.cell):
        bins = [_Part(n, n, *counts[n], (True, True)) for n in members]
        if any(len(part.patients) < minimum for part in bins):
            first, patients = number * scale.cell, frozenset[str]().union(*(part.patients for part in bins))
            bins = [_Part(first, first + scale.cell - 1, sum(part.weight for part in bins), patients, (False, False))]
        found += bins
    return found


def _bounds(scale: Scale, parts: list[_Part]) -> list[Group]:
    """The first and the last bin of each part, rounded outwards; without overlap, inside of the scale."""
    found = [_outwards(scale.cell, part) for part in parts]
    for i, (part, after) in enumerate(pairwise(parts)):
        if found[i][1] >= found[i + 1][0]:
            ends = part.last + 1, after.first
            start = ends[1] if after.sharp[0] else ends[0] if part.sharp[1] else _roundest(*ends)
            found[i] = found[i][0], min(found[i][1], start - 1)
            found[i + 1] = max(found[i + 1][0], start), found[i + 1][1]
    lowest, highest = scale.ends
    return [(max(first, lowest), min(last, highest)) for first, last in found]


def _outwards(cell: int, part: _Part) -> Group:
    """To multiples of the smallest power of two times a cell that is as wide as the part; sharp ends stay."""
    width = cell
    while width < part.last - part.first + 1:
        width *= 2
    first = part.first if part.sharp[0] else part.first // width * width
    last = part.last if part.sharp[1] else (part.last // width + 1) * width - 1
    return first, last


def _roundest(lowest: int, highest: int) -> int:
    """The multiple of the largest power of two from ``lowest`` to ``highest``."""
    if lowest <= 0 <= highest:
        return 0
    step = 1
    while highest // (2 * step) * (2 * step) >= lowest:
        step *= 2
    return highest // step * step
