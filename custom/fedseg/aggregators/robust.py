"""Rules that a minority of arbitrary updates cannot carry away: coordinate and geometric median, trimmed mean."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import numpy as np

from fedseg import allowed
from fedseg.aggregators.base import Aggregator
from fedseg.aggregators.geometry import Geometry, measure
from fedseg.aggregators.spool.reader import SpoolReader
from fedseg.aggregators.spool.sums import Strip, in_threads, strips
from fedseg.aggregators.weighted import WeightedAggregator, sample_shares
from fedseg.contract.combinations import COMPARED_UPDATES, EVERY_COORDINATE
from fedseg.contract.report import SiteReport
from fedseg.networks.weights import Arrays

_BASES = ("uniform", "samples")


class _MiddleMean(Aggregator):
    """Each coordinate is the mean of its middle values over the sites that sent it; sizes of sites do not count.

    Arrays are read in strips, so that memory does not grow with the number of sites. With partial sharing a coordinate
    that a site keeps arrives as 0: those that fewer than half of the sites send would never move, and of those that two
    or three send no majority says which is right. So such jobs are refused.
    """

    needs = COMPARED_UPDATES | {EVERY_COORDINATE}

    @abstractmethod
    def _cut(self, sites: int) -> int:
        """How many of so many values are left out at each end."""

    def combine(self, reports: Mapping[str, SiteReport]) -> Arrays:
        names = self._spool.names()
        with self._spool.columns() as reader:
            result = {name: np.empty(reader.shape(name), reader.result_type(name)) for name in names}
            in_threads(lambda strip: self._fill(reader, strip, result[strip.name]), strips(reader, names))
        return result

    def _fill(self, reader: SpoolReader, strip: Strip, result: np.ndarray) -> None:
        sites = reader.sites_with(strip.name)
        cut = self._cut(len(sites))
        values = np.empty((len(sites), strip.stop - strip.start), result.dtype)
        for site, row in zip(sites, values, strict=True):
            reader.read_into(site, strip.name, strip.start, row)
        values.sort(axis=0)
        result.reshape(-1)[strip.start : strip.stop] = values[cut : len(sites) - cut].mean(axis=0, dtype=np.float64)


class CoordinateMedian(_MiddleMean):
    """The median of every coordinate (Yin et al., ICML 2018); the mean of the middle two for an even number."""

    def _cut(self, sites: int) -> int:
        return (sites - 1) // 2


class TrimmedMean(_MiddleMean):
    """The mean of every coordinate without its largest and smallest values (Yin et al., ICML 2018).

    At each end floor(trim J) of J values are left out, but at least one where three or more were sent: with four sites
    and a trim of 0.2 nothing would be cut otherwise, and the rule would be a plain mean under another name.

    ``last_notes`` holds ``cut``, the values left out at each end where all sites sent the array.
    """

    def __init__(self, trim: float = 0.2) -> None:
        """Set the share that is cut.

        Args:
            trim: share of the sites left out at each end, from 0 (plain mean) to below 0.5 (towards the median).
        """
        super().__init__()
        allowed.number("trim", trim, least=0, below=0.5)
        self.trim = trim

    def combine(self, reports: Mapping[str, SiteReport]) -> Arrays:
        self.last_notes = {"cut": self._cut(len(reports))}
        return super().combine(reports)

    def _cut(self, sites: int) -> int:
        if self.trim == 0 or sites < 3:
            return 0
        # The summand keeps 0.29 * 100 = 28.999... from being cut to 28.
        return max(1, math.floor(self.trim * sites + 1e-9))


class GeometricMedian(WeightedAggregator):
    """The point with the least mean distance to all updates (RFA; Pillutla et al., IEEE TSP 2022).

    It is a weighted mean, whose weights follow from the distances between the updates alone, see
    ``geometric_median``; fewer than half of the shares, placed anywhere, move it by a bounded distance only.

    ``last_notes`` holds ``iterations`` and ``converged``.
    """

    needs = COMPARED_UPDATES

    def __init__(self, tolerance: float = 1e-9, max_iterations: int = 1000, weight_by: str = "uniform") -> None:
        """Set when to stop, and what the sites' shares are.

        Args:
            tolerance: stop when the gradient of the mean distance, a number from 0 to 1, is no longer than this.
            max_iterations: stop then at the latest; the last point is used.
            weight_by: ``uniform``, or ``samples`` for shares in proportion to training cases, with which a site that
                holds half of all cases decides alone.
        """
        super().__init__()
        allowed.number("tolerance", tolerance, above=0, below=1)
        allowed.whole("max_iterations", max_iterations)
        allowed.one_of("weight_by", weight_by, _BASES)
        self.tolerance, self.max_iterations, self.weight_by = tolerance, max_iterations, weight_by

    def site_weights(self, reports: Mapping[str, SiteReport]) -> dict[str, float]:
        shares = sample_shares(reports) if self.weight_by == "samples" else dict.fromkeys(reports, 1 / len(reports))
        geometry = measure(self._spool)
        amounts = np.array([shares[site] for site in geometry.sites])
        weights, iterations, converged = geometric_median(geometry, amounts, self.tolerance, self.max_iterations)
        self.last_notes = {"iterations": iterations, "converged": converged}
        return dict(zip(geometry.sites, weights.tolist(), strict=True))


def geometric_median(
    geometry: Geometry, shares: np.ndarray, tolerance: float, max_iterations: int
) -> tuple[np.ndarray, int, bool]:
    """The weights with which points add up to their geometric median, x = sum_j w_j x_j; points are never needed.

    1. Start at the point with the least mean distance to the others. If it is optimal (the unit vectors to the other
       points, times their shares, sum to no more than its own share), it is the answer. Points that tie with it are
       then medians too and are averaged by their shares, so that no site wins by its name.
    2. Else step away from it (Vardi & Zhang, PNAS 2000) to a place that is better than every point, so that no point
       can trap what follows.
    3. Weiszfeld's iteration from there: w_i in proportion to shares_i / |x_i - x|.

    Returns:
        Weights [J] that sum to one, iterations, and whether the gradient became as small as ``tolerance``.
    """
    distances = np.sqrt(geometry.squared)
    objective = distances @ shares
    best = int(np.argmin(objective))
    centred = _centred(geometry, best)
    apart = distances[best] > 0
    pulls = np.divide(shares, distances[best], out=np.zeros_like(shares), where=apart)
    pull, own = _length(pulls, centred), shares[~apart].sum()
    if pull <= own * (1 + 1e-9):
        tied = shares * (objective <= objective[best] * (1 + 1e-12))
        return tied / tied.sum(), 0, True
    weights = (1 - own / pull) * pulls / pulls.sum()
    weights[best] += own / pull
    for iteration in range(1, max_iterations + 1):
        from_points = np.eye(len(weights)) - weights
        squared = ((from_points @ centred) * from_points).sum(axis=1)
        # A distance that vanishes in the rounding of its square is as large as that rounding.
        pulls = shares / np.sqrt(np.maximum(squared, np.finfo(float).eps * np.diag(centred) + np.finfo(float).tiny))
        moved = pulls / pulls.sum()
        gradient = pulls.sum() * _length(moved - weights, centred)
        weights = moved
        if gradient <= tolerance:
            return weights, iteration, True
    return weights, max_iterations, False


def _centred(geometry: Geometry, origin: int) -> np.ndarray:
    """Inner products of all points as seen from one of them [J, J].

    Either from distances or from inner products, whichever loses fewer digits: the first for points close together,
    the second for one very far point beside a near one.
    """
    squared, inner, norms = geometry.squared, geometry.inner, geometry.norms
    away = squared[origin]
    from_squared = (away[:, None] + away[None] - squared) / 2
    from_inner = inner - inner[:, [origin]] - inner[[origin]] + inner[origin, origin]
    lost_squared = np.maximum(np.maximum(away[:, None], away[None]), squared)
    lost_inner = (norms[:, None] + norms[origin]) * (norms[None] + norms[origin])
    return np.where(lost_squared <= lost_inner, from_squared, from_inner)


def _length(amounts: np.ndarray, inner: np.ndarray) -> float:
    """|sum_j amounts_j x_j| from the inner products of the points."""
    return math.sqrt(max(0.0, float(amounts @ inner @ amounts)))
