"""FedPIDAvg (Mächler et al., FeTS 2022) and FedPID (FeTS 2024): weights like a PID controller's."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from fedseg import allowed
from fedseg.aggregators.base import AggregationError
from fedseg.aggregators.costs import CostHistory, Costs, CostWeighted, mixture
from fedseg.aggregators.weighted import normalised
from fedseg.contract.arguments import takes_arguments_of
from fedseg.errors import ConfigurationError


class PIDWeighted(CostWeighted):
    """w_j = alpha s_j / S + beta k_j / K + gamma m_j / I.

    Part P goes by training cases, part D by the drop k_j = previous cost - present cost, part I by the past m_j, which
    the rules define differently. K = sum_j k_j, I = sum_j m_j. A site without an earlier cost, or without a present
    one, has the drop 0. When all k_j are 0, beta is added to alpha; when all m_j are 0, gamma is.

    Drops may be negative, and the papers do not say what then. As they stand (``raw``) they can sum to anything: a K
    near zero gives weights without bound, a negative K gives the most weight to the site that got worst. ``abs`` keeps
    weights positive, but rewards a rise of the cost as much as a fall. ``clamp`` counts a rise as 0, so that weight
    only follows improvement and stays within [0, 1]: hence it is the default.

    ``last_notes`` holds ``drops`` (k_j as used), ``past`` (m_j), ``neutral`` (sites without a drop for want of a
    cost), and ``moved_to_alpha`` (coefficients that were added to alpha).
    """

    def __init__(
        self,
        alpha: float = 0.45,
        beta: float = 0.45,
        gamma: float = 0.1,
        cost: str = "train_loss",
        negative_drop: str = "clamp",
    ) -> None:
        """Set the mixture.

        Args:
            alpha, beta, gamma: parts of the weight that go by training cases, drop and past; they sum to 1.
            cost: ``train_loss``, ``val_loss`` or ``val_dice``, see ``costs.site_cost``.
            negative_drop: ``clamp`` (count as 0), ``abs`` (by size), or ``raw`` (as it is: ends with an
                ``AggregationError`` in the first round in which a weight is negative or not finite).
        """
        super().__init__(cost)
        for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            allowed.number(name, value, least=0, most=1)
        if not math.isclose(alpha + beta + gamma, 1, abs_tol=1e-12):
            raise ConfigurationError("alpha + beta + gamma", alpha + beta + gamma, "1")
        allowed.one_of("negative_drop", negative_drop, ("clamp", "abs", "raw"))
        self.alpha, self.beta, self.gamma, self.negative_drop = alpha, beta, gamma, negative_drop

    @abstractmethod
    def past(self, costs: Costs, remembered: CostHistory) -> dict[str, float]:
        """m_j of every site of the round."""

    def weigh(
        self, shares: Mapping[str, float], costs: Costs, previous: Costs, remembered: CostHistory
    ) -> dict[str, float]:
        drops = {site: self._drop(previous[site], costs[site]) for site in shares}
        past = self.past(costs, remembered)
        parts, moved = [], []
        for name, coefficient, amounts in (("beta", self.beta, drops), ("gamma", self.gamma, past)):
            if any(amounts.values()):
                parts.append((coefficient, self._shares_of(amounts)))
            else:
                moved.append(name)
        alpha = self.alpha + math.fsum(getattr(self, name) for name in moved)
        self.last_notes = {
            "drops": drops,
            "past": past,
            "neutral": [site for site in shares if previous[site] is None or costs[site] is None],
            "moved_to_alpha": moved,
        }
        weights = mixture([(alpha, shares), *parts])
        if any(weight < 0 for weight in weights.values()):
            raise self._unusable(drops)
        return weights

    def _drop(self, before: float | None, now: float | None) -> float:
        drop = 0.0 if before is None or now is None else before - now
        return {"clamp": max(0.0, drop), "abs": abs(drop), "raw": drop}[self.negative_drop]

    def _shares_of(self, amounts: Mapping[str, float]) -> dict[str, float]:
        if self.negative_drop != "raw":
            return normalised(amounts)
        total = math.fsum(amounts.values())
        shares = {site: amount / total if total else math.inf for site, amount in amounts.items()}
        if not all(math.isfinite(share) for share in shares.values()):
            raise self._unusable(amounts)
        return shares

    def _unusable(self, amounts: Mapping[str, float]) -> AggregationError:
        return AggregationError(
            f"{type(self).__name__} with negative_drop raw gives no usable weights for the drops {dict(amounts)}: "
            "set negative_drop to clamp or abs."
        )


class FedPIDAvg(PIDWeighted):
    """Part I by the sum of the last costs: m_j = sum of c(M_(i-l)^j) over l = 0..5.

    The sum is taken as a mean over the costs that are known, up to ``window``. Where all sites have equally many, as
    with full participation from round 0 on, the weights are those of the sum. At the start, or for a site that joined
    late or missed rounds, a sum of fewer costs would be small for no other reason than being short. The last costs of
    a site are those of the last rounds in which it took part. A mean below 0 counts as 0; a site without any cost has
    the mean of the others' m_j.

    Parts D and I pull in opposite directions by design: D rewards a falling cost, I a high one. The paper's selection
    of sites by size is ``workflows.selection.PoissonBySize``.
    """

    @takes_arguments_of(PIDWeighted)
    def __init__(self, *mixture: Any, window: int = 6, **further: Any) -> None:
        """Set the mixture.

        Args:
            mixture, further: see ``PIDWeighted``.
            window: costs of each site that part I covers.
        """
        super().__init__(*mixture, **further)
        self.window = allowed.whole("window", window)
        self.remembered = CostHistory(window)

    def past(self, costs: Costs, remembered: CostHistory) -> dict[str, float]:
        known = {
            site: max(0.0, math.fsum(remembered.recent[site]) / len(remembered.recent[site]))
            for site in costs
            if site in remembered.recent
        }
        middle = math.fsum(known.values()) / len(known)
        return {site: known.get(site, middle) for site in costs}


class FedPID(PIDWeighted):
    """Part I by the drop since the beginning: m_j = c(M_0^j) - c(M_i^j), in place of FedPIDAvg's sum of costs.

    The first cost is that of the first round in which the site took part. ``negative_drop`` holds for m_j as for k_j.
    """

    def past(self, costs: Costs, remembered: CostHistory) -> dict[str, float]:
        return {site: self._drop(remembered.first.get(site), cost) for site, cost in costs.items()}
