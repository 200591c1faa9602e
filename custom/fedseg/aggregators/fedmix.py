"""The weighting of FedMix (Wicaksana et al., IEEE TMI 2023); its local training is another matter."""

from __future__ import annotations

from collections.abc import Mapping

from fedseg import allowed
from fedseg.aggregators.costs import mixture
from fedseg.aggregators.weighted import WeightedAggregator, normalised, sample_shares
from fedseg.contract.combinations import TRAIN_LOSS
from fedseg.contract.report import SiteReport


class FedMix(WeightedAggregator):
    """w_j in proportion to s_j / S + lam loss_j^beta / sum(loss^beta): a HIGHER training loss gives MORE weight.

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
        shares = sample_shares(reports)
        losses = self.train_losses(reports)
        largest = max(losses.values())
        if largest <= 0:
            self.last_notes = {"fallback": "FedAvg: no training loss is above 0"}
            return shares
        # Divided by the largest first, so that no power overflows.
        powers = {site: (max(0.0, loss) / largest) ** self.beta for site, loss in losses.items()}
        by_loss = normalised(powers)
        self.last_notes = {"loss_shares": by_loss}
        return mixture([(1 / (1 + self.lam), shares), (self.lam / (1 + self.lam), by_loss)])
