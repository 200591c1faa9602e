"""Which connected parts of a prediction are kept: chosen on a site's validation cases, and written as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedseg.data.datalist import Case
from fedseg.errors import ConfigurationError, DataError, UsageError
from fedseg.evaluation.scoring import Predictor
from fedseg.files.documents import read_json
from fedseg.models.model_file import ModelFile
from fedseg.tasks.objective import objective_of
from fedseg.tasks.scores import MEAN
from fedseg.tasks.segmentation.components import keep_components
from fedseg.tasks.task import FOREGROUND, LARGEST, Task

SCHEMA = "fedseg-components-1"
VOLUMES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Smallest volumes in ml that are tried unless others are named."""
Rule = str | float | None


@dataclass(frozen=True)
class _Judged:
    """A decided prediction without rules, its reference and what is drawn in it."""

    predicted: np.ndarray
    reference: np.ndarray | None
    spacing: tuple[float, float, float]
    drawn: tuple[bool, ...] | None


def choose_components(
    predictor: Predictor, cases: Sequence[Case], volumes: Sequence[float] = VOLUMES
) -> dict[str, Any]:
    """Choose for the foreground and then for each region, the largest first, what raises the mean Dice most.

    As nnU-Net does for the largest part (Isensee et al., Nat Methods 2021), here also for parts of some volume. A rule
    is chosen only where it is better than none; of rules that are alike the first. Earlier choices hold for later ones,
    since what a region loses is lost to those inside. The model's own rules have no part.

    Args:
        predictor: the model; predictions of all cases are in memory at a time.
        cases: labelled ones that nobody trained on.
        volumes: smallest volumes in ml to try beside the largest part.

    Returns:
        ``rules``, region -> rule, as ``task.components``; ``tried``: for each region the mean Dice of every rule,
        ``none`` included, under the choices before it; ``without`` and ``with``: mean Dice before and after; ``cases``.

    Raises:
        UsageError: the model's predictions are no masks.
        DataError: a case has no label or cannot be read.
    """
    task = predictor.model.task
    if not objective_of(task).masks:
        raise UsageError(f"The model is one of {objective_of(task).title}; its predictions have no parts to choose.")
    bare = replace(task, components={})
    judged = _judged(predictor, bare, cases)
    order = sorted(task.regions, key=lambda region: -len(region.classes))
    names = [*([FOREGROUND] if len(task.regions) > 1 else []), *(region.name for region in order)]
    rules: dict[str, str | float] = {}
    tried: dict[str, dict[str, float]] = {}
    without = best = _mean_dice(bare, judged)
    for name in names:
        candidates: list[Rule] = [None, LARGEST, *volumes]
        scores = [
            best,
            *(_mean_dice(replace(bare, components={**rules, name: r}), judged) for r in candidates[1:] if r),
        ]
        tried[name] = {_word(rule): score for rule, score in zip(candidates, scores, strict=True)}
        chosen = candidates[int(np.argmax(scores))]
        if chosen is not None:
            rules[name], best = chosen, max(scores)
    return {"rules": rules, "tried": tried, "without": without, "with": best, "cases": len(judged)}


def _judged(predictor: Predictor, task: Task, cases: Sequence[Case]) -> list[_Judged]:
    if bare := [case for case in cases if case.label is None]:
        raise DataError(f"The case of patient {bare[0].patient} has no label. Rules are chosen on labelled cases only.")
    kind, found = objective_of(task), []
    for _, prepared, values in predictor.activated(cases):
        spacing = prepared.original.spacing
        found.append(_Judged(kind.decide(values), prepared.reference, spacing, prepared.drawn))
    return found


def _mean_dice(task: Task, judged: Sequence[_Judged]) -> float:
    """Mean over regions of the mean over the cases that have a score; 0 where none has."""
    kind = objective_of(task)
    scores = [
        kind.score_drawn(
            each.drawn,
            keep_components(task, each.predicted, each.spacing),
            each.reference,
            each.spacing,
            {"empty": "brats"},
            full=False,
        )
        for each in judged
    ]
    return float(kind.summarise(scores)[kind.primary.name][MEAN] or 0.0)


def _word(rule: Rule) -> str:
    return "none" if rule is None else rule if isinstance(rule, str) else f"{rule:g} ml"


def document(choice: Mapping[str, Any], about: Mapping[str, Any], volumes: Sequence[float]) -> dict[str, Any]:
    """The file of a choice.

    Args:
        choice: as ``choose_components`` made it.
        about: of which model and which cases.
        volumes: that were tried.
    """
    return {"schema": SCHEMA, **about, "volumes": list(volumes), **choice}


def with_components(
    model: ModelFile, digest: str, path: Path, adapted: bool = False
) -> tuple[ModelFile, dict[str, Any]]:
    """The model with the rules of a file, and what a record says of them.

    Args:
        model: that predicts.
        digest: of its weights.
        path: a file that ``document`` made.
        adapted: whether the model's statistics are adapted to the site, as they must have been for the choice.

    Raises:
        DataError: the file is none of rules, or they were chosen for another model or task.
    """
    content = read_json(path, "a choice of components")
    if not isinstance(content, Mapping) or content.get("schema") != SCHEMA:
        raise DataError(f"{path} is no choice of components. `fedseg choose-components` writes one.")
    chosen_for = content.get("model", {}).get("digest") if isinstance(content.get("model"), Mapping) else None
    if chosen_for != digest:
        raise DataError(
            f"{path} was chosen for another model: parts that are errors of one may be right in another. "
            "Choose for this one with `fedseg choose-components`."
        )
    if bool(content.get("adapted_statistics")) != adapted:
        how = "without" if adapted else "with"
        raise DataError(
            f"{path} was chosen {how} --adapt-statistics, which changes what is predicted. Use it in both or in none."
        )
    rules = content.get("rules")
    try:
        if not isinstance(rules, Mapping):
            raise ConfigurationError("rules", rules, "an object of regions and their rules")
        task = replace(model.task, components=dict(rules))
    except ConfigurationError as error:
        raise DataError(f"{path}: {error}") from None
    told = {name: content[name] for name in ("without", "with", "cases", "data") if name in content}
    return replace(model, task=task), {"rules": dict(rules), "file": str(path), "chosen_on": told}
