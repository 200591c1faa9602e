"""The base of all rules that give each site a weight: the next update is the weighted mean of the sites' updates."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator

from fedseg.aggregators.spool import UpdateSpool
from fedseg.errors import FedsegError
from fedseg.training.site_report import SiteReport, parse_report

logger = logging.getLogger(__name__)


class AggregationError(FedsegError):
    """A rule gave weights that cannot be used, or there is nothing to aggregate."""


class WeightedAggregator(ModelAggregator):
    """Weighted mean of updates (WEIGHT_DIFF), summed in the order of the sites' names.

    A rule overrides ``site_weights`` only. What lives longer than one round belongs in attributes that
    ``reset_stats`` leaves alone: FLARE's FedAvg calls it at the start of every round.

    Updates wait on disk and are read array by array, so memory holds one array per running sum. An array that only
    some sites sent is averaged over those, with their weights rescaled to sum to one; so is what partial sharing
    leaves out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._spool = UpdateSpool()
        self._reports: dict[str, SiteReport] = {}
        self.last_weights: dict[str, float] = {}

    @abstractmethod
    def site_weights(self, reports: Mapping[str, SiteReport]) -> dict[str, float]:
        """The weight of each site.

        Args:
            reports: what the sites of this round reported, in the order of their names.

        Returns:
            Non-negative, finite weights that sum to one, for exactly these sites.
        """

    def describe(self) -> dict[str, object]:
        """Name and arguments of the rule, for the run's summary."""
        return {"name": type(self).__name__}

    def costs(self, reports: Mapping[str, SiteReport]) -> dict[str, float]:
        """The cost of each site as the rule uses it; the training loss for rules that use none."""
        return {site: report.train_loss for site, report in reports.items()}

    def accept_model(self, model: FLModel) -> None:
        """Take one site's update.

        Raises:
            AggregationError: it is no difference, or holds no arrays.
            RefusalError: its report is missing or wrong.
        """
        site = model.meta.get("client_name")
        if not isinstance(site, str) or not site:
            raise AggregationError("An update came without the name of its site.")
        if model.params_type != ParamsType.DIFF or not model.params:
            raise AggregationError(f"The update of {site} is not a weight difference (WEIGHT_DIFF) with arrays.")
        report = parse_report(model.meta)
        self._spool.put(site, {name: np.asarray(value) for name, value in model.params.items()})
        self._reports[site] = report

    def aggregate_model(self) -> FLModel:
        """The weighted mean of all accepted updates, as a difference.

        Raises:
            AggregationError: there are no updates, or the rule's weights are unusable.
        """
        reports = {site: self._reports[site] for site in self._spool.sites}
        if not reports:
            raise AggregationError("No site sent an update; there is nothing to aggregate.")
        weights = self.site_weights(reports)
        check_site_weights(weights, reports)
        self.last_weights = {site: weights[site] for site in reports}
        logger.info("Weights of the round: %s", {site: round(w, 6) for site, w in self.last_weights.items()})
        return FLModel(params_type=ParamsType.DIFF, params=self._weighted_mean(self.last_weights))

    def reset_stats(self) -> None:
        """Forget the updates of the round."""
        self._spool.clear()
        self._reports.clear()

    def _weighted_mean(self, weights: Mapping[str, float]) -> dict[str, np.ndarray]:
        result = {}
        with self._spool.columns() as reader:
            for name in self._spool.names():
                sites = reader.sites_with(name)
                total = math.fsum(weights[site] for site in sites)
                if total > 0:
                    result[name] = _mean([(weights[s] / total, reader.read(s, name)) for s in sites])
        return result


def _mean(terms: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """Sum of weight times array, accumulated in float64; float32, or the widest type that any site sent."""
    total = np.zeros(terms[0][1].shape, np.float64)
    for weight, array in terms:
        total += np.multiply(array, weight, dtype=np.float64)
    return total.astype(np.result_type(np.float32, *(array.dtype for _, array in terms)))


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
