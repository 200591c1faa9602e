"""What the hospitals would have without a federation: their own models, and a mere intensity threshold."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedseg.contract.plan import Plan, parse_plan
from fedseg.data.case_reading import read_case
from fedseg.data.datalist import Case, read_datalist
from fedseg.data.label_convention import settled
from fedseg.data.reading import read_label
from fedseg.errors import ConfigurationError, FedsegError
from fedseg.evaluation.comparison_tests import CaseRows, add_tests, case_rows
from fedseg.models.model_file import initial_weights
from fedseg.networks.weights import Arrays
from fedseg.processes import worker_pool
from fedseg.tasks.objective import MEAN, Objective
from fedseg.tasks.scores import ScoredCase
from fedseg.tasks.segmentation.labels import paint_regions, to_classes, to_regions
from fedseg.tasks.segmentation.metrics import score_case
from fedseg.tasks.task import Task
from fedseg.training.carried import one_site, train_carried
from fedseg.training.trainer import SiteTrainer

KINDS = ("local", "threshold")
HOME, AWAY = "own model at home", "own model elsewhere"
Summary = dict[str, Any]


@dataclass(frozen=True)
class SiteScores:
    """A model at one site: the summary of its final cases, and their scores, see ``comparison_tests.case_rows``."""

    summary: Summary
    cases: CaseRows = ()


Matrix = Mapping[str, Mapping[str, SiteScores]]


def compare(
    kinds: Sequence[str],
    plan: Plan,
    data: Path,
    sites: Sequence[str],
    num_rounds: int,
    initial: Path | None = None,
    federated: CaseRows = (),
) -> dict[str, Any]:
    """Score the alternatives on the same final cases as the federated model.

    Args:
        kinds: ``local`` (each site's own model, trained for as many epochs as the federation, on every site's cases)
            and ``threshold`` (the best threshold on the last channel, for the largest region). A site without a
            training case that is labelled voxel by voxel has no model of its own.
        plan: the job's plan.
        data: folder with ``<site>/datalist.json``.
        sites: the sites.
        num_rounds: rounds of the federation.
        initial: the model file that the federation starts from, and so each site alone; None where there is none.
        federated: the federated model's scores of these cases, see ``comparison_tests.case_rows``.

    Returns:
        ``comparison``, with a paired test of each where there are scores of single cases, and with ``local``
        ``cross_site`` for the summary.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigurationError("--compare", kind, f"a list out of {', '.join(KINDS)}")
    result: dict[str, Any] = {"comparison": []}
    cases: dict[str, CaseRows] = {}
    if "threshold" in kinds:
        if not plan.objective.masks:
            raise ConfigurationError("--compare", "threshold", f"another one: this job is of {plan.objective.title}")
        entry, scored = _threshold(plan, data, sites)
        result["comparison"].append(entry)
        cases[entry["name"]] = scored
    if "local" in kinds:
        matrix = train_alone(plan, data, sites, num_rounds, initial)
        name = plan.objective.primary.name
        result["cross_site"] = {a: {b: s.summary[name][MEAN] for b, s in row.items()} for a, row in matrix.items()}
        result["comparison"] += _local_entries(plan.objective, matrix)
        cases[HOME] = [case for site, row in matrix.items() for case in row[site].cases]
        cases[AWAY] = [c for a, row in matrix.items() for b, scores in row.items() if a != b for c in scores.cases]
    add_tests(result["comparison"], cases, federated)
    return result


# ------------------------------------------------------------------ each site alone


