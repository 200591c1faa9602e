"""Weights that fall with the time since a site last took part: the temporal weighting of Fed-CBT."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedseg import allowed
from fedseg.aggregators.weighted import WeightedAggregator, normalised
from fedseg.contract.combinations import ONE_START
from fedseg.contract.report import SiteReport

_BASES = ("uniform", "samples")


class Staleness(WeightedAggregator):
    """w_j in proportion to base^-(t - last_j): sites that come back after an absence count less.

    Fed-CBT (Bayram and Rekik, 2021) keeps the last model of every hospital while a random part of them trains, and
    lets it fade with its age. Here only sites that answer send an update, so the formula is read thus: t is the
    present round and last_j the last EARLIER round in which site j took part. A site that also took part in the round
    before is fresh and gets the full weight, one that missed n rounds base^-n of it. All sites start from one model,
    which counts as having taken part in a round before the first: in round 0 all are fresh, and a site that comes for
    the first time in round t has missed t rounds.

    Rounds are counted by the aggregations of this rule. ``last_notes`` holds ``missed``, the rounds that each site
    missed.
    """

    needs = frozenset({ONE_START})

    def __init__(self, base: float = math.e / 2, weight_by: str = "uniform") -> None:
        """Set how fast a site fades.

        Args:
            base: factor by which the weight falls with each missed round; 1 (never) or more.
            weight_by: what a fresh site's weight is proportional to: ``uniform`` (1) or ``samples`` (training cases).
        """
        super().__init__()
        allowed.number("base", base, least=1)
        allowed.one_of("weight_by", weight_by, _BASES)
        self.base, self.weight_by = base, weight_by
        self.rounds = 0
        self.last_round: dict[str, int] = {}

    def history(self) -> dict[str, Any]:
        return {"rounds": self.rounds, "last_round": dict(self.last_round)}

    def restore(self, history: Mapping[str, Any]) -> None:
        self.rounds, self.last_round = history["rounds"], dict(history["last_round"])

    def site_weights(self, reports: Mapping[str, SiteReport]) -> dict[str, float]:
        missed = {site: self.rounds - 1 - self.last_round.get(site, -1) for site in reports}
        self.last_notes = {"missed": missed}
        self.last_round.update(dict.fromkeys(reports, self.rounds))
        self.rounds += 1
        # Relative to the freshest, so that after a long absence of all the powers do not vanish together.
        least = min(missed.values())
        cases = {site: report.num_samples if self.weight_by == "samples" else 1 for site, report in reports.items()}
        return normalised({site: cases[site] * math.pow(self.base, least - missed[site]) for site in reports})
