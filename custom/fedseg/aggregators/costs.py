"""What cost-weighted rules share: which number is a site's cost, and what they remember of former rounds."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedseg import allowed
from fedseg.aggregators.weighted import WeightedAggregator, sample_shares
from fedseg.contract.combinations import SCORES, TRAIN_LOSS, VAL_LOSS
from fedseg.contract.plan import Plan
from fedseg.contract.report import SiteReport
from fedseg.errors import ConfigurationError

_NEEDS = {"train_loss": TRAIN_LOSS, "val_loss": VAL_LOSS, "val_dice": SCORES}
COSTS = tuple(_NEEDS)

Costs = Mapping[str, float | None]


def site_cost(kind: str, report: SiteReport) -> float | None:
    """A site's cost in a round, always of the site's own model after its local training; smaller is better.

    Args:
        kind: ``train_loss`` (mean over the round's steps), ``val_loss`` (over the site's validation cases) or
            ``val_dice`` (1 - mean Dice over them).
        report: what the site reported.

    Returns:
        The cost; None for ``val_loss`` and ``val_dice`` of a site without validation cases.
    """
    if kind == "train_loss":
        return report.train_loss
    if kind == "val_loss":
        return report.val_loss_after
    return None if report.val_score_after is None else 1 - report.val_score_after


def require_validation_after(plan: Plan, user: str) -> None:
    """Refuse a plan in which sites do not score their own models.

    Args:
        plan: the plan of a job.
        user: rule and cost that need the scores, for the message.

    Raises:
        ConfigurationError: ``training.validate_after`` is off.
    """
    if not plan.training.validate_after:
        remedy = "Without it sites do not score their own models: set training.validate_after to true."
        raise ConfigurationError("training.validate_after", False, f"true with {user}", remedy)


def mixture(parts: Iterable[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Sum of coefficient times share, site by site.

    Args:
        parts: coefficients that sum to one, each with shares that sum to one over the same sites.
    """
    terms = list(parts)
    return {site: math.fsum(coefficient * shares[site] for coefficient, shares in terms) for site in terms[0][1]}


@dataclass(frozen=True)
class CostHistory:
    """The costs that sites reported so far. A site that is away, or reports none, keeps what was known of it.

    Attributes:
        window: costs kept of each site.
        first: the first cost of each site.
        recent: its last ``window`` costs, oldest first.
    """

    window: int = 1
    first: Mapping[str, float] = field(default_factory=dict)
    recent: Mapping[str, list[float]] = field(default_factory=dict)

    def last(self, site: str) -> float | None:
        """The last cost known of a site."""
        return self.recent[site][-1] if site in self.recent else None

    def extended(self, costs: Costs) -> CostHistory:
        """The history with one more round."""
        known = {site: float(cost) for site, cost in costs.items() if cost is not None}
        added = {site: [*self.recent.get(site, []), cost][-self.window :] for site, cost in known.items()}
        return CostHistory(self.window, {**known, **self.first}, {**self.recent, **added})


class ByCost(WeightedAggregator):
    """A rule that looks at one cost of every site."""

    def __init__(self, cost: str) -> None:
        """Choose the cost.

        Args:
            cost: see ``site_cost``; all but ``train_loss`` need the setting ``training.validate_after``.
        """
        super().__init__()
        self.cost = allowed.one_of("cost", cost, COSTS)
        self.needs = frozenset({_NEEDS[cost]})

    def costs(self, reports: Mapping[str, SiteReport]) -> dict[str, float | None]:
        if self.cost == "train_loss":
            return {**self.train_losses(reports)}
        return {site: site_cost(self.cost, report) for site, report in reports.items()}

    def check_plan(self, plan: Plan) -> None:
        if self.cost != "train_loss":
            require_validation_after(plan, f"{type(self).__name__} by {self.cost}")


class CostWeighted(ByCost):
    """A rule that compares the sites' costs with those of former rounds.

    While none of the sites that answered has an earlier cost, as in round 0, there is nothing to compare and the rule
    is FedAvg by samples, to the last bit; ``last_notes`` then holds ``fallback``.
    """

    def __init__(self, cost: str, window: int = 1) -> None:
        """Choose the cost.

        Args:
            cost: see ``ByCost``.
            window: costs of each site to remember.
        """
        super().__init__(cost)
        self.remembered = CostHistory(window)

    @abstractmethod
    def weigh(
        self, shares: Mapping[str, float], costs: Costs, previous: Costs, remembered: CostHistory
    ) -> dict[str, float]:
        """The weights of a round in which some site has an earlier cost.

        Args:
            shares: the sites' shares of all training cases.
            costs: this round's costs.
            previous: the last cost of each site before this round, in whatever round that was.
            remembered: the history, this round included.
        """

    def history(self) -> dict[str, Any]:
        return {
            "first": dict(self.remembered.first),
            "recent": {site: list(costs) for site, costs in self.remembered.recent.items()},
        }

    def restore(self, history: Mapping[str, Any]) -> None:
        recent = {site: list(costs) for site, costs in history["recent"].items()}
        self.remembered = CostHistory(self.remembered.window, dict(history["first"]), recent)

    def site_weights(self, reports: Mapping[str, SiteReport]) -> dict[str, float]:
        costs, shares = self.costs(reports), sample_shares(reports)
        previous = {site: self.remembered.last(site) for site in reports}
        remembered = self.remembered.extended(costs)
        if any(cost is not None for cost in previous.values()):
            weights = self.weigh(shares, costs, previous, remembered)
        else:
            self.last_notes = {"fallback": "FedAvg: no site has an earlier cost"}
            weights = shares
        self.remembered = remembered
        return weights
