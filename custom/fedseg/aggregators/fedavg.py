"""Federated averaging (McMahan et al., AISTATS 2017)."""

from __future__ import annotations

from collections.abc import Mapping

from fedseg import allowed
from fedseg.aggregators.weighted import WeightedAggregator, normalised
from fedseg.contract.report import SiteReport

_BASES = ("samples", "steps", "uniform")


class FedAvg(WeightedAggregator):
    """Weights in proportion to the sites' training cases: s_j / sum(s).

    By ``steps`` instead it is the default of FLARE's own FedAvg, in which sites that run equal steps count equally.

    ``uniform_share`` u gives (1 - u) s_j / sum(s) + u / J over the J sites that answered. Cost-weighted rules tend
    there as costs level out (FedCostWAvg with alpha 0.5 to u = 0.5), so it is what they have to be compared with.
    """

    def __init__(self, weight_by: str = "samples", uniform_share: float = 0.0) -> None:
        """Choose what a site's weight is proportional to.

        Args:
            weight_by: ``samples`` (training cases), ``steps`` (optimizer steps of the round) or ``uniform``.
            uniform_share: part of all weight that is dealt out equally, from 0 to 1.
        """
        super().__init__()
        allowed.one_of("weight_by", weight_by, _BASES)
        allowed.number("uniform_share", uniform_share, least=0, most=1)
        self.weight_by, self.uniform_share = weight_by, uniform_share

    def site_weights(self, reports: Mapping[str, SiteReport]) -> dict[str, float]:
        amounts = {
            site: {"samples": report.num_samples, "steps": report.num_steps, "uniform": 1}[self.weight_by]
            for site, report in reports.items()
        }
        own, equal = 1 - self.uniform_share, self.uniform_share / len(reports)
        return {site: own * share + equal for site, share in normalised(amounts).items()}
