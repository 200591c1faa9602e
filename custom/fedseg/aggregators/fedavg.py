"""Federated averaging (McMahan et al., AISTATS 2017)."""

from __future__ import annotations

from collections.abc import Mapping

from fedseg import allowed
from fedseg.aggregators.base import AggregationError
from fedseg.aggregators.weighted import WeightedAggregator, normalised
from fedseg.contract.combinations import COUNTED_DRAWS, KNOWN_DRAWS, SCALING
from fedseg.contract.plan import Plan
from fedseg.contract.report import SiteReport
from fedseg.contract.shapes import array_owners
from fedseg.errors import ConfigurationError

_BASES = ("samples", "steps", "uniform")


class FedAvg(WeightedAggregator):
    """Weights in proportion to the sites' training cases: s_j / sum(s).

    By ``steps`` instead it is the default of FLARE's own FedAvg, in which sites that run equal steps count equally.

    ``uniform_share`` u gives (1 - u) s_j / sum(s) + u / J over the J sites that answered. Cost-weighted rules tend
    there as costs level out (FedCostWAvg with alpha 0.5 to u = 0.5), so it is what they have to be compared with.

    Where only some sites are drawn into a round, weights that sum to one over these favour small sites on average.
    ``unbiased`` gives every site, on average over the draws, the weight that it would have among all sites: an update
    counts its weight among all, times how often its site was drawn, over how often it is drawn on average (Horvitz and
    Thompson, J Am Stat Assoc 1952). So factors do not sum to one, and the update of a site that does not answer counts
    as zeros. They stand in ``last_scales`` beside the weights.
    """

    def __init__(self, weight_by: str = "samples", uniform_share: float = 0.0, unbiased: bool = False) -> None:
        """Choose what a site's weight is proportional to.

        Args:
            weight_by: ``samples`` (training cases), ``steps`` (optimizer steps of the round) or ``uniform``.
            uniform_share: part of all weight that is dealt out equally, from 0 to 1.
            unbiased: whether a round estimates the mean over all sites without bias; not with ``steps``, which are
                known of the sites that answer only.
        """
        super().__init__()
        allowed.one_of("weight_by", weight_by, _BASES)
        allowed.number("uniform_share", uniform_share, least=0, most=1)
        self.weight_by, self.uniform_share = weight_by, uniform_share
        self.unbiased = allowed.switch("unbiased", unbiased)
        if unbiased and weight_by == "steps":
            raise ConfigurationError("weight_by", weight_by, "samples or uniform with unbiased")
        if unbiased:
            self.needs |= {SCALING, KNOWN_DRAWS}
        if unbiased or weight_by == "uniform":
            self.provides = frozenset({COUNTED_DRAWS})

    def check_plan(self, plan: Plan) -> None:
        some = sorted(name for name, owner in array_owners(plan).items() if owner.sites and not owner.private)
        if self.unbiased and some:
            why = f"Not all sites have {some[0]} in every round, so its mean has no estimate of this kind."
            raise ConfigurationError("unbiased", True, "false with parts of a network that only some sites share", why)

    def site_weights(self, reports: Mapping[str, SiteReport]) -> dict[str, float]:
        return self._shares(
            {
                site: {"samples": report.num_samples, "steps": report.num_steps, "uniform": 1}[self.weight_by]
                for site, report in reports.items()
            }
        )

    def site_scales(self, reports: Mapping[str, SiteReport], weights: Mapping[str, float]) -> dict[str, float]:
        if not self.unbiased:
            return {}
        draw = self.draw
        if not set(reports) <= set(draw.expected):
            raise AggregationError(
                "FedAvg with unbiased needs to know how often each site is drawn, which workflows of fedseg say."
            )
        uniform = self.weight_by == "uniform"
        among_all = self._shares({site: 1 if uniform else cases for site, cases in draw.samples.items()})
        return {s: among_all[s] * draw.counts[s] / draw.expected[s] / weights[s] for s in reports}

    def _shares(self, amounts: Mapping[str, float]) -> dict[str, float]:
        """Weights of sites from what theirs are proportional to."""
        own, equal = 1 - self.uniform_share, self.uniform_share / len(amounts)
        return {site: own * share + equal for site, share in normalised(amounts).items()}
