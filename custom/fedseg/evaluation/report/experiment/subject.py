"""What an experiment is about: its task and scores, the kinds of its arms, and who takes part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fedseg.errors import ConfigurationError
from fedseg.evaluation.experiment_folder import OWN, Experiment
from fedseg.evaluation.report.text_tables import counted
from fedseg.evaluation.summary import part
from fedseg.tasks.objective import MEAN, Score, objective_of
from fedseg.tasks.registry import resolve_task
from fedseg.tasks.task import Task

CENTRAL, LOCAL, ENSEMBLE, FEDERATED = "central", "local", "ensemble", "federated"
_MEANINGS = {
    CENTRAL: "all cases in one place, one model",
    LOCAL: "each site alone, a model of its own",
    ENSEMBLE: "the mean of the probabilities of the sites' own models",
    "iil": "one model that visits each site once",
    "ciil": "one model that visits the sites in cycles",
}


def task_of(experiment: Experiment) -> Task | None:
    """The task, declared in ``experiment.json`` or built in; None where the file names none that is known here."""
    said = experiment.facts.get("task")
    if not said:
        return None
    try:
        return resolve_task(said)
    except ConfigurationError:
        return None


def scores_of(experiment: Experiment) -> list[Score]:
    """The scores that the table has, the primary one first, as the kind of task describes them."""
    measured = list(dict.fromkeys(experiment.results["metric"]))
    task = task_of(experiment)
    described = objective_of(task).scores if task else ()
    known = [score for score in described if score.name in measured]
    return known + [Score(name, name) for name in measured if name not in {score.name for score in known}]


def regions_of(experiment: Experiment) -> list[str]:
    """The regions that were scored, in the order of the table."""
    return [region for region in dict.fromkeys(experiment.results["region"]) if region != MEAN]


def defined_arms(arms: Iterable[str]) -> list[str]:
    """The arms of the definition among those that are judged, where the models of an arm's sites stand apart."""
    return list(dict.fromkeys(arm.removesuffix(OWN) for arm in arms))


def arm_kind(experiment: Experiment, arm: str) -> str:
    """The kind of an arm: ``central``, ``local``, ``ensemble``, ``iil``, ``ciil``, or else ``federated``."""
    kind = _declared(experiment, arm).get("kind", arm)
    return kind if kind in _MEANINGS else FEDERATED


def arm_words(experiment: Experiment, arm: str) -> str:
    """What an arm is, in a few words."""
    job = _declared(experiment, arm).get("job")
    words = _MEANINGS.get(arm_kind(experiment, arm)) or (f"federated, job {job}" if job else FEDERATED)
    return f"{words}: each site's own model" if arm.endswith(OWN) else words


def _declared(experiment: Experiment, arm: str) -> dict[str, Any]:
    """What the definition says of an arm."""
    return part(experiment.facts, "arms", arm.removesuffix(OWN))


def arms_of_kind(experiment: Experiment, kind: str) -> list[str]:
    """The arms of a kind, in the order of the table."""
    return [arm for arm in experiment.arms if arm_kind(experiment, arm) == kind]


def reference_arm(experiment: Experiment) -> str:
    """The arm with which others are compared: as the definition says, else the first of the table."""
    said = experiment.facts.get("reference")
    return said if said in experiment.arms else experiment.arms[0]


def external_sites(experiment: Experiment) -> list[str]:
    """Sites that only tested."""
    return [site for site in part(experiment.facts, "external") if site in experiment.sites]


def site_facts(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """What ``experiment.json`` says of each site that trains or only tests: cases of each split, patients, a digest."""
    every = part(experiment.facts, "sites") | part(experiment.facts, "external")
    return {site: part(every, site) for site in every}


def budget_words(experiment: Experiment) -> str:
    """For how long arms train: ``7200 samples``; empty where the definition leaves it to the jobs."""
    budget = part(experiment.facts, "definition", "budget")
    return ", ".join(counted(value, name.removesuffix("s")) for name, value in budget.items() if value)
