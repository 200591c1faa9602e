"""FedPOD (Kim et al., FeTS 2024; arXiv 2512.20610): cost weighting that needs no former round."""

from __future__ import annotations

from collections.abc import Mapping

from fedseg import allowed
from fedseg.aggregators.costs import mixture, require_validation_after
from fedseg.aggregators.weighted import WeightedAggregator, normalised, sample_shares
from fedseg.contract.combinations import VAL_LOSS
from fedseg.contract.plan import Plan
from fedseg.contract.report import SiteReport


class FedPOD(WeightedAggregator):
    """Sites whose training helped on their own validation cases count more.

    1. k_j = max(0, c_before - c_after): validation loss of the received global model minus that of the site's own
       model after training, both of the same round.
    2. w_j = alpha s_j / S + (1 - alpha) k_j / K, with K = sum_j k_j; FedAvg where K is 0.

    Nothing is remembered, so sites may come and go. A site without validation cases has k_j = 0, hence its part by
    training cases only. The paper's coefficients could not be verified; 0.5 is ours.

    The reported cost is c_after; c_before stands beside it as ``val_loss``. ``last_notes`` holds ``drops`` (k_j),
    ``neutral`` (sites without validation cases), and ``fallback`` where K is 0.
    """

    needs = frozenset({VAL_LOSS})

    def __init__(self, alpha: float = 0.5) -> None:
        """Set the mixture.

        Args:
            alpha: part of the weight that goes by training cases, from 0 to 1.
        """
        super().__init__()
        self.alpha = allowed.number("alpha", alpha, least=0, most=1)

    def costs(self, reports: Mapping[str, SiteReport]) -> dict[str, float | None]:
        return {site: report.val_loss_after for site, report in reports.items()}

    def check_plan(self, plan: Plan) -> None:
        require_validation_after(plan, "FedPOD")

    def site_weights(self, reports: Mapping[str, SiteReport]) -> dict[str, float]:
        shares = sample_shares(reports)
        drops, neutral = {}, []
        for site, report in reports.items():
            if report.val_loss is None or report.val_loss_after is None:
                neutral.append(site)
                drops[site] = 0.0
            else:
                drops[site] = max(0.0, report.val_loss - report.val_loss_after)
        self.last_notes = {"drops": drops, "neutral": neutral}
        if not any(drops.values()):
            self.last_notes["fallback"] = "FedAvg: no site's validation loss fell"
            return shares
        return mixture([(self.alpha, shares), (1 - self.alpha, normalised(drops))])
