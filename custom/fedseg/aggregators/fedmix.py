"""The weighting of FedMix (Wicaksana et al., IEEE TMI 2023); its local training is ``MixedSupervision``."""

from __future__ import annotations

from collections.abc import Mapping

from fedseg import allowed
from fedseg.aggregators.costs import mixture
from fedseg.aggregators.weighted import WeightedAggregator, normalised, sample_shares
from fedseg.contract.combinations import TRAIN_LOSS
from fedseg.contract.report import TAUGHT_CASES, SiteReport


class FedMix(WeightedAggregator):
    """w_j in proportion to s_j / S + lam loss_j^beta / sum(loss^beta): a HIGHER training loss gives MORE weight.

    s_j are the cases from which the round learned, where sites tell them (``taught_cases``), else all training cases. A
    site that learned from none, and so has no loss, weighs 0; where no site learned, the rule is FedAvg.

    With the published lam of 10, ten elevenths of all weight go by loss. A negative loss counts as 0; where all are 0
    the rule is FedAvg, and ``last_notes`` holds ``fallback``. It holds ``loss_shares`` otherwise.
    """

    needs = frozenset({TRAIN_LOSS})

    def __init__(self, lam: float = 10.0, beta: float = 1.5) -> None:
        """Set how much losses count.

        Args:
            lam: weight of the losses beside the training cases, 0 or more.
            beta: exponent of the losses, above 0.
        """
        super().__init__()
        allowed.number("lam", lam, least=0)
        allowed.number("beta", beta, above=0)
        self.lam, self.beta = lam, beta

    def site_weights(self, reports: Mapping[str, SiteReport]) -> dict[str, float]:
        taught = {site: _taught(report) for site, report in reports.items()}
        if not any(taught.values()):
            self.last_notes = {"fallback": "FedAvg: no site learned from a case"}
            return sample_shares(reports)
        shares = normalised(taught)
        # A site that learned from nothing has no loss; from any other one the rule needs it.
        silent = {site for site, report in reports.items() if report.train_loss is None and not taught[site]}
        known = self.train_losses({site: report for site, report in reports.items() if site not in silent})
        losses = {site: known.get(site, 0.0) for site in reports}
        largest = max(losses.values())
        if largest <= 0:
            self.last_notes = {"fallback": "FedAvg: no training loss is above 0"}
            return shares
        # Divided by the largest first, so that no power overflows.
        powers = {site: (max(0.0, loss) / largest) ** self.beta for site, loss in losses.items()}
        by_loss = normalised(powers)
        self.last_notes = {"loss_shares": by_loss}
        return mixture([(1 / (1 + self.lam), shares), (self.lam / (1 + self.lam), by_loss)])


def _taught(report: SiteReport) -> float:
    """Training cases from which a round learned, at most those that there are."""
    return min(float(report.num_samples), report.extras.get(TAUGHT_CASES, float(report.num_samples)))
