"""Federated averaging (McMahan et al., AISTATS 2017)."""

from __future__ import annotations

from collections.abc import Mapping

from fedseg.aggregators.weighted import WeightedAggregator, normalised
from fedseg.errors import ConfigurationError
from fedseg.training.site_report import SiteReport

_BASES = ("samples", "steps", "uniform")


class FedAvg(WeightedAggregator):
    """Weights in proportion to the sites' training cases: s_j / sum(s).

    By ``steps`` instead it is the default of FLARE's own FedAvg, in which sites that run equal steps count equally.
    """

    def __init__(self, weight_by: str = "samples") -> None:
        """Choose what a site's weight is proportional to.

        Args:
            weight_by: ``samples`` (training cases), ``steps`` (optimizer steps of the round) or ``uniform``.
        """
        super().__init__()
        if weight_by not in _BASES:
            raise ConfigurationError("weight_by", weight_by, f"one of {_BASES}")
        self.weight_by = weight_by

    def describe(self) -> dict[str, object]:
        return {"name": "FedAvg", "weight_by": self.weight_by}

    def site_weights(self, reports: Mapping[str, SiteReport]) -> dict[str, float]:
        amounts = {
            site: {"samples": report.num_samples, "steps": report.num_steps, "uniform": 1}[self.weight_by]
            for site, report in reports.items()
        }
        return normalised(amounts)
