"""Intervals of a site's mean scores, made where its cases are: only numbers leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedseg.contract.scores import INTERVALS
from fedseg.evaluation.intervals import Interval, bootstrap_mean, bootstrap_mean_of_means
from fedseg.tasks.objective import MEAN, Objective, ScoredCase

Bounds = list[float] | None


def score_intervals(
    kind: Objective, scores: Sequence[Any], patients: Sequence[str], fewest: int = 2
) -> dict[str, dict[str, Bounds]]:
    """The 95% bootstrap interval of each mean that ``Objective.summarise`` gives, over patients.

    Args:
        kind: of task.
        scores: of the cases, as ``Objective.score`` gave them.
        patients: of the same cases.
        fewest: patients with a value below which there is no interval.

    Returns:
        Score -> output (and ``mean``, of the primary score: of the mean over the outputs' means) -> ``[low, high]``, or
        None where there are too few patients. Scores that not every case has are absent.
    """
    found: dict[str, dict[str, Bounds]] = {}
    for score in kind.scores:
        values = [getattr(each, score.name) for each in scores]
        if not values or not all(values):
            continue
        columns = {output: [value[output] for value in values] for output in kind.outputs}
        intervals = {output: bootstrap_mean(column, patients=patients) for output, column in columns.items()}
        if score == kind.primary:
            intervals[MEAN] = bootstrap_mean_of_means(list(columns.values()), patients)
        found[score.name] = {output: _bounds(each, fewest) for output, each in intervals.items()}
    return found


def summarise_cases(kind: Objective, scored: Sequence[ScoredCase], fewest: int) -> dict[str, Any]:
    """What ``Objective.summarise`` says of a site's cases, with ``intervals``; see ``score_intervals``."""
    scores, patients = [case.score for case in scored], [case.patient for case in scored]
    return {**kind.summarise(scores), INTERVALS: score_intervals(kind, scores, patients, fewest)}


def told_bounds(summary: Mapping[str, Any], score: str, output: str) -> tuple[float, float] | None:
    """The interval of a mean in a site's summary; None where there is none."""
    bounds = summary.get(INTERVALS, {}).get(score, {}).get(output)
    return (float(bounds[0]), float(bounds[1])) if bounds else None


def _bounds(found: Interval, fewest: int) -> Bounds:
    if found.low is None or found.high is None or found.patients < fewest:
        return None
    return [found.low, found.high]
