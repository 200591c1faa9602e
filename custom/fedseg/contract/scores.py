"""What a site says of the models that it scored on a split of its cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fedseg.allowed import is_count, is_number
from fedseg.tasks.objective import MEAN, SCORED, Objective, ScoredCase, cases_with, mean

PERSONAL = "personal"
"""Key of the scores of a site's personal model, see ``TrainingHook.personal_model``, beside those of the global one."""

FINE_TUNED = "fine_tuned"
"""Key of the scores of the last model after a site has trained it for itself, see ``workflow.fine_tune``."""
BESIDE = (PERSONAL, FINE_TUNED)
"""Models that a site has for itself beside the one that it scores."""

INTERVALS = "intervals"
"""Key of the 95% intervals of the means: score -> output -> ``[low, high]``, or null where there are too few cases."""
FEWEST = 5
"""Patients of whom an interval may leave a site. With two or three its bounds would be the scores of single cases."""


WITHHELD, FEWER_THAN, OF = "withheld", "fewer_than", "of"
_KEPT = {frozenset({"split", "cases", WITHHELD}), frozenset({"split", FEWER_THAN, OF, WITHHELD})}
_UNITS = {"cases": "fewer than {} cases", "patients": "cases of fewer than {} patients"}


def few(split: str, least: int | None, cases: int, patients: int) -> dict[str, Any] | None:
    """What a site says of a split whose scores would tell of too few: that there are fewer, and not how many.

    Args:
        split: the split.
        least: fewest cases, and patients, of which scores may leave; None for no limit.
        cases, patients: how many there are.

    Returns:
        None where there are enough, or none at all.
    """
    if least is None or not cases or patients >= least:
        return None
    return {"split": split, WITHHELD: True, FEWER_THAN: least, OF: "cases" if cases < least else "patients"}


def is_withheld(part: Any) -> bool:
    """Whether a site says, in one of the two forms that there are, that it keeps the scores of a split to itself."""
    if not isinstance(part, Mapping) or part.get(WITHHELD) is not True or frozenset(part) not in _KEPT:
        return False
    fewer = FEWER_THAN not in part or (is_count(part[FEWER_THAN]) and part[OF] in _UNITS)
    return isinstance(part["split"], str) and is_count(part.get("cases", 0)) and fewer


def withheld_words(part: Mapping[str, Any]) -> str:
    """Why scores are withheld.

    >>> withheld_words(few("test", 5, cases=3, patients=3))
    'fewer than 5 cases'
    """
    if FEWER_THAN not in part:
        return "kept by the site's policy, or by the job's guarantee"
    return _UNITS[part[OF]].format(part[FEWER_THAN])


Patients = Mapping[str, Mapping[str, int]]
"""Score -> output -> how many patients have a value."""


def patients_with(kind: Objective, scored: Sequence[ScoredCase]) -> dict[str, dict[str, int]]:
    """Of each score that some case has, and of each output, how many patients have a case with a value."""

    def count(score: str, output: str) -> int:
        return len({case.patient for case in scored if getattr(case.score, score).get(output) is not None})

    names = [score.name for score in kind.scores if any(getattr(case.score, score.name) for case in scored)]
    return {name: {output: count(name, output) for output in kind.outputs} for name in names}


