"""What every training hook must hold, checked on the tiny problem: seeded, and nothing lost when the site dies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import Datalist
from fedseg.networks.weights import Arrays, apply_difference, get_weights
from fedseg.site.state import SiteState
from fedseg.training.hooks import TrainingHook
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from tiny import PLAN

ROUNDS = 3
SGD = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "learning_rate": 0.05}
Received = Callable[[int], Mapping[str, Any]]


def make_trainer(
    datalist: Datalist,
    hooks: Sequence[TrainingHook] = (),
    state: SiteState | None = None,
    changes: Mapping[str, Any] | None = None,
    **plan: Any,
) -> SiteTrainer:
    """A trainer of the tiny plan, with changed settings of ``training`` and changed parts of the plan."""
    training = {**PLAN["training"], **(changes or {})}
    checked = parse_plan({**PLAN, **plan, "training": training})
    return SiteTrainer(checked, "a", datalist, TrainerSetup(state, hooks=hooks))


def start_of(trainer: SiteTrainer) -> Arrays:
    """The weights of the plan's seeded network."""
    plan = trainer.plan
    return get_weights(plan.build_network())


def run_rounds(make: Callable[[], SiteTrainer], received: Received = lambda number: {}, rounds: int = ROUNDS) -> Arrays:
    """Weights after some rounds of a federation of one site whose trainer comes from ``make``.

    Between the rounds the weights are shrunk a little, so that the global model is never the site's own.
    """
    weights = start_of(make())
    for number in range(rounds):
        update = make().train_round(weights, number, rounds, **received(number)).update
        weights = apply_difference(weights, {name: 0.9 * value for name, value in update.items()})
    return weights


def check_seeded_and_restarted(
    datalist: Datalist,
    hook: Callable[[], TrainingHook],
    folder: Path,
    received: Received = lambda number: {},
    changes: Mapping[str, Any] | None = None,
) -> Arrays:
    """Equal bits from a second run, and from a site that dies after every round; returns the weights."""

    def living(name: str) -> Arrays:
        trainer = make_trainer(datalist, [hook()], SiteState(folder / name, "run"), changes)
        return run_rounds(lambda: trainer, received)

    def reborn() -> SiteTrainer:
        return make_trainer(datalist, [hook()], SiteState(folder / "reborn", "run"), changes)

    weights = living("once")
    assert_same(weights, living("again"))
    assert_same(weights, run_rounds(reborn, received))
    return weights


def plain_rounds(
    datalist: Datalist, changes: Mapping[str, Any] | None = None, received: Received = lambda n: {}
) -> Arrays:
    """Weights after the same rounds without any hook."""
    trainer = make_trainer(datalist, changes=changes)
    return run_rounds(lambda: trainer, received)


def assert_same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    """Equal to the last bit."""
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def assert_differ(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    """Not equal in at least one array."""
    assert any(not np.array_equal(one[name], other[name]) for name in one)
