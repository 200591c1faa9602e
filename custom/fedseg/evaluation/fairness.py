"""For whom a model is worse: the worst site, how far sites lie apart, and the two means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedseg.tasks.objective import Score, mean


@dataclass(frozen=True)
class Fairness:
    """One score at several sites.

    Attributes:
        worst: the site with the worst mean; None where no site has one.
        worst_value: its mean.
        spread: population standard deviation of the sites' means; None where no site has one, 0 with one site.
        macro: mean over sites, every site the same.
        pooled: mean over cases, every case the same.
        sites: how many sites have a mean.
        cases: how many cases are in these means.
    """

    worst: str | None
    worst_value: float | None
    spread: float | None
    macro: float | None
    pooled: float | None
    sites: int
    cases: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)


def fairness(score: Score, means: Mapping[str, float | None], cases: Mapping[str, int]) -> Fairness:
    """How fair a model is to sites, from their means (Li et al., Fair Resource Allocation in Federated Learning, 2020,
    compare methods by worst and spread).

    Args:
        score: which one it is; it says which way is worse.
        means: of the sites; None where a site has no case with a score.
        cases: of each site with a mean, how many cases it is over.
    """
    known = {site: value for site, value in means.items() if value is not None}
    macro, total = mean(list(known.values())), sum(cases[site] for site in known)
    if macro is None:
        return Fairness(None, None, None, None, None, 0, 0)
    worst = min(known, key=lambda site: (score.goodness(known[site]), site))
    spread = math.sqrt(math.fsum((value - macro) ** 2 for value in known.values()) / len(known))
    pooled = math.fsum(value * cases[site] for site, value in known.items()) / total if total else None
    return Fairness(worst, known[worst], spread, macro, pooled, len(known), total)
