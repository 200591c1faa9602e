"""What the results of an experiment say together: each arm's means with intervals, and paired tests between arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedseg.evaluation.case_means import describe_cases, wide_interval
from fedseg.evaluation.experiment_folder import GLOBAL, RESULT_COLUMNS
from fedseg.evaluation.intervals import LEVEL, SAMPLES
from fedseg.evaluation.paired_tests import compare_with
from fedseg.experiments import with_it
from fedseg.experiments.definition import Definition
from fedseg.experiments.folds import Fold
from fedseg.experiments.rows import Row, as_csv
from fedseg.files.documents import write_json, write_whole
from fedseg.tasks.objective import MEAN, Objective, Score

SUMMARY_JSON, SUMMARY_CSV = SUMMARY_FILES = ("summary.json", "summary.csv")
SCHEMA = "fedseg-experiment-summary-1"
SHARED, OWN = "shared", "own"
HOME, ELSEWHERE, LEFT_OUT, EXTERNAL = SCOPES = ("home", "elsewhere", "left_out", "external")
"""Where a model is tested: at a site that trained it; at a site that trained, but not it; at the site that a fold
leaves out; at a site that never trains."""
_GROUP = ["arm", "model", "scope", "metric", "region"]
COLUMNS = (
    *_GROUP, "macro", "macro_low", "macro_high", "pooled", "pooled_low", "pooled_high", "sites", "cases", "patients",
    "worst_site", "worst", "spread", "seeds", "seed_deviation", *with_it.COLUMNS,
)  # fmt: skip
_SAMPLES = 2000
"""Draws of each interval and test that are not of the primary score: there are hundreds of them."""


def write_summary(
    definition: Definition, folds: Sequence[Fold], kind: Objective, rows: Sequence[Row], out: Path
) -> dict[str, Any]:
    """Write ``summary.csv`` and ``summary.json`` from the rows of the results.

    Args:
        definition: of the experiment.
        folds: of the experiment.
        kind: of the task.
        rows: as of ``tables.result_rows``.
        out: folder of the experiment.

    Returns:
        The content of ``summary.json``: ``rows`` with the columns of ``summary.csv``, ``comparisons``, see
        ``compare_with_reference``, and ``left_out``, see ``with_it.by_site``.
    """
    frame = results_frame(definition, folds, rows)
    lines = summarise(definition, kind, frame)
    content = {
        "schema": SCHEMA,
        "experiment": definition.name,
        "primary": kind.primary.name,
        "level": LEVEL,
        "rows": lines,
        "comparisons": compare_with_reference(definition, kind, frame),
        "left_out": with_it.by_site(frame, _scores(kind), {name: _draws(kind, name) for name in _scores(kind)}),
    }
    write_whole(out / SUMMARY_CSV, as_csv(COLUMNS, lines))
    write_json(out / SUMMARY_JSON, content)
    return content


def results_frame(definition: Definition, folds: Sequence[Fold], rows: Sequence[Row]) -> pd.DataFrame:
    """The rows of the results that have a value, with the columns ``model`` and ``scope`` beside theirs.

    Where some folds leave no site out, those that do count at the site that they leave out only.
    """
    frame = pd.DataFrame.from_records(list(rows), columns=list(RESULT_COLUMNS))
    left_out = {fold.name: fold.left_out for fold in folds}
    frame["value"] = frame["value"].astype(float)
    frame["model"] = [SHARED if site == GLOBAL else OWN for site in frame["site"]]
    where = zip(frame["fold"], frame["site"], frame["evaluated_at"], strict=True)
    frame["scope"] = [_scope(definition, left_out[fold], site, place) for fold, site, place in where]
    if not all(left_out.values()):
        frame = frame[(frame["fold"].map(left_out) == "") | (frame["scope"] == LEFT_OUT)]
    return frame.dropna(subset=["value"])


def _scope(definition: Definition, left_out: str, site: str, place: str) -> str:
    if place in definition.external:
        return EXTERNAL
    if place == left_out:
        return LEFT_OUT
    return HOME if site in (GLOBAL, place) else ELSEWHERE


def summarise(definition: Definition, kind: Objective, frame: pd.DataFrame) -> list[Row]:
    """One row for each arm, kind of model, scope, metric and region; arms, metrics and regions keep their order."""
    scores, found = _scores(kind), []
    for key, group in frame.groupby(_GROUP, sort=False):
        about = dict(zip(_GROUP, key, strict=True))
        score, samples = scores[about["metric"]], _draws(kind, about["metric"])
        beside = dict[str, Any].fromkeys(with_it.COLUMNS)
        if (about["scope"], about["model"]) == (LEFT_OUT, SHARED):
            beside = with_it.beside(group, with_it.of_all_sites(frame, group), score, samples)
        found.append({**about, **_numbers(group, score, samples), **beside})
    arms = list(definition.arms)
    return sorted(found, key=lambda row: (arms.index(row["arm"]), row["model"] == OWN, SCOPES.index(row["scope"])))


def _scores(kind: Objective) -> dict[str, Score]:
    return {score.name: score for score in kind.scores}


def _draws(kind: Objective, metric: str) -> int:
    """Draws of each interval and test of a metric."""
    return SAMPLES if metric == kind.primary.name else _SAMPLES


def _numbers(group: pd.DataFrame, score: Score, samples: int) -> Row:
    """Means over seeds, models and folds first, so that every case counts once; then over cases and over sites.

    The interval over cases is that of the page; that over sites is of the mean over sites, and with few sites there is
    none.
    """
    named = group.rename(columns={"site": "trained_at", "evaluated_at": "site"})
    cases = named.groupby(["site", "patient", "case"])["value"].mean().reset_index()
    told = describe_cases(cases, score, samples)
    low, high = wide_interval(cases, "groups", samples)
    by_seed = group.groupby(["seed", "evaluated_at", "patient", "case"])["value"].mean()
    seeds = by_seed.groupby(["seed", "evaluated_at"]).mean().groupby("seed").mean()
    return {
        **{"macro": told["macro"], "macro_low": low, "macro_high": high},
        **{"pooled": told["pooled"], "pooled_low": told["low"], "pooled_high": told["high"]},
        **{name: told[name] for name in ("sites", "cases", "patients", "worst_site", "worst", "spread")},
        "seeds": len(seeds),
        "seed_deviation": float(seeds.std(ddof=1)) if len(seeds) > 1 else None,
    }


def compare_with_reference(definition: Definition, kind: Objective, frame: pd.DataFrame) -> list[Row]:
    """Every arm less the reference, on the same patients, for the mean over regions of each metric.

    Returns:
        Rows with ``arm``, ``model``, ``scope``, ``metric``, ``difference``, ``low``, ``high``, ``p`` (sign flips),
        ``p_wilcoxon``, ``p_holm`` (of ``p``, over all arms in the same scope and metric) and ``patients``. The
        reference is its shared model, or where it has none the sites' own.
    """
    found: list[Row] = []
    means = frame[(frame["region"] == MEAN) & (frame["scope"] != ELSEWHERE)]
    for (scope, metric), group in means.groupby(["scope", "metric"], sort=False):
        tables = {(str(arm), str(model)): part for (arm, model), part in group.groupby(["arm", "model"], sort=False)}
        named = [key for key in ((definition.reference, SHARED), (definition.reference, OWN)) if key in tables]
        if not named:
            continue
        samples = _draws(kind, str(metric))
        for (arm, model), told in compare_with(tables, named[0], samples).items():
            found.append({"arm": arm, "model": model, "scope": scope, "metric": metric, **told})
    return found


def table_rows(summary: Mapping[str, Any], region: str) -> list[Row]:
    """The rows of the primary score for one region, for a table on the terminal."""
    return [row for row in summary["rows"] if row["metric"] == summary["primary"] and row["region"] == region]
