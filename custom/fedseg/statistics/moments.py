"""Mean and variance of values that lie at several places, merged without seeing them together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Weight, mean, and weighted sum of squared deviations from the mean.

    They merge as in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979), in any order and grouping, up to rounding.

    >>> Moments.of(np.array([1.0, 3.0])).merge(Moments.of(np.array([5.0])))
    Moments(weight=2.0, mean=3.5, m2=5.5)

    Attributes:
        weight: how many cases these are; a case weighs 1 however many values it has.
        mean: of the values.
        m2: weighted sum of squared deviations.
    """

    weight: float = 0.0
    mean: float = 0.0
    m2: float = 0.0

    @classmethod
    def of(cls, values: np.ndarray, weight: float = 1.0) -> Moments:
        """Moments of the values of one case, which together have this weight; at least one value."""
        values = np.asarray(values, np.float64)
        return cls(float(weight), float(values.mean()), float(weight * values.var()))

    def merge(self, other: Moments) -> Moments:
        """Moments of the values of both."""
        weight = self.weight + other.weight
        if not weight:
            return self
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.weight / weight)
        return Moments(weight, mean, self.m2 + other.m2 + apart * apart * (self.weight * other.weight / weight))

    @property
    def deviation(self) -> float:
        """Standard deviation (of the population); 0 without weight."""
        return math.sqrt(max(0.0, self.m2) / self.weight) if self.weight else 0.0
