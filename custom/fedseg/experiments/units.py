"""The units of work of an experiment: an arm with a seed in a fold, and what it trains, before anything is trained."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from fedseg.contract.round_settings import round_steps
from fedseg.contract.settings import TrainingSettings
from fedseg.contract.task_argument import task_declaration
from fedseg.errors import ConfigurationError, FedsegError
from fedseg.evaluation.experiment_folder import GLOBAL
from fedseg.experiments.arms import CENTRAL, ENSEMBLE, LOCAL, Arm, check_order
from fedseg.experiments.cohort import Cohort
from fedseg.experiments.definition import Budget, Definition
from fedseg.experiments.folds import Fold, pooled
from fedseg.files.digest import model_digest
from fedseg.jobs.job import Job, read_job
from fedseg.models.model_file import read_model
from fedseg.tasks.registry import task_names
from fedseg.version import versions

_FORM = 2
"""Counts changes of what a unit leaves, after which former ones cannot be used."""


@dataclass(frozen=True)
class Unit:
    """One piece of work, done as a whole or not at all.

    Attributes:
        arm, seed, fold: what it is.
        site: whose model it makes; ``-`` where it is one for all sites, or for each site one by one job.
        rounds: of training; 0 where nothing is trained.
        job: as it runs, with seed, rounds and settings; of the other kinds its plan counts.
        needs: names of the units whose models it takes.
        digest: SHA-256 of all that decides about its results.
    """

    arm: Arm
    seed: int
    fold: Fold
    site: str
    rounds: int
    job: Job
    needs: tuple[str, ...]
    digest: str

    @property
    def name(self) -> str:
        """Of its folder."""
        return unit_name(self.arm.name, self.seed, self.fold.name, self.site)

    @property
    def cases(self) -> dict[str, int]:
        """Training cases of each place at which it trains."""
        if self.arm.kind == ENSEMBLE:
            return {}
        if self.arm.kind == CENTRAL:
            name, datalist = pooled(self.fold)
            return {name: len(datalist.training)}
        names = [self.site] if self.arm.kind == LOCAL else list(self.fold.training)
        return {name: len(self.fold.training[name].training) for name in names}


def unit_name(arm: str, seed: int, fold: str, site: str) -> str:
    """The name of a unit, fit for a folder."""
    return "_".join([arm, f"seed{seed}", *(f"fold-{part}" for part in [fold] if part != GLOBAL), site]).removesuffix(
        "_-"
    )


def base_job(definition: Definition) -> Job:
    """The experiment's job with the experiment's task.

    Raises:
        UsageError, DataError, ConfigurationError: job or task cannot be used.
    """
    job, task = read_job(definition.job), definition.task
    if isinstance(task, str):
        if task not in task_names() and not (definition.folder / task).exists():
            allowed = f"one of {list(task_names())}, or the path of a file or job folder that is there"
            raise ConfigurationError("task", task, allowed)
        task = task_declaration(task if task in task_names() else str(definition.folder / task))
    if task is not None:
        job.set("task", task)
    for key, value in definition.set.items():
        job.set(key, value)
    job.check()
    return job


def make_units(definition: Definition, base: Job, folds: list[Fold], cohort: Cohort) -> list[Unit]:
    """All units of an experiment; those that others need come first.

    Args:
        definition: of the experiment.
        base: see ``base_job``.
        folds, cohort: of the experiment.

    Raises:
        FedsegError: an arm's job cannot be used with this task or these settings; names the arm.
    """
    found: dict[str, Unit] = {}
    for arm in sorted(definition.arms.values(), key=lambda arm: arm.kind == ENSEMBLE):
        check_order(arm, list(cohort.sites))
        if arm.patience is not None:
            _check_patience(arm, folds)
        for seed in definition.seeds:
            try:
                job = _arm_job(definition, base, arm, seed)
                _check_groups(arm, job, folds)
            except FedsegError as error:
                raise FedsegError(f"arms.{arm.name}: {error}") from None
            for fold in folds:
                for unit in _of_fold(definition.budget, base, arm, seed, fold, job):
                    found[unit.name] = replace(unit, digest=_digest(unit, cohort, found))
    return list(found.values())


def _check_groups(arm: Arm, job: Job, folds: list[Fold]) -> None:
    """Refuse sites that cannot train an arm's network beside others; who trains alone trains all of it.

    Raises:
        ConfigurationError: a part of the network names groups of sites, and one that trains is in none.
    """
    if arm.kind in (CENTRAL, LOCAL, ENSEMBLE):
        return
    plan, sites = job.plan, sorted({site for fold in folds for site in fold.training})
    for part in plan.network.parts:
        if outside := [site for site in sites if not part.takes(site)]:
            remedy = f"{outside[0]} trains, and is in none of them. Name it, or leave it out with sites."
            raise ConfigurationError("network.parts", part.to_dict(), "groups in which every site is", remedy)


def _check_patience(arm: Arm, folds: list[Fold]) -> None:
    """Refuse to choose an arm's model on the cases on which it is tested then, which is easier than for other arms.

    Raises:
        ConfigurationError: names the arm.
    """
    for fold in folds:
        for site, datalist in fold.training.items():
            if set(datalist.validation) & set(fold.tests[site].test):
                remedy = f"Validation cases of {site} are its tests, too. Give it test cases, or choose other folds."
                raise ConfigurationError(f"arms.{arm.name}.patience", arm.patience, "left out", remedy)


def _arm_job(definition: Definition, base: Job, arm: Arm, seed: int) -> Job:
    """The job of an arm: its own if it has one, with the experiment's task and network, and all settings."""
    job = copy.deepcopy(base) if arm.job is None else read_job(arm.job)
    if arm.job is not None:
        job.set("task", base.declaration["task"])
        own = job.declaration.get("network", {})
        parts = {"parts": own["parts"]} if isinstance(own, Mapping) and "parts" in own else {}
        job.set("network", {**base.plan.network.to_dict(), **parts})
    for key, value in {**definition.set, **arm.set, "seed": seed}.items():
        job.set(key, value)
    job.check()
    return job


