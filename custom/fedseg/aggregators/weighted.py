"""The base of all rules that give each site a weight: the next update is the weighted mean of the sites' updates."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

from fedseg.aggregators.base import AggregationError, Aggregator
from fedseg.aggregators.spool.sums import weighted_sums
from fedseg.contract.report import SiteReport
from fedseg.networks.weights import Arrays


class WeightedAggregator(Aggregator):
    """Weighted mean of updates, summed in the order of the sites' names.

    >>> class Equal(WeightedAggregator):
    ...     def site_weights(self, reports):
    ...         return normalised(dict.fromkeys(reports, 1))
    >>> reports = {"a": SiteReport(9, 1, 0.5, None), "b": SiteReport(1, 1, 0.5, None)}
    >>> Equal().round_weights(reports)
    {'a': 0.5, 'b': 0.5}

    A rule overrides ``site_weights``, and ``site_scales`` where it also stretches or shrinks single updates. Updates
    wait on disk and are read array by array, so memory holds one array per running sum. An array that only some sites
    sent is averaged over those, with their weights rescaled to sum to one; so is what partial sharing leaves out.

    Attributes:
        needs: nothing beside the reports' counts; one whose weights follow from the updates themselves
            needs ``COMPARED_UPDATES``.
        discounts: factors by which the server scales updates of the round beside the rule; empty for none.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.discounts: dict[str, float] = {}

    @abstractmethod
    def site_weights(self, reports: Mapping[str, SiteReport]) -> dict[str, float]:
        """The weight of each site.

        Args:
            reports: what the sites of this round reported, in the order of their names.

        Returns:
            Non-negative, finite weights that sum to one, for exactly these sites.
        """

    def site_scales(self, reports: Mapping[str, SiteReport], weights: Mapping[str, float]) -> dict[str, float]:
        """Positive factors by which single updates are multiplied besides; empty for none."""
        return {}

    def round_weights(self, reports: Mapping[str, SiteReport]) -> dict[str, float]:
        """The checked weights of a round, kept in ``last_weights``; a site counts as often as it was drawn.

        Raises:
            AggregationError: they are unusable.
        """
        weights = self.site_weights(reports)
        check_site_weights(weights, reports)
        counts = {site: self.draw.counts.get(site, 1) for site in reports}
        if set(counts.values()) != {1}:
            weights = normalised({site: weight * counts[site] for site, weight in weights.items()})
        self.last_weights = {site: weights[site] for site in reports}
        return self.last_weights

    def combine(self, reports: Mapping[str, SiteReport]) -> Arrays:
        self.round_weights(reports)
        scales = self.site_scales(reports, self.last_weights)
        self.last_scales = {**scales, **{site: scales.get(site, 1.0) * own for site, own in self.discounts.items()}}
        return self._weighted_mean(self.last_weights, self.last_scales)

    def _weighted_mean(self, weights: Mapping[str, float], scales: Mapping[str, float]) -> Arrays:
        with self._spool.columns() as reader:
            factors = {}
            for name in self._spool.names():
                sites = reader.sites_with(name)
                total = math.fsum(weights[site] for site in sites)
                if total > 0:
                    factors[name] = {site: weights[site] / total * scales.get(site, 1.0) for site in sites}
            return weighted_sums(reader, factors)


def normalised(amounts: Mapping[str, float]) -> dict[str, float]:
    """Amounts divided by their sum.

    Raises:
        AggregationError: an amount is negative or not finite, or all are zero.
    """
    total = math.fsum(amounts.values())
    if not all(math.isfinite(a) and a >= 0 for a in amounts.values()) or not 0 < total < math.inf:
        raise AggregationError(f"No weights follow from the amounts {dict(amounts)}.")
    return {site: amount / total for site, amount in amounts.items()}


def sample_shares(reports: Mapping[str, SiteReport]) -> dict[str, float]:
    """Each site's share of all training cases: s_j / S."""
    return normalised({site: report.num_samples for site, report in reports.items()})


def check_site_weights(weights: Mapping[str, float], reports: Mapping[str, SiteReport]) -> None:
    """Refuse weights that are not finite, negative, for other sites, or that do not sum to one."""
    if set(weights) != set(reports):
        raise AggregationError(f"The rule gave weights for {sorted(weights)}, but {sorted(reports)} answered.")
    for site, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise AggregationError(f"The weight of {site} is {weight}, but must be finite and not negative.")
    total = math.fsum(weights.values())
    if abs(total - 1) > 1e-9:
        raise AggregationError(f"The weights sum to {total}, but must sum to 1: {dict(weights)}.")
