"""Models of a unit on every test case: one row for each site's model, case, region and metric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedseg.contract.plan import Plan
from fedseg.data.datalist import Datalist, case_names
from fedseg.data.label_convention import with_convention
from fedseg.evaluation.experiment_folder import GLOBAL
from fedseg.experiments.folds import Fold
from fedseg.experiments.rows import Row
from fedseg.models.model_file import ModelFile, read_model
from fedseg.tasks.objective import MEAN, Objective, mean
from fedseg.training.cache import CaseCache
from fedseg.training.inference import choose_device, decide_case, infer_logits, predict_values
from fedseg.training.optimisation import autocast
from fedseg.training.trainer import SiteTrainer, TrainerSetup


def score_models(
    plan: Plan, models: Mapping[str, Path], fold: Fold, elsewhere: bool = True, cache: Path | None = None
) -> list[Row]:
    """Score each model on the test cases of every site.

    Args:
        plan: of the models.
        models: their files by the site that uses them; ``-`` is a model of all sites.
        fold: with the test cases.
        elsewhere: whether a site's model is also scored at the other sites that trained; at sites that did not train
            it always is.
        cache: folder for prepared cases, for ``cache: disk``.

    Returns:
        Rows with ``site``, ``evaluated_at``, ``case``, ``patient``, ``region``, ``metric``, ``value`` and ``empty``.

    Raises:
        DataError: a test case cannot be read.
    """
    weights, rows = {site: read_model(file).weights for site, file in models.items()}, []
    for place, datalist in fold.tests.items():
        # One site's cases at a time: all of them might not fit into memory.
        trainer = SiteTrainer(plan, place, datalist, TrainerSetup(cache=cache))
        for site in models:
            if site in (GLOBAL, place) or elsewhere or place not in fold.training:
                scores = [c.score for c in trainer.validate(weights[site], "test", distances=True)]
                rows += list(_rows(trainer.objective, site, place, datalist, scores))
    return rows


def score_ensemble(plan: Plan, models: Sequence[Path], fold: Fold, cache: Path | None = None) -> list[Row]:
    """Score the mean of the probabilities of several models; arguments and rows as of ``score_models``."""
    files, rows = [read_model(file) for file in models], []
    for place, datalist in fold.tests.items():
        scores = list(_ensemble_scores(plan, files, datalist, cache))
        rows += list(_rows(plan.objective, GLOBAL, place, datalist, scores))
    return rows


def _ensemble_scores(plan: Plan, files: Sequence[ModelFile], datalist: Datalist, cache: Path | None) -> Iterator[Any]:
    kind, settings, device = plan.objective, plan.training, choose_device("auto")
    networks = [file.build().to(device) for file in files]
    task = with_convention(plan.task, datalist.convention)
    cases = CaseCache(task, datalist.test, False, cache if settings.cache == "disk" else None)
    for index in range(len(cases)):
        case, found = cases[index], []
        for network in networks:
            with autocast(settings, device):
                logits = infer_logits(network, task, case.image, settings.overlap, device)
            found.append(predict_values(kind, case, logits))
        values = np.mean(found, axis=0, dtype=found[0].dtype)
        predicted = decide_case(kind, case, values)
        spacing = case.original.spacing
        yield kind.score_drawn(case.drawn, predicted, case.reference, spacing, settings.to_dict(), values=values)


def _rows(kind: Objective, site: str, place: str, datalist: Datalist, scores: Sequence[Any]) -> Iterator[Row]:
    for case, name, found in zip(datalist.test, case_names(datalist.test), scores, strict=True):
        about = {"site": site, "evaluated_at": place, "case": name, "patient": case.patient}
        empty: Mapping[str, str] = getattr(found, "empty", {})
        for score in kind.scores:
            values: Mapping[str, float | None] = getattr(found, score.name)
            several = {output: values.get(output) for output in kind.outputs}
            for region, value in {**several, MEAN: mean(list(several.values()))}.items():
                number = None if value is None else float(value)
                state = empty.get(region, "")
                yield {**about, "region": region, "metric": score.name, "value": number, "empty": state}
