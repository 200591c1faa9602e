"""For whom a model is worse: the worst site, how far sites lie apart, and the two means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedseg.tasks.objective import MEAN, Objective, Score, mean


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


def fairness_of_sites(kind: Objective, scored: Mapping[str, Mapping[str, Any]]) -> Fairness:
    """How fair a model is by the mean over outputs of the primary score; ``pooled`` is that of ``Objective.pool``.

    Not every case has a score of every output, so the pooled mean is made of the pooled means of the outputs.

    Args:
        kind: of task.
        scored: of each site with cases what ``Objective.summarise`` gives.
    """
    name = kind.primary.name
    found = fairness(
        kind.primary,
        {site: part[name].get(MEAN) for site, part in scored.items()},
        {site: part["cases"] for site, part in scored.items()},
    )
    return replace(found, pooled=kind.pool(scored.values())[name][MEAN] if scored else None)
