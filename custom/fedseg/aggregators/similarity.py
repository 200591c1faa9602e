"""Weights by similarity to the mean, array by array: SimAgg and RegAgg (Khan et al., HT-TUAS, FeTS 2021 and 2022)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import numpy as np

from fedseg import allowed
from fedseg.aggregators.base import Aggregator
from fedseg.aggregators.spool.reader import SpoolReader
from fedseg.aggregators.spool.sums import weighted_sums
from fedseg.aggregators.weighted import normalised, sample_shares
from fedseg.contract.report import SiteReport
from fedseg.networks.weights import Arrays

_DISTANCES = ("l1", "sum")
_EPSILON = 1e-5


class _SimilarityWeighted(Aggregator):
    """Each array has weights of its own, over the sites that sent it.

    1. m = plain mean of the sites' arrays; d_j = the distance of site j's array to m.
    2. u_j = 1 / (1e-5 + d_j), divided by the sum over sites; v_j = the site's share of the training cases.
    3. Weights from u_j and v_j. Where all distances are 0 they are v_j, that is FedAvg.

    The authors' code takes the absolute difference of SUMS for a distance (``sum``). It does not see changes of
    opposite sign: [1, -1] and [5, -5] are equal to it. ``l1`` sums the absolute differences instead and is the
    default. The code also adds 1e-5 to the sum in step 2, which moves weights in the sixth digit at ordinary
    distances and is left out here. The one in u_j is absolute: arrays that differ by much less than that get equal u_j.

    Neither rule shuts out an attacker, for the mean follows it: however far out one of J sites is, its u_j is
    1 / ((J - 1)^2 + 1), a fifth among three sites.

    ``last_weights`` is the mean of the arrays' weights by their numbers of elements; ``last_notes`` says so.
    """

    def __init__(self, distance: str = "l1") -> None:
        """Choose the distance.

        Args:
            distance: ``l1``, or ``sum`` as in the authors' code.
        """
        super().__init__()
        allowed.one_of("distance", distance, _DISTANCES)
        self.distance = distance

    @abstractmethod
    def join(self, share: float, similarity: float) -> float:
        """What an array's weight is proportional to, from v_j and u_j."""

    def combine(self, reports: Mapping[str, SiteReport]) -> Arrays:
        with self._spool.columns() as reader:
            factors = {}
            for name in self._spool.names():
                sites = reader.sites_with(name)
                factors[name] = self._weigh(self._distances(reader, name, sites), {s: reports[s] for s in sites})
            sizes = {name: reader.size(name) for name in factors}
            result = weighted_sums(reader, factors)
        elements = sum(sizes.values())
        sums = {s: math.fsum(sizes[name] * weights.get(s, 0.0) for name, weights in factors.items()) for s in reports}
        self.last_weights = {s: sums[s] / elements for s in reports} if elements else sample_shares(reports)
        self.last_notes = {"weights": "each array has its own; shown is their mean by numbers of elements"}
        return result

    def _distances(self, reader: SpoolReader, name: str, sites: list[str]) -> dict[str, float]:
        mean = np.zeros(reader.shape(name))
        for site in sites:
            mean += reader.read(site, name)
        mean /= len(sites)
        measure = {"l1": lambda gap: np.abs(gap).sum(), "sum": lambda gap: abs(gap.sum())}[self.distance]
        return {site: float(measure(mean - reader.read(site, name))) for site in sites}

    def _weigh(self, distances: Mapping[str, float], reports: Mapping[str, SiteReport]) -> dict[str, float]:
        shares = sample_shares(reports)
        if not any(distances.values()):
            return shares
        similarities = normalised({site: 1 / (_EPSILON + distance) for site, distance in distances.items()})
        return normalised({site: self.join(shares[site], similarities[site]) for site in reports})


class SimAgg(_SimilarityWeighted):
    """Weights in proportion to v_j + u_j: half by training cases, half by similarity."""

    def join(self, share: float, similarity: float) -> float:
        return share + similarity


class RegAgg(_SimilarityWeighted):
    """Weights in proportion to v_j u_j: training cases, regularised by similarity."""

    def join(self, share: float, similarity: float) -> float:
        return share * similarity
