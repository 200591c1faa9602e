"""Scales: which bin of a histogram a value belongs to. Bins are numbered alike everywhere, so that histograms merge."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fedseg import allowed


class Scale(ABC):
    """Bins with whole numbers; a value outside of all bins counts in the nearest one.

    A group of neighbouring bins is named by its first and its last number. Cell n has the bins from n * cell on; bounds
    of joined bins lie between cells, see ``joining.joined``.
    """

    cell: int

    @property
    @abstractmethod
    def ends(self) -> tuple[int, int]:
        """Numbers of the first and of the last bin."""

    @abstractmethod
    def index(self, values: np.ndarray) -> np.ndarray:
        """The number of the bin of each value; int64, of the shape of ``values``, which are finite."""

    @abstractmethod
    def bounds(self, first: int, last: int) -> tuple[float, float]:
        """Lowest and highest value of a group of bins."""

    def centre(self, first: int, last: int) -> float:
        """The value that stands for a group of bins: the middle of its bounds."""
        return math.fsum(self.bounds(first, last)) / 2

    def half_width(self, first: int, last: int) -> float:
        """How far a value of a group can be from its centre."""
        low, high = self.bounds(first, last)
        return (high - low) / 2

    def holds(self, first: int, last: int) -> bool:
        """Whether these are the numbers of bins of this scale, in order."""
        return self.ends[0] <= first <= last <= self.ends[1]


@dataclass(frozen=True)
class Linear(Scale):
    """Bins of one width, centred on its multiples, so that whole numbers and round sizes are exact.

    >>> Linear(0.5, 0, 10).index(np.array([0.9, 1.2, 99])).tolist(), Linear(0.5, 0, 10).bounds(2, 2)
    ([2, 2, 20], (0.75, 1.25))

    Attributes:
        width: of a bin.
        lowest, highest: multiples of it on which the first and the last bin are centred.
        cell: how many bins have one cell, a power of two.
    """

    width: float
    lowest: float
    highest: float
    cell: int = 1

    def __post_init__(self) -> None:
        allowed.number("width", self.width, above=0)
        allowed.number("highest", self.highest, above=self.lowest)

    @property
    def ends(self) -> tuple[int, int]:
        return round(self.lowest / self.width), round(self.highest / self.width)

    def index(self, values: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.clip(np.rint(np.asarray(values, float) / self.width), *self.ends).astype(np.int64)
        return found

    def bounds(self, first: int, last: int) -> tuple[float, float]:
        return (first - 0.5) * self.width, (last + 0.5) * self.width


@dataclass(frozen=True)
class Relative(Scale):
    """Bins whose half width is a share of their lower bound, for values of unknown size and either sign.

    Bin 0 has all values nearer to 0 than ``smallest``. Bin n from 1 up begins at smallest * g^(n - 1) with
    g = 1 + 2 * accuracy, and bin -n is its mirror image. The idea is that of sketches with relative error (Masson, Rim
    and Lee, "DDSketch", VLDB 2019); with the middle of the bounds for a value, the error is ``accuracy`` of it at most.

    >>> scale = Relative(0.5, 1, 100)
    >>> scale.index(np.array([0.5, 1, 1.9, 2, -5])).tolist(), scale.bounds(2, 2), scale.bounds(-2, -1)
    ([0, 1, 1, 2, -3], (2.0, 4.0), (-4.0, -1.0))

    Attributes:
        accuracy: above 0.
        smallest, largest: sizes between which bins tell values apart.
        cell: how many bins have one cell, a power of two.
    """

    accuracy: float
    smallest: float
    largest: float
    cell: int = 1

    def __post_init__(self) -> None:
        allowed.number("accuracy", self.accuracy, above=0)
        allowed.number("smallest", self.smallest, above=0)
        allowed.number("largest", self.largest, above=self.smallest)

    @property
    def ends(self) -> tuple[int, int]:
        count = math.ceil(math.log(self.largest / self.smallest) / math.log1p(2 * self.accuracy))
        return -count, count

    def index(self, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values, float)
        size = np.maximum(np.abs(values), self.smallest)
        # A hair up, so that a bin's own lower bound, which is rounded, falls into it.
        steps = np.floor(np.log(size / self.smallest) / math.log1p(2 * self.accuracy) + 1e-9) + 1
        steps = np.where(np.abs(values) < self.smallest, 0, np.minimum(steps, self.ends[1]))
        found: np.ndarray = (np.sign(values) * steps).astype(np.int64)
        return found

    def bounds(self, first: int, last: int) -> tuple[float, float]:
        return -self._outer(-first) if first < 1 else self._inner(first), self._outer(last)

    def _inner(self, number: int) -> float:
        """The lower bound of a bin from 1 up."""
        return float(self.smallest * (1 + 2 * self.accuracy) ** (number - 1))

    def _outer(self, number: int) -> float:
        """The upper bound of any bin."""
        return self._inner(number + 1) if number >= 0 else -self._inner(-number)


def unique_shares(scale: Scale, values: np.ndarray) -> Iterable[tuple[int, float]]:
    """The bins that values fall into, each with its share of them; the shares add up to 1."""
    numbers, counts = np.unique(scale.index(values), return_counts=True)
    return zip(numbers.tolist(), (counts / counts.sum()).tolist(), strict=True)
