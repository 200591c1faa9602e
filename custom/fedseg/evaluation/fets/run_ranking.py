"""Several runs ranked as the FeTS challenge ranks: case by case, and by how soon they converged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedseg.errors import DataError
from fedseg.evaluation.case_tables import (
    final_cases,
    last_validation_dice,
    patient_scores,
    read_case_scores,
    validation_counts,
)
from fedseg.evaluation.fets.clocks import OWN_PROFILES, read_profiles, simulated_seconds
from fedseg.evaluation.fets.convergence import WEEK, convergence_score, measured_seconds, validation_dice
from fedseg.evaluation.fets.ranking import CONVERGENCE_WEIGHT, check_comparable, rank_cases
from fedseg.evaluation.paired_tests import compare_with
from fedseg.evaluation.report.decisions import last_rule
from fedseg.evaluation.summary import Summary, number, part


def rank_runs(
    folders: Mapping[str, Path],
    runs: Mapping[str, Summary],
    clock: str = "simulated",
    profiles: Path | None = None,
    horizon: float | None = None,
    with_last: bool = False,
) -> dict[str, Any]:
    """Rank simulated runs of one task on the same cases.

    The measured clock also counts what else the machine did meanwhile; by the simulated one a run repeated is equal.

    Args:
        folders: name -> folder of a run.
        runs: name -> summary of a run.
        clock: ``measured`` or ``simulated``.
        profiles: file of speeds for the simulated clock; None for fedseg's own.
        horizon: seconds over which convergence counts; None for the longest run if measured, else a week.
        with_last: let the model after the last round count for convergence, too.

    Returns:
        Plain JSON form, the runs best first.

    Raises:
        DataError: the runs cannot be compared, or no run took any time.
    """
    scores = {name: read_case_scores(folder, runs[name]) for name, folder in folders.items()}
    check_comparable(runs, scores)
    dice = {name: validation_dice(summary) for name, summary in runs.items()}
    facts, seconds = _seconds(folders, runs, clock, profiles)
    horizon = horizon or _default_horizon(clock, seconds)
    if with_last:
        for name in runs:
            # It is there as soon as the last round is over, and no round passes after it.
            dice[name].append(last_validation_dice(scores[name]))
            seconds[name].append(0.0)
    convergence = {name: convergence_score(dice[name], seconds[name], horizon) for name in runs}
    ranked = _ranked(runs, {name: final_cases(frame) for name, frame in scores.items()}, convergence)
    return {
        "schema": "fedseg-rank-1",
        **facts,
        "horizon_seconds": horizon,
        "with_last": with_last,
        "convergence_weight": CONVERGENCE_WEIGHT,
        "split": part(next(iter(runs.values())), "final").get("split"),
        **ranked,
        "comparisons": compare_with_best(folders, runs, [entry["run"] for entry in ranked["runs"]]),
    }


def compare_with_best(
    folders: Mapping[str, Path], runs: Mapping[str, Summary], ordered: Sequence[str]
) -> list[dict[str, Any]]:
    """Each other run less the first one, on the same patients: paired tests of the primary score.

    Args:
        folders, runs: see ``rank_runs``.
        ordered: names of the runs, the best first.

    Returns:
        Rows with ``run``, ``reference`` and what ``paired_tests.compare_with`` tells.
    """
    tables = {name: patient_scores(folders[name], runs[name]) for name in ordered}
    best = ordered[0]
    return [{"run": name, "reference": best, **told} for name, told in compare_with(tables, best).items()]


def _seconds(
    folders: Mapping[str, Path], runs: Mapping[str, Summary], clock: str, profiles: Path | None
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What to say of the clock, and the seconds of each round of each run by it."""
    if clock == "measured":
        return {"clock": clock}, {name: measured_seconds(summary) for name, summary in runs.items()}
    speeds = OWN_PROFILES if profiles is None else read_profiles(profiles)
    return {"clock": clock, "profiles": speeds.name}, {
        name: simulated_seconds(summary, speeds, validation_counts(folders[name], summary))
        for name, summary in runs.items()
    }


def _ranked(
    runs: Mapping[str, Summary], finals: Mapping[str, pd.DataFrame], convergence: Mapping[str, float]
) -> dict[str, Any]:
    """How many cases were ranked, and the runs with their numbers, best first."""
    ranks = rank_cases(finals, convergence)
    of_cases = rank_cases(finals, convergence, weight=0)
    entries = [
        {
            "run": name,
            "job": runs[name].get("job"),
            "method": runs[name].get("method"),
            "rule": last_rule(runs[name]),
            "pooled_dice": number(part(runs[name], "final").get("pooled_dice")),
            "convergence_score": convergence[name],
            "mean_case_rank": float(of_cases[name].mean()),
            "mean_rank": float(ranks[name].mean()),
        }
        for name in sorted(runs, key=lambda name: float(ranks[name].mean()))
    ]
    return {"cases": len(ranks), "runs": entries}


def _default_horizon(clock: str, seconds: Mapping[str, Sequence[float]]) -> float:
    if clock == "simulated":
        return WEEK
    longest = max(sum(values) for values in seconds.values())
    if longest <= 0:
        raise DataError("no run took any time; use the simulated clock.")
    return longest
