"""What an experiment will cost, before anything starts: counted where that can be, else from a measured short step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fedseg.contract.plan import Plan
from fedseg.contract.round_settings import RoundSettings
from fedseg.experiments.arms import CENTRAL, ENSEMBLE, JOB_ARM, LOCAL
from fedseg.experiments.folds import Fold
from fedseg.experiments.units import Unit, planned
from fedseg.networks.demand import NUMBER_BYTES, demand
from fedseg.networks.weights import get_weights
from fedseg.training.trainer import SiteTrainer

_CASES = 2


@dataclass(frozen=True)
class Speed:
    """Measured on this machine with the plain network, without what a method adds.

    Attributes:
        step: seconds of an optimizer step.
        case: seconds in which a case is segmented and scored.
    """

    step: float
    case: float


@dataclass(frozen=True)
class UnitCost:
    """What a unit will cost.

    Attributes:
        rounds, steps, samples: of training.
        bytes: of all messages in both directions, as plain arrays; of the images where these are pooled.
        scored: cases that are segmented and scored, in rounds and at the end.
        seconds: of one process.
    """

    rounds: int
    steps: int
    samples: int
    bytes: int
    scored: int
    seconds: float


def measure(plan: Plan, fold: Fold) -> Speed:
    """Train two batches and score a case, once to read the files and once for the time.

    Args:
        plan: task, network and settings.
        fold: of whose first site the first cases are taken.

    Raises:
        FedsegError: the cases cannot be read, or the network cannot be trained on them.
    """
    torch.set_num_threads(plan.training.threads)
    site, datalist = next(iter(fold.training.items()))
    batches = _CASES * plan.training.batch_size
    few = replace(datalist, training=datalist.training[:batches], validation=datalist.validation[:1])
    trainer, once = SiteTrainer(plan, site, few), RoundSettings(local_epochs=1)
    weights = get_weights(trainer.network)
    found = []
    for number in range(2):
        result = trainer.train_round(weights, number, 2, settings=once)
        start = time.perf_counter()
        trainer.validate(weights, distances=True)
        found.append(Speed(result.seconds / result.num_steps, time.perf_counter() - start))
    return found[-1]


def measure_all(units: Sequence[Unit]) -> dict[str, Speed]:
    """The speed of each plan of the units, by the name of the unit; plans that differ in the seed only are one."""
    speeds: dict[str, Speed] = {}
    found = {}
    for unit in units:
        key = replace(unit.job.plan, seed=0, method="").digest
        if key not in speeds:
            speeds[key] = measure(unit.job.plan, unit.fold)
        found[unit.name] = speeds[key]
    return found


def unit_cost(unit: Unit, speed: Speed) -> UnitCost:
    """What a unit will cost at this speed."""
    amounts, scored = planned(unit), _scored_cases(unit)
    seconds = amounts["steps"] * speed.step + scored * speed.case
    return UnitCost(**amounts, bytes=_bytes(unit), scored=scored, seconds=seconds)


def _scored_cases(unit: Unit) -> int:
    """Cases that are scored: the validation cases in every round, and the test cases at the end."""
    kind, fold = unit.arm.kind, unit.fold
    tests = sum(len(datalist.test) for datalist in fold.tests.values())
    if kind == ENSEMBLE:
        return len(unit.needs) * tests
    if kind == LOCAL and not unit.arm.elsewhere:
        away = [site for site in fold.training if site != unit.site]
        tests -= sum(len(fold.tests[site].test) for site in away)
    watched = [unit.site] if kind == LOCAL else list(fold.training)
    validation = sum(len(fold.training[site].validation) for site in watched)
    # A job also scores its last and its best model there.
    return unit.rounds * validation + tests + (2 * validation if kind == JOB_ARM else 0)


def _bytes(unit: Unit) -> int:
    fold = unit.fold
    if unit.arm.kind == CENTRAL:
        lists = fold.training.values()
        return sum(file.stat().st_size for datalist in lists for file in replace(datalist, path=None).files)
    if unit.arm.kind in (LOCAL, ENSEMBLE):
        return 0
    plan = unit.job.plan
    needs = demand(plan.network, len(plan.task.channels), plan.objective.output_channels, plan.task.patch_size)
    return 2 * unit.rounds * len(fold.training) * needs.weights * NUMBER_BYTES


def describe(costs: dict[str, UnitCost], jobs: int) -> dict[str, Any]:
    """The plan for ``experiment.json``: every unit, and the sum."""
    total = {name: sum(getattr(cost, name) for cost in costs.values()) for name in ("steps", "samples", "bytes")}
    seconds = sum(cost.seconds for cost in costs.values())
    return {
        "units": {name: asdict(cost) for name, cost in costs.items()},
        "total": {**total, "seconds_of_one_process": seconds, "jobs": jobs, "seconds": seconds / jobs},
    }
