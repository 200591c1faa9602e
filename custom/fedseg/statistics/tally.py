"""What a site counts before anything leaves: who is behind each bin, so that none leaves with too few patients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from fedseg.statistics.histogram import Histogram
from fedseg.statistics.joining import joined
from fedseg.statistics.scales import Scale, unique_shares

OTHER = "other"
"""Takes the place of categories with too few patients."""


class Tally(ABC):
    """Weights by key, and the patients behind each key."""

    def __init__(self) -> None:
        self.weights: defaultdict[int | str, float] = defaultdict(float)
        self.patients: defaultdict[int | str, set[str]] = defaultdict(set)

    def add(self, shares: Iterable[tuple[int | str, float]], patient: str, weight: float) -> None:
        """Add the shares that one case has of each key."""
        for key, share in shares:
            self.weights[key] += weight * share
            self.patients[key].add(patient)

    @abstractmethod
    def dense(self) -> np.ndarray:
        """The weight of every key that there can be, in order."""


class BinTally(Tally):
    """Values of cases, counted in bins.

    >>> from fedseg.statistics.scales import Linear
    >>> tally = BinTally(Linear(1, 0, 100, cell=8))
    >>> for patient, size in (("a", 40), ("b", 40), ("c", 43)):
    ...     tally.count(np.array([size]), patient)
    >>> tally.histogram(1).bins, tally.histogram(2).bins
    ({(40, 40): 2.0, (43, 43): 1.0}, {(40, 47): 3.0})
    """

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.scale = scale

    def count(self, values: np.ndarray, patient: str, weight: float = 1.0) -> None:
        """Count the values of one case, at least one; together they have this weight."""
        self.add(unique_shares(self.scale, values), patient, weight)

    def histogram(self, minimum: int) -> Histogram:
        """What may leave: at least ``minimum`` patients are behind each group of bins; see ``joining.joined``.

        Without that many patients in all, nothing is left.
        """
        counts = {n: (self.weights[n], frozenset(self.patients[n])) for n in self.weights if isinstance(n, int)}
        return Histogram(self.scale, joined(self.scale, counts, minimum))

    def dense(self) -> np.ndarray:
        first, last = self.scale.ends
        values = np.zeros(last - first + 1)
        for number, weight in self.weights.items():
            values[int(number) - first] = weight
        return values


class NameTally(Tally):
    """Categories of cases, counted by name.

    >>> tally = NameTally(("RAS", "LPS", "LAS"))
    >>> for patient, name in (("a", "RAS"), ("b", "RAS"), ("c", "RAS"), ("d", "LPS"), ("e", "LAS")):
    ...     tally.count({name: 1.0}, patient)
    >>> tally.released(2), tally.released(3)
    ({'RAS': 3.0, 'other': 2.0}, {'other': 5.0})
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names

    def count(self, shares: Mapping[str, float], patient: str, weight: float = 1.0) -> None:
        """Count one case: its share of each category that it has."""
        self.add(((name, share) for name, share in shares.items() if share > 0), patient, weight)

    def released(self, minimum: int) -> dict[str, float]:
        """What may leave: categories with fewer patients are joined under ``other``.

        Where too few patients would be behind ``other``, the smallest category joins them, since the number of cases
        tells what is missing; without enough patients in all, nothing is left.
        """
        names = sorted((str(n) for n in self.weights), key=lambda n: (-len(self.patients[n]), self.names.index(n)))
        kept = [name for name in names if len(self.patients[name]) >= minimum]
        joined = names[len(kept) :]
        while joined and kept and len(self._behind(joined)) < minimum:
            joined.insert(0, kept.pop())
        found = {name: self.weights[name] for name in self.names if name in kept}
        if joined and len(self._behind(joined)) >= minimum:
            found[OTHER] = sum(self.weights[name] for name in joined)
        return found

    def _behind(self, names: Iterable[str]) -> set[str]:
        return set().union(*(self.patients[name] for name in names))

    def dense(self) -> np.ndarray:
        return np.array([self.weights.get(name, 0.0) for name in self.names])