def _of_fold(budget: Budget | None, base: Job, arm: Arm, seed: int, fold: Fold, job: Job) -> Iterator[Unit]:
    """The units of an arm in a fold, still without digests."""
    for site in fold.training if arm.kind == LOCAL else [GLOBAL]:
        needs = [unit_name(arm.of, seed, fold.name, site) for site in fold.training] if arm.kind == ENSEMBLE else []
        unit = Unit(arm, seed, fold, site, 0, copy.deepcopy(job), tuple(needs), "")
        rounds = 0 if arm.kind == ENSEMBLE else _rounds(budget, base, unit)
        unit.job.set("workflow.num_rounds", max(1, rounds))
        yield replace(unit, rounds=rounds)


def _rounds(budget: Budget | None, base: Job, unit: Unit) -> int:
    """How many rounds come closest to the budget; at least one."""
    own = unit.job.plan.training
    budget = budget or Budget(rounds=int(base.workflow["num_rounds"]))
    if budget.rounds is None:
        return max(1, round(budget.amount / _per_round(own, unit.cases, budget.unit)))
    if unit.arm.kind != CENTRAL:
        return budget.rounds
    # As much as the sites do together in so many rounds of the experiment's job.
    sites = {site: len(datalist.training) for site, datalist in unit.fold.training.items()}
    amount = budget.rounds * _per_round(base.plan.training, sites, unit.arm.equal)
    return max(1, round(amount / _per_round(own, unit.cases, unit.arm.equal)))


def _per_round(settings: TrainingSettings, cases: Mapping[str, int], unit: str) -> int:
    """Steps or samples of a round, summed over all places."""
    if unit == "steps":
        return sum(round_steps(settings, count) for count in cases.values())
    return settings.local_epochs * settings.patches_per_case * sum(cases.values())


def planned(unit: Unit) -> dict[str, int]:
    """``rounds``, ``steps`` and ``samples`` that a unit trains, where every site takes part in every round."""
    settings, cases = unit.job.plan.training, unit.cases
    steps, samples = (unit.rounds * _per_round(settings, cases, kind) for kind in ("steps", "samples"))
    return {"rounds": unit.rounds, "steps": steps, "samples": samples}


def _digest(unit: Unit, cohort: Cohort, others: Mapping[str, Unit]) -> str:
    """SHA-256 over all that decides about the results of a unit."""
    fold, arm = unit.fold, unit.arm
    visited = arm.visited({site: len(datalist.training) for site, datalist in fold.training.items()}, unit.seed)
    trained = set() if arm.kind == ENSEMBLE else {unit.site} if arm.kind == LOCAL else set(fold.training)
    content = {
        "form": _FORM,
        "versions": versions(),
        "kind": arm.kind,
        "visited": visited if trained - {unit.site} else [],
        "patience": arm.patience,
        "elsewhere": arm.elsewhere,
        "site": unit.site,
        "rounds": unit.rounds,
        "job": [unit.job.declaration, unit.job.server, unit.job.client],
        "initial": None if unit.job.initial is None else model_digest(read_model(unit.job.initial).weights),
        "training": {site: cohort.digest(datalist) for site, datalist in fold.training.items() if site in trained},
        "tests": {site: cohort.digest(datalist) for site, datalist in fold.tests.items()},
        "needs": {name: others[name].digest for name in unit.needs},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
