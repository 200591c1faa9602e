"""Cost-weighted averaging, FedCostWAvg (Mächler et al., winner of FeTS 2021; arXiv 2111.08649)."""

from __future__ import annotations

from collections.abc import Mapping

from fedseg import allowed
from fedseg.aggregators.costs import CostHistory, Costs, CostWeighted, mixture
from fedseg.aggregators.weighted import normalised


class FedCostWAvg(CostWeighted):
    """Sites whose cost fell count more: w_j = alpha s_j / S + (1 - alpha) k_j / K (equations 2 and 3).

    1. k_j = previous cost of site j / its present cost, and K = sum_j k_j. The previous cost is the last one known of
       the site, so a site that missed rounds is measured against its last round.
    2. k_j = 1 (neutral) where one of the two is missing, zero or negative.
    3. k_j is kept within [1 / ratio_limit, ratio_limit]: the ratio of a Dice loss near zero would else take all weight.
    4. Without any earlier cost (round 0): FedAvg.

    Guards 2 and 3 are not in the paper. Ratios are close to 1 in practice, and the weights then close to
    alpha FedAvg + (1 - alpha) uniform: compare with ``FedAvg(uniform_share=1 - alpha)`` before crediting the costs.

    ``last_notes`` holds ``ratios`` (k_j) and ``neutral`` (sites to which guard 2 applied).
    """

    def __init__(self, alpha: float = 0.5, cost: str = "train_loss", ratio_limit: float = 10.0) -> None:
        """Set the mixture.

        Args:
            alpha: part of the weight that goes by training cases, from 0 to 1.
            cost: ``train_loss``, ``val_loss`` or ``val_dice``, see ``costs.site_cost``.
            ratio_limit: largest k_j, and inverse of the smallest; at least 1.
        """
        super().__init__(cost)
        allowed.number("ratio_limit", ratio_limit, least=1)
        self.alpha, self.ratio_limit = allowed.number("alpha", alpha, least=0, most=1), ratio_limit

    def weigh(
        self, shares: Mapping[str, float], costs: Costs, previous: Costs, remembered: CostHistory
    ) -> dict[str, float]:
        ratios = {site: self._ratio(previous[site], costs[site]) for site in shares}
        kept = {site: 1.0 if ratio is None else ratio for site, ratio in ratios.items()}
        self.last_notes = {"ratios": kept, "neutral": [site for site, ratio in ratios.items() if ratio is None]}
        return mixture([(self.alpha, shares), (1 - self.alpha, normalised(kept))])

    def _ratio(self, before: float | None, now: float | None) -> float | None:
        if before is None or now is None or before <= 0 or now <= 0:
            return None
        return min(max(before / now, 1 / self.ratio_limit), self.ratio_limit)
