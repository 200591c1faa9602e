"""Scores of single cases of a simulated run as a table, read from where its sites left them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fedseg.errors import DataError
from fedseg.evaluation.summary import Summary, number, objective_of_run, part, site_names
from fedseg.files.documents import load_data
from fedseg.tasks.objective import Objective


def read_case_scores(run: Path, summary: Summary) -> pd.DataFrame:
    """The scores that the run's last model has on every case of the final and the validation split.

    Args:
        run: folder of the run; ``state/<site>/<run_id>/evaluation-last.json`` is read for every site that scored.
        summary: the run's summary.

    Returns:
        One row per case, sorted; index ``site``, ``split`` and ``label`` (path of the reference); columns ``<score>
        <output>`` of the main scores (``Dice <region>``, ``HD95 <region>`` in mm); NaN where the convention for empty
        regions leaves a case out.

    Raises:
        DataError: there are no scores of single cases, or they lack an output or a score.
    """
    kind = objective_of_run(summary)
    records = {}
    for site in part(summary, "final", "sites"):
        for split, cases in _read_site(run, summary, site).items():
            for case in cases:
                records[site, split, str(part(case).get("label"))] = _scores(part(case), kind, site)
    if not records:
        raise DataError(f"{run} holds no scores of single cases of its last model; simulate the job again.")
    frame = pd.DataFrame.from_dict(records, orient="index", dtype=float)
    frame.index = pd.MultiIndex.from_tuples(frame.index, names=["site", "split", "label"])
    return frame.sort_index()


def final_case_facts(run: Path, summary: Summary) -> pd.DataFrame:
    """What is known of every case and output of the final split under the last model, for how scores spread.

    Returns:
        One row per case and output: ``site``, ``case``, ``patient``, ``output``, a column for each score by its
        title, and where the sites' files tell them ``reference``, ``predicted`` and ``common`` (volumes in ml) and
        ``lesions``, ``found`` and ``invented`` (counts). Empty where there are no scores of single cases.
    """
    kind, records = objective_of_run(summary), []
    for site in part(summary, "final", "sites"):
        try:
            splits = _read_site(run, summary, site)
        except DataError:
            return pd.DataFrame()
        for case in splits.get("test") or splits.get("validation") or ():
            for output in kind.outputs:
                scores = {score.title: _value(part(case, score.name).get(output)) for score in kind.scores}
                facts = part(case, "volumes", output) | part(case, "lesions", output)
                names = {"site": site, "case": str(case.get("id")), "patient": str(case.get("patient", case.get("id")))}
                records.append({**names, "output": output, **scores, **facts})
    return pd.DataFrame.from_records(records)


def patient_scores(run: Path, summary: Summary) -> pd.DataFrame:
    """The primary score of every case of the final split under the last model, for paired tests.

    Returns:
        One row a case: ``evaluated_at`` (its site), ``patient``, ``case`` and ``value``, the mean over the outputs that
        it has; NaN where it has none.
    """
    facts, title = final_case_facts(run, summary), objective_of_run(summary).primary.title
    keys = ["site", "patient", "case"]
    if facts.empty:
        return pd.DataFrame(columns=["evaluated_at", "patient", "case", "value"])
    means = facts.assign(value=facts[title].astype(float)).groupby(keys, sort=False)["value"].mean()
    return means.reset_index().rename(columns={"site": "evaluated_at"})


def output_scores(run: Path, summary: Summary) -> list[dict[str, Any]]:
    """The primary score of every case and output of the final split under the last model.

    Returns:
        Rows with ``evaluated_at`` (its site), ``patient``, ``output`` and ``value``; none without scores of single
        cases.
    """
    facts, title = final_case_facts(run, summary), objective_of_run(summary).primary.title
    if facts.empty:
        return []
    columns = {"site": "evaluated_at", "patient": "patient", "output": "output", title: "value"}
    return facts[list(columns)].rename(columns=columns).to_dict("records")


def final_cases(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of each site's final split: its test cases, or its validation cases where it has none."""
    sites, splits = (scores.index.get_level_values(level) for level in ("site", "split"))
    tested = sites.isin(sites[splits == "test"])
    return scores[(splits == "test") | ~tested]


def last_validation_dice(scores: pd.DataFrame) -> float | None:
    """The Dice of the last model on all validation cases, as a round's ``val_dice`` has it; None without any score.

    Per site the mean over the regions of their means over the cases; then the mean over sites, weighted by cases.
    """
    rows = scores[scores.index.get_level_values("split") == "validation"]
    groups = rows[[c for c in rows.columns if c.startswith("Dice ")]].groupby(level="site")
    dice, cases = groups.mean().mean(axis=1), groups.size()
    known = dice.notna()
    return float((dice * cases)[known].sum() / cases[known].sum()) if known.any() else None


def validation_counts(run: Path, summary: Summary) -> dict[str, int]:
    """Validation cases of each site that scored the last model.

    Raises:
        DataError: a site's file is not readable.
    """
    sites = [site for site in site_names(summary) if _path(run, summary, site).is_file()]
    return {site: len(_read_site(run, summary, site).get("validation", [])) for site in sites}


def _path(run: Path, summary: Summary, site: str) -> Path:
    return run / "state" / site / str(summary.get("run_id")) / "evaluation-last.json"


def _read_site(run: Path, summary: Summary, site: str) -> dict[str, list[Any]]:
    path = _path(run, summary, site)
    missing = "is missing: ranks need simulated runs that still have their state folder."
    content = load_data(path, missing, "is not readable as JSON")
    if not isinstance(content, dict) or not all(isinstance(cases, list) for cases in content.values()):
        raise DataError(f"{path} does not hold lists of cases by split.")
    return content


def _scores(case: Mapping[str, Any], kind: Objective, site: str) -> dict[str, float | None]:
    """One case's numbers by column; a distance may be infinite and a score undefined, but none may be missing."""
    result: dict[str, float | None] = {}
    for score in kind.main_scores:
        found = part(case, score.name)
        for output in kind.outputs:
            if output not in found:
                raise DataError(f"{case.get('id')} of {site} has no {score.title} of {output}; simulate the job again.")
            result[f"{score.title} {output}"] = _value(found[output])
    return result


def _value(value: Any) -> float | None:
    return math.inf if value == math.inf else number(value)
