"""Histograms that merge: weights of groups of bins, quantiles with their error, and distances with theirs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.stats import wasserstein_distance

from fedseg.errors import DataError
from fedseg.statistics.scales import Scale

Key = TypeVar("Key")
Group = tuple[int, int]
"""The numbers of the first and of the last bin of a group."""


@dataclass(frozen=True)
class Estimate:
    """A number from a histogram: what it is at most wrong by is ``error``."""

    value: float
    error: float


@dataclass(frozen=True)
class Histogram:
    """How much weight lies in which bins.

    Sites join neighbouring bins with too few patients to a group. Groups of two sites may overlap; merging keeps both
    and adds the weights of equal ones, so that it is exact, in any order and grouping.

    >>> from fedseg.statistics.scales import Linear
    >>> sizes = Histogram(Linear(1, 0, 100), {(40, 40): 2.0, (41, 43): 1.0})
    >>> sizes.merge(sizes).bins, sizes.quantile(0.5), sizes.quantile(0.9)
    ({(40, 40): 4.0, (41, 43): 2.0}, Estimate(value=40.0, error=0.5), Estimate(value=42.0, error=1.5))

    Attributes:
        scale: what the numbers of bins mean.
        bins: weight of each group; a case weighs 1, spread over its values. With noise, weights may be negative.
    """

    scale: Scale
    bins: Mapping[Group, float]

    @property
    def weight(self) -> float:
        """Of all groups together."""
        return math.fsum(self.bins.values())

    def merge(self, other: Histogram) -> Histogram:
        """The weights of both.

        Raises:
            DataError: their scales differ.
        """
        if other.scale != self.scale:
            raise DataError(
                f"Two sites counted in different bins ({self.scale} and {other.scale}), so their histograms cannot be "
                "merged. Have both count by one job."
            )
        return Histogram(self.scale, dict(sorted(added(self.bins, other.bins).items())))

    def quantile(self, level: float, linear: bool = False) -> Estimate | None:
        """The value below which a share of the weight lies; None without weight.

        The quantile of the values themselves lies in the interval value +- error, unless it is outside of all bins.

        Args:
            level: from 0 to 1.
            linear: between two values as numpy's default has it, for histograms in which every case has one value;
                otherwise the least value whose share of weight at or below it reaches ``level``.
        """
        kept = self._positive()
        if not kept:
            return None
        bounds, weights = [self.scale.bounds(*group) for group in kept], kept.values()
        at = _between if linear else _at
        low, high = (at(level, zip((b[end] for b in bounds), weights, strict=True)) for end in (0, 1))
        return Estimate((low + high) / 2, (high - low) / 2)

    def mean(self) -> Estimate | None:
        """The mean of the values; None without weight."""
        kept = self._positive()
        if not kept:
            return None
        total = math.fsum(kept.values())
        value = math.fsum(weight * self.scale.centre(*group) for group, weight in kept.items()) / total
        return Estimate(value, self._spread(kept))

    def distance(self, other: Histogram) -> Estimate | None:
        """Wasserstein-1 distance of the two distributions, in the unit of the values; None where one has no weight.

        Every value is taken for the centre of its bin; so each of both distributions moves by its mean half width at
        most, and the distance is wrong by the sum of both at most.

        Raises:
            DataError: their scales differ.
        """
        mine, others = self._positive(), other._positive()
        if not mine or not others:
            return None
        if other.scale != self.scale:
            raise DataError("Histograms with different bins have no distance that could be compared.")
        value = wasserstein_distance(
            [self.scale.centre(*group) for group in mine],
            [self.scale.centre(*group) for group in others],
            list(mine.values()),
            list(others.values()),
        )
        return Estimate(float(value), self._spread(mine) + self._spread(others))

    def _positive(self) -> dict[Group, float]:
        """Groups with weight; noise may have left negative ones, which count as empty."""
        return {group: self.bins[group] for group in sorted(self.bins) if self.bins[group] > 0}

    def _spread(self, kept: Mapping[Group, float]) -> float:
        total = math.fsum(kept.values())
        return math.fsum(weight * self.scale.half_width(*group) for group, weight in kept.items()) / total


def added(mine: Mapping[Key, float], others: Mapping[Key, float]) -> dict[Key, float]:
    """Weights added up by key."""
    total = dict(mine)
    for key, weight in others.items():
        total[key] = total.get(key, 0.0) + weight
    return total


def _at(level: float, values: Iterable[tuple[float, float]]) -> float:
    """The least value at which the cumulated weight reaches the level."""
    places, cumulated = _cumulated(values)
    return _reached(places, cumulated, level * float(cumulated[-1]))


def _between(level: float, values: Iterable[tuple[float, float]]) -> float:
    """The value at a position between two of those that have one weight each, in order."""
    places, cumulated = _cumulated(values)
    position = level * max(0.0, float(cumulated[-1]) - 1)
    below = math.floor(position + 1e-9)
    share = max(0.0, position - below)
    low, high = (_reached(places, cumulated, min(float(cumulated[-1]), below + n)) for n in (1, 2))
    return low + share * (high - low)


def _cumulated(values: Iterable[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    places, weights = map(np.array, zip(*sorted(values), strict=True))
    return places, np.cumsum(weights)


def _reached(places: np.ndarray, cumulated: np.ndarray, weight: float) -> float:
    """The first place at which the weight is reached; sums of shares are rounded: four quarters are one."""
    position = int(np.searchsorted(cumulated, weight * (1 - 1e-12)))
    return float(places[min(position, len(places) - 1)])
