"""Which of several runs is best: ranks case by case, and the rank of convergence, as the FeTS challenge counts them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from fedseg.errors import ConfigurationError, DataError
from fedseg.evaluation.summary import Summary, part, task_of

CONVERGENCE_WEIGHT = 3.0


def check_comparable(runs: Mapping[str, Summary], scores: Mapping[str, pd.DataFrame]) -> None:
    """Refuse runs whose ranks would mean nothing.

    Raises:
        DataError: task, regions, split, convention for empty regions or cases differ between two runs.
    """
    first, *others = runs
    for other in others:
        a, b = runs[first], runs[other]
        for what, values in {
            "task": [task_of(s).name for s in (a, b)],
            "regions": [_regions(s) for s in (a, b)],
            "split": [str(part(s, "final").get("split")) for s in (a, b)],
            "convention for empty regions": [str(s.get("empty_convention")) for s in (a, b)],
        }.items():
            if values[0] != values[1]:
                raise DataError(
                    f"{first} and {other} cannot be ranked together: the {what} is {values[0]} in one and {values[1]} "
                    "in the other."
                )
        alone = scores[first].index.symmetric_difference(scores[other].index)
        if len(alone):
            site, split, label = alone[0]
            owner = first if alone[0] in scores[first].index else other
            raise DataError(
                f"{first} and {other} cannot be ranked together: {len(alone)} cases were scored in one of them only, "
                f"e.g. {label} ({split} of {site}) in {owner}. Simulate both on the same data folder."
            )


def rank_cases(
    scores: Mapping[str, pd.DataFrame], convergence: Mapping[str, float], weight: float = CONVERGENCE_WEIGHT
) -> pd.DataFrame:
    """The rank of each run on each case (FeTS challenge, Task 1).

    1. For each case and each Dice and HD95 of a region the runs are ranked, best first; equal ones share the mean of
       their ranks.
    2. The runs are ranked by convergence score in the same way, once.
    3. A case's number is the mean of all ranks of 1, and that of 2 counted ``weight`` times.

    A score that the convention for empty regions leaves out is left out for every run; a case without any score, too.

    Args:
        scores: per run, as ``final_cases`` gives them, the same cases in each.
        convergence: per run, larger is better.
        weight: how often convergence counts, 0 or more. The challenge's 3 makes it a third beside three regions.

    Returns:
        One row per case, one column per run, from 1 (best) to the number of runs; the mean of a column ranks its run.

    Raises:
        ConfigurationError: fewer than two runs, or a negative weight.
        DataError: a case has a score in one run and none in another, or no case has a score.
    """
    if len(scores) < 2:
        raise ConfigurationError("runs", list(scores), "at least two")
    if not (math.isfinite(weight) and weight >= 0):
        raise ConfigurationError("weight", weight, "a finite number of at least 0")
    first = next(iter(scores.values()))
    total = pd.DataFrame(0.0, index=first.index, columns=list(scores))
    counts = pd.Series(0.0, index=first.index)
    for column in first.columns:
        values = pd.DataFrame({run: frame[column] for run, frame in scores.items()})
        defined = values.notna()
        if (odd := defined.any(axis=1) & ~defined.all(axis=1)).any():
            raise DataError(f"{values.index[odd][0]} has {column} in one run and none in another; evaluate both again.")
        total += values.rank(axis=1, method="average", ascending=column.startswith("HD95 ")).fillna(0.0)
        counts += defined.all(axis=1)
    if not (counts > 0).any():
        raise DataError("no case has a score in any region; there is nothing to rank.")
    rank = pd.Series(convergence, dtype=float)[list(scores)].rank(method="average", ascending=False)
    ranks = (total + weight * rank).div(counts + weight, axis=0)
    return ranks[counts > 0]


def _regions(summary: Summary) -> str:
    return "; ".join(f"{region.name} = {' + '.join(region.classes)}" for region in task_of(summary).regions)
