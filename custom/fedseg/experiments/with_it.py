"""A site that a fold leaves out, beside the same patients when the site trains, too."""

from __future__ import annotations

import pandas as pd

from fedseg.evaluation.experiment_folder import GLOBAL, LEFT_OUT
from fedseg.evaluation.fairness import fairness
from fedseg.evaluation.paired_tests import compare_arms
from fedseg.experiments.rows import Row
from fedseg.tasks.objective import MEAN, Score

COLUMNS = ("with_it", "gain", "gain_low", "gain_high")
"""Of ``summary.csv``, for shared models at sites that are left out: see ``beside``."""

_CASE = ["evaluated_at", "patient", "case"]


def beside(group: pd.DataFrame, whole: pd.DataFrame, score: Score, samples: int) -> Row:
    """A model at sites that it was trained without, beside the model of all sites on the same cases.

    Args:
        group: rows of one arm, metric and region, at sites that are left out.
        whole: rows of the same, by models that all sites trained.
        score: of the metric.
        samples: of the bootstrap.

    Returns:
        ``with_it``, the mean over the sites, as ``macro`` has it without them; ``gain``, what a patient gains where the
        site trains, with it less without it, mean over patients; its 95% interval, ``gain_low`` and ``gain_high``.
        Cases that one of the two lacks do not count; all None where nothing is left.
    """
    without, same = _in_both(group, whole), _in_both(whole, group)
    if same.empty:
        return dict.fromkeys(COLUMNS)
    sites = same.groupby(_CASE)["value"].mean().groupby("evaluated_at")
    told = compare_arms(same, without, samples=samples)
    macro = fairness(score, sites.mean().to_dict(), sites.size().to_dict()).macro
    return dict(zip(COLUMNS, (macro, told.difference, told.interval.low, told.interval.high), strict=True))


def _in_both(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    return rows[pd.MultiIndex.from_frame(rows[_CASE]).isin(pd.MultiIndex.from_frame(other[_CASE]))]


def by_site(frame: pd.DataFrame, scores: dict[str, Score], samples: dict[str, int]) -> list[Row]:
    """Each shared model at each site that is left out, for the mean over regions of each metric.

    Args:
        frame: see ``summary.results_frame``.
        scores: by metric.
        samples: of the bootstrap, by metric.

    Returns:
        Rows with ``arm``, ``site``, ``metric``, ``patients``, ``without`` and the names of ``COLUMNS``.
    """
    means = frame[(frame["region"] == MEAN) & (frame["site"] == GLOBAL)]
    apart, found = means[means["scope"] == "left_out"], []
    for (arm, site, metric), group in apart.groupby(["arm", "evaluated_at", "metric"], sort=False):
        whole = of_all_sites(means, group)
        about = {"arm": arm, "site": site, "metric": metric, "patients": group["patient"].nunique()}
        without = float(group.groupby(_CASE)["value"].mean().mean())
        found.append({**about, "without": without, **beside(group, whole, scores[metric], samples[metric])})
    return found


def of_all_sites(frame: pd.DataFrame, group: pd.DataFrame) -> pd.DataFrame:
    """Of the rows of a frame those that have arm, metric and region of a group, by models that all sites trained."""
    first = group.iloc[0]
    alike = (frame["site"] == GLOBAL) & ~frame["fold"].str.startswith(LEFT_OUT)
    for name in ("arm", "metric", "region"):
        alike &= frame[name] == first[name]
    return frame[alike & frame["evaluated_at"].isin(group["evaluated_at"])]