def train_alone(
    plan: Plan, data: Path, sites: Sequence[str], num_rounds: int, initial: Path | None = None
) -> dict[str, dict[str, SiteScores]]:
    """The own model of each site that has labelled training cases, on their final cases: trained at -> scored at."""
    sites = [site for site in sites if read_datalist(data / site).labelled.training]
    jobs = [(plan.to_dict(), str(data), site, list(sites), num_rounds, initial) for site in sites]
    workers = max(1, min(len(sites), (os.cpu_count() or 1) // plan.training.threads))
    try:
        with worker_pool(workers) as pool:
            rows = list(pool.map(_train_one, jobs))
    except BrokenProcessPool:
        raise FedsegError("A process that trained a site's own model ended; was there enough memory?") from None
    return dict(zip(sites, rows, strict=True))


def _train_one(job: tuple[dict[str, Any], str, str, list[str], int, Path | None]) -> dict[str, SiteScores]:
    declaration, data, site, sites, num_rounds, initial = job
    plan = parse_plan(declaration)
    torch.set_num_threads(plan.training.threads)
    trainer = SiteTrainer(plan, site, settled(plan.task, read_datalist(Path(data) / site)))
    course, start = one_site(site, num_rounds), initial_weights(plan, initial)
    weights = train_carried({site: trainer}, course, num_rounds, start=start).weights
    return {other: _score_at(plan, Path(data) / other, other, weights) for other in sites}


def _score_at(plan: Plan, folder: Path, site: str, weights: Arrays) -> SiteScores:
    trainer = SiteTrainer(plan, site, settled(plan.task, read_datalist(folder)))
    scored = trainer.validate(weights, trainer.datalist.final_split)
    kind = plan.objective
    return SiteScores(kind.summarise([case.score for case in scored]), case_rows(kind, site, scored, kind.outputs))


def _local_entries(kind: Objective, matrix: Matrix) -> list[dict[str, Any]]:
    """For each site: its own model at home, and the mean of its own model over the other sites."""
    away = {
        site: _means(kind, [scores.summary for other, scores in row.items() if other != site])
        for site, row in matrix.items()
        if len(row) > 1
    }
    home = {site: _means(kind, [row[site].summary]) for site, row in matrix.items()}
    entries = [_entry(kind, HOME, "each hospital's own model on its own cases", home)]
    if away:
        text = "each hospital's own model, trained as long, on the other hospitals' cases (mean over those)"
        entries.append(_entry(kind, AWAY, text, away))
    return entries


def _means(kind: Objective, summaries: Sequence[Summary]) -> dict[str, float | None]:
    """Mean over sites of each output's primary score, and of the mean."""
    result: dict[str, float | None] = {}
    for output in (*kind.outputs, MEAN):
        found = [s[kind.primary.name][output] for s in summaries]
        values = [value for value in found if value is not None]
        result[output] = sum(values) / len(values) if values else None
    return result


# ------------------------------------------------------------------ one threshold


def _threshold(plan: Plan, data: Path, sites: Sequence[str]) -> tuple[dict[str, Any], CaseRows]:
    """The best single threshold on the normalised last channel, found on all training cases together."""
    task = plan.task
    region = max(range(len(task.regions)), key=lambda i: len(task.regions[i].classes))
    name = task.regions[region].name
    candidates = np.linspace(-1.0, 4.0, 51)
    lists = {site: read_datalist(data / site).scorable for site in sites}
    training = [case for datalist in lists.values() for case in datalist.labelled.training]
    dice = np.mean([_threshold_dice(task, case, region, candidates) for case in training], axis=0)
    best = float(candidates[int(dice.argmax())])
    scores: dict[str, Summary] = {}
    rows: list[Mapping[str, Any]] = []
    for site, datalist in lists.items():
        cases = datalist.split(datalist.final_split)
        scored = [_threshold_score(task, case, region, best, plan.training.empty) for case in cases]
        scores[site] = {name: plan.objective.summarise(scored)["dice"][name]}
        named = [ScoredCase(case.id, 0.0, score, case.patient) for case, score in zip(cases, scored, strict=True)]
        rows += case_rows(plan.objective, site, named, [name])
    text = (
        f"{task.channels[-1]} above {best:.1f} standard deviations, the best threshold for {name} on all training "
        "cases; it knows no other region"
    )
    return _entry(plan.objective, f"{task.channels[-1]} threshold", text, scores), rows


def _channel(task: Task, case: Case) -> tuple[np.ndarray, Any]:
    """The last channel, z-scored over its non-zero voxels, and its grid; minus infinity where there is none."""
    array, grid, _ = read_case(task, case)
    values = array[-1]
    inside = values[values != 0]
    if not inside.size:
        return np.full(values.shape, -np.inf), grid
    return np.where(values != 0, (values - inside.mean()) / max(float(inside.std()), 1e-6), -np.inf), grid


def _threshold_dice(task: Task, case: Case, region: int, candidates: np.ndarray) -> list[float]:
    assert case.label is not None
    reference = to_regions(task, to_classes(task, read_label(case.label)[0]))[region]
    values, _ = _channel(task, case)
    return [
        2 * float((reference & (m := values > c)).sum()) / max(1, int(reference.sum() + m.sum())) for c in candidates
    ]


def _threshold_score(task: Task, case: Case, region: int, threshold: float, empty: str) -> Any:
    assert case.label is not None
    values, grid = _channel(task, case)
    masks = np.zeros((len(task.regions), *values.shape), bool)
    masks[region] = values > threshold
    reference = to_classes(task, read_label(case.label)[0])
    return score_case(task, paint_regions(task, masks), reference, grid.spacing, empty, distances=False)


def _entry(
    kind: Objective, name: str, description: str, sites: Mapping[str, Mapping[str, float | None]]
) -> dict[str, Any]:
    """One alternative; its mean score is taken over the outputs that it has at all."""
    means = []
    for scores in sites.values():
        values = [v for k, v in scores.items() if v is not None and k != MEAN]
        if values:
            means.append(sum(values) / len(values))
    return {
        "name": name,
        "description": description,
        "regions": sorted({k for s in sites.values() for k in s if k != MEAN}),
        "sites": {site: {kind.primary.name: dict(scores)} for site, scores in sites.items()},
        f"mean_{kind.primary.name}": sum(means) / len(means) if means else None,
    }
