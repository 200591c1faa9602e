"""What the scores of cases say together: means over cases and over sites, for whom, and how certainly."""

from __future__ import annotations

from typing import Any

import pandas as pd

from fedseg.evaluation.fairness import fairness
from fedseg.evaluation.intervals import FEWEST_SITES, SAMPLES, Interval, Over, bootstrap_mean
from fedseg.tasks.objective import Score

COLUMNS = ("site", "patient", "case", "value")
"""Of a table of scores: one row a case, with the site whose case it is."""


def interval(scores: pd.DataFrame, samples: int = SAMPLES) -> Interval:
    """The mean over cases with its 95% interval over other patients.

    Args:
        scores: with ``COLUMNS``.
        samples: of the bootstrap.
    """
    patients = list(zip(scores["site"], scores["patient"], strict=True))
    return bootstrap_mean(scores["value"].tolist(), patients=patients, samples=samples)


def wide_interval(scores: pd.DataFrame, over: Over, samples: int = SAMPLES) -> tuple[float | None, float | None]:
    """Bounds of the mean over cases or over sites (``groups``) with other sites, too; None for few sites.

    Args:
        scores: with ``COLUMNS``.
        over: see ``bootstrap_mean``.
        samples: of the bootstrap.
    """
    if scores["site"].nunique() < FEWEST_SITES:
        return None, None
    sites, patients = scores["site"].tolist(), scores["patient"].tolist()
    found = bootstrap_mean(scores["value"].tolist(), sites, patients=patients, over=over, samples=samples)
    return found.low, found.high


def describe_cases(scores: pd.DataFrame, score: Score, samples: int = SAMPLES) -> dict[str, Any]:
    """Counts and means of one score, every case the same and every site the same.

    Args:
        scores: with ``COLUMNS``, at least one row.
        score: which one it is.
        samples: of the bootstrap.

    Returns:
        ``sites``, ``cases``, ``patients`` (counts), ``macro`` (mean over sites), ``pooled`` (mean over cases) with
        ``low`` and ``high`` (95%, other patients), ``worst_site`` and ``worst``, and ``spread`` (population standard
        deviation over sites).
    """
    sites = scores.groupby("site")["value"]
    fair, own = fairness(score, sites.mean().to_dict(), sites.size().to_dict()), interval(scores, samples)
    return {
        **{"sites": fair.sites, "cases": len(scores), "patients": own.patients},
        **{"macro": fair.macro, "pooled": own.mean, "low": own.low, "high": own.high},
        **{"worst_site": fair.worst, "worst": fair.worst_value, "spread": fair.spread},
    }