def without_rare(kind: Objective, summary: Mapping[str, Any], least: int | None, patients: Patients) -> dict[str, Any]:
    """A summary without the means, and their intervals, of outputs that cases of too few patients have; the mean over
    outputs is that of the others.

    Args:
        kind: of the task.
        summary: see ``Objective.summarise``.
        least: fewest cases, and patients, of which a mean may leave; None for no limit.
        patients: see ``patients_with``; where a score or an output is absent, every case is of another patient.
    """
    if not rare_outputs(summary, least, patients):
        return dict(summary)
    told = {**summary, SCORED: dict(summary.get(SCORED, {})), INTERVALS: dict(summary.get(INTERVALS, {}))}
    for score in kind.scores:
        rare = _rare(summary, score.name, least, patients.get(score.name, {}))
        if not rare or not summary.get(score.name):
            continue
        counts = {name: 0 if name in rare else cases_with(summary, score.name, name) for name in summary["defined"]}
        values = {name: None if name in rare else value for name, value in summary[score.name].items()}
        if MEAN in values:
            values[MEAN] = mean([value for name, value in values.items() if name != MEAN])
        told[score.name] = values
        # The interval of the mean over outputs is of all of them.
        bounds = told[INTERVALS].get(score.name, {})
        told[INTERVALS][score.name] = {n: None if n in rare | {MEAN} else found for n, found in bounds.items()}
        told |= {"defined": counts} if score == kind.primary else {SCORED: {**told[SCORED], score.name: counts}}
    return told


def rare_outputs(summary: Mapping[str, Any], least: int | None, patients: Patients = MappingProxyType({})) -> set[str]:
    """Outputs with a mean, of any score, over fewer cases or patients than may be told; see ``without_rare``."""
    counted = ("", *summary.get(SCORED, {}), *patients)
    return {name for score in counted for name in _rare(summary, score, least, patients.get(score, {}))}


def _rare(summary: Mapping[str, Any], score: str, least: int | None, patients: Mapping[str, int]) -> set[str]:
    """Outputs with a mean of a score over fewer cases or patients than may be told; of the primary one where there is
    none such."""
    counts = {name: cases_with(summary, score, name) for name in summary.get("defined", {})}
    return {name for name, cases in counts.items() if cases and min(cases, patients.get(name, cases)) < (least or 0)}


def models_of(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The scores of each model in what a site says of a split.

    >>> len(models_of({"split": "test", "cases": 2, "personal": {"cases": 2}}))
    2
    """
    return [part, *(part[name] for name in BESIDE if name in part)]


def scores_fault(kind: Objective, part: Mapping[str, Any]) -> str:
    """What is wrong with a site's scores of a split; empty where it could have computed them.

    Args:
        kind: of the task.
        part: ``split``, ``loss``, ``intervals`` and what ``Objective.summarise`` gives, of the global model; under
            each of ``BESIDE`` the same without ``split`` of a model that the site has for itself.
    """
    if not all(isinstance(each, Mapping) for each in models_of(part)):
        return "the scores of its own model are no numbers by name"
    for each in models_of(part):
        if not is_count(each.get("cases")) or each["cases"] != part["cases"]:
            return "its scores do not count their cases"
        if each.get("loss") is not None and not is_number(each["loss"]):
            return "its loss is something else than a finite number"
        further = ("loss", INTERVALS, "split", *BESIDE) if each is part else ("loss", INTERVALS)
        if fault := kind.fault(each, further) or _interval_fault(kind, each):
            return fault
    return ""


def _interval_fault(kind: Objective, summary: Mapping[str, Any]) -> str:
    """What is wrong with the intervals of a summary that is sound otherwise."""
    told, scores = summary.get(INTERVALS, {}), {score.name: score for score in kind.scores}
    if not isinstance(told, Mapping) or not set(told) <= set(scores):
        return "its intervals are of no score"
    for name, part in told.items():
        if not isinstance(part, Mapping) or not set(part) <= {*kind.outputs, MEAN}:
            return "its intervals are of no output"
        for output, bounds in part.items():
            if bounds is None:
                continue
            if not isinstance(bounds, list) or len(bounds) != 2 or not all(map(scores[name].in_range, bounds)):
                return "its intervals are no pairs of numbers in their range"
            if bounds[0] > bounds[1]:
                return "its intervals end before they begin"
            if _cases(summary, name, output) < FEWEST:
                return f"its intervals are of fewer than {FEWEST} cases"
    return ""


def _cases(summary: Mapping[str, Any], score: str, output: str) -> int:
    """Cases that can have a value; the mean over outputs counts a case that has any of them."""
    return int(summary["cases"] if output == MEAN else cases_with(summary, score, output))
