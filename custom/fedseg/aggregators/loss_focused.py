"""Loss-focused averaging: our reading of FedFocus (Li et al., COVID-19 in chest X-rays, 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedseg import allowed
from fedseg.aggregators.costs import ByCost
from fedseg.aggregators.weighted import normalised, sample_shares
from fedseg.contract.report import SiteReport


class LossFocused(ByCost):
    """Sites with low losses count more, increasingly so: w_j in proportion to s_j exp(-lambda_t loss_j).

    FedFocus weighs sites by training loss with a focus that grows over the rounds. No formula of it could be found;
    this one is ours, chosen for its limits: lambda = 0 and equal losses are FedAvg. Do not report it as FedFocus.

    lambda_t = strength min(1, t / ramp_rounds)^power in round t (from 0): the first round is FedAvg, since losses say
    little before training has begun to work. Only differences of losses count. A site without a loss is treated as if
    it had the mean of the others; without any loss the rule is FedAvg.

    ``last_notes`` holds ``focus`` (lambda_t) and ``neutral`` (sites without a loss).
    """

    def __init__(
        self, strength: float = 1.0, ramp_rounds: int = 20, power: float = 1.0, cost: str = "train_loss"
    ) -> None:
        """Set the course of lambda.

        Args:
            strength: its last value, per unit of loss; 0 or more.
            ramp_rounds: rounds until it is reached; 0 for a constant lambda.
            power: form of the rise: 1 linear, above 1 late, below 1 early; above 0.
            cost: ``train_loss``, ``val_loss`` or ``val_dice``, see ``costs.site_cost``.
        """
        super().__init__(cost)
        allowed.number("strength", strength, least=0)
        allowed.whole("ramp_rounds", ramp_rounds, least=0)
        allowed.number("power", power, above=0)
        self.strength, self.ramp_rounds, self.power = strength, ramp_rounds, power
        self.rounds = 0

    def history(self) -> dict[str, Any]:
        return {"rounds": self.rounds}

    def restore(self, history: Mapping[str, Any]) -> None:
        self.rounds = history["rounds"]

    def focus(self, round_number: int) -> float:
        """lambda in a round, counted from 0."""
        risen = min(1.0, round_number / self.ramp_rounds) if self.ramp_rounds else 1.0
        return self.strength * risen**self.power

    def site_weights(self, reports: Mapping[str, SiteReport]) -> dict[str, float]:
        costs, shares, focus = self.costs(reports), sample_shares(reports), self.focus(self.rounds)
        self.rounds += 1
        known = [cost for cost in costs.values() if cost is not None]
        self.last_notes = {"focus": focus, "neutral": [site for site, cost in costs.items() if cost is None]}
        if not known:
            return shares
        middle, least = math.fsum(known) / len(known), min(known)
        losses = {site: middle if cost is None else cost for site, cost in costs.items()}
        return normalised({site: shares[site] * math.exp(-focus * (losses[site] - least)) for site in reports})
