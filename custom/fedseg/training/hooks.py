"""Where a method reaches into local training: subclass ``TrainingHook`` and override what it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from fedseg.contract.combinations import LOCAL_STEPS
from fedseg.contract.plan import Plan
from fedseg.contract.report import ReportField
from fedseg.contract.settings import TrainingSettings
from fedseg.data.datalist import Datalist
from fedseg.errors import ConfigurationError
from fedseg.networks.parts.part import Part
from fedseg.networks.weights import Arrays
from fedseg.privacy.mechanisms.noise import NoiseSource
from fedseg.tasks.objective import Objective, ScoredCase
from fedseg.tasks.task import Task
from fedseg.training.cache import CaseCache
from fedseg.training.companions import Companion
from fedseg.training.patches import Sample

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Draw = tuple[int | str, ...]
"""What the patch of a case follows from, beside seed, site, round and epoch."""
# Only one result of these methods can be used, so at most one hook of a job may override each.
_SINGLE = ("order", "draws", "step", "personal_model")


class LocalTraining(Protocol):
    """What a hook sees of the training at its site, and what it may ask of it; ``SiteTrainer`` is one.

    The site's own step is two calls, so that a hook can make a step of its own of them:

    >>> def sharpness_aware(training: LocalTraining, batch: Sample, perturb, restore) -> float:
    ...     loss = training.compute_gradients(batch)
    ...     perturb(training.network)  # along the gradients
    ...     training.compute_gradients(batch)
    ...     restore(training.network)
    ...     training.apply_gradients()
    ...     return loss

    Attributes:
        plan, task: of the job.
        site: its name; part of every seed.
        settings: of the training, as they hold in this round.
        datalist: the site's cases; ``training_cases`` are those of training that are labelled voxel by voxel, prepared.
            A hook may put others in their place for a round.
        weak_cases: the prepared training cases with weak labels; empty unless a hook takes them.
        network, optimizer: in training.
        objective: the kind of task, which makes the loss's targets of a batch.
        loss: of logits [B, out, ...] in float32 and targets; a hook may put another in its place.
        device: where the networks are.
        hooks: of this training, in their order.
        companions: further networks by name, see ``TrainingHook.companions``.
        private: names of the network's arrays that are the site's own.
        received_shared_arrays: arrays that the server sent beside the weights.
        totals: sums over all sites of ``TrainingHook.statistics``.
        round_number: from 0, of ``total_rounds``.
        folder: the site's folder of this run; None where nothing is kept on disk.
    """

    plan: Plan
    task: Task
    site: str
    settings: TrainingSettings
    datalist: Datalist
    training_cases: CaseCache
    weak_cases: CaseCache
    network: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    loss: Loss
    device: torch.device
    hooks: tuple[TrainingHook, ...]
    companions: dict[str, Companion]
    private: frozenset[str]
    received_shared_arrays: Arrays
    totals: dict[str, float]
    round_number: int
    total_rounds: int

    @property
    def folder(self) -> Path | None: ...

    def autocast(self) -> AbstractContextManager[object]:
        """The precision in which networks run forward."""

    def check_abort(self) -> None:
        """End the work where it was aborted, by ``AbortedError``."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, out, ...] of the network in training for images [B, C, ...] on the device."""

    def supervise(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of what ``forward`` gave, that of coarser outputs included where the network has them."""

    def compute_gradients(self, batch: Sample) -> float:
        """Gradients of the loss and of every hook's term for a batch; returns the loss without the terms."""

    def apply_gradients(self) -> None:
        """Clip the gradients that there are, and step."""

    def batches(self, round_number: int, epoch: int) -> Iterator[Sample]:
        """The batches of an epoch, on the CPU; the same at each call."""

    def train_alone(self, epochs: int) -> None:
        """Train further epochs of the network on the round's first batches, without hooks."""

    def companion_gradients(self, name: str, batch: Sample) -> float:
        """Gradients of the loss for a batch on the device, in a companion's network; returns the loss."""

    def train_companion(self, name: str, hooks: Sequence[TrainingHook] = (), epochs: int | None = None) -> float:
        """Train a companion in the place of the network, with hooks of its own; returns its mean loss."""

    def validate(self, weights: Arrays, split: str = "validation") -> list[ScoredCase]:
        """Scores of weights, of the plan's network or of the personal one, on every case of a split."""

    def noise_source(self, round_number: int, epoch: int) -> NoiseSource:
        """Noise that protects patients; it follows from the seed in simulations only."""


class TrainingHook:
    """Does nothing by default. The trainer calls each method at the moment that its name says, hooks in their order.

    What a hook must remember between rounds goes through ``state`` and ``load_state`` to the site's disk: the object
    itself may not live that long.

    >>> class Brighter(TrainingHook):
    ...     def batch(self, training, batch):
    ...         return {**batch, "image": batch["image"] + 1}
    >>> Brighter().batch(None, {"image": torch.zeros(2)})["image"].tolist()
    [1.0, 1.0]

    Attributes:
        reports: what ``report`` tells, by name, see ``ReportField``.
        needs, withholds: see ``contract.combinations``.
        prefix: first part of the names of the arrays that the hook exchanges with the server, as the ``SharedState``
            that combines them has it; empty where it sends none.
        sends_features: whether the arrays that it sends with updates are computed from single images, as activations
            are, so that they leave a site only where its policy lets features out.
        copies: how many numbers the hook keeps for each of the network's weights while a batch is trained, beside
            companions; counted into the memory that a job takes.
        case_by_case: whether the cases of a batch go through the network one after the other.
        weak_labels: whether it teaches from cases that are not labelled voxel by voxel; without such a hook they are
            left out.
        personal_parts: parts that the network of its personal model has after those of the plan's.
    """

    reports: ClassVar[Mapping[str, ReportField]] = {}
    prefix: ClassVar[str] = ""
    sends_features: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({LOCAL_STEPS})
    withholds: ClassVar[frozenset[str]] = frozenset()
    copies: ClassVar[int] = 0
    case_by_case: ClassVar[bool] = False
    weak_labels: ClassVar[bool] = False
    personal_parts: ClassVar[tuple[Part, ...]] = ()

    @property
    def pull(self) -> float:
        """The mu of a term mu / 2 ||w - w_global||^2 that the hook adds to the loss; 0 without one."""
        return 0.0

    def check_plan(self, plan: Plan) -> None:
        """Refuse a plan whose settings contradict this method; called once, when the trainer is built.

        Raises:
            ConfigurationError: a setting of the plan must be another.
        """

    def statistics(self, training: LocalTraining) -> dict[str, float]:
        """Numbers of this site that the server adds up over all sites before round 0; every site then finds the sums
        in ``training.totals``. They leave the site with its answer to ``prepare``."""
        return {}

    def arrays_before_rounds(self, training: LocalTraining) -> Arrays:
        """Arrays of this site that the server combines before round 0, under names of the hook's own prefix: those that
        the job's ``SharedState`` declares so. They leave the site as the answer to ``share``."""
        return {}

    def companions(self, plan: Plan) -> dict[str, Companion]:
        """Further networks of this method by name; the trainer moves, saves and restores them. See ``Companion``."""
        return {}

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        """The global weights are loaded, no step has run; ``training.received_shared_arrays`` came with them."""

    def order(self, training: LocalTraining, round_number: int, epoch: int) -> Sequence[int] | None:
        """Indices of training cases in the order of an epoch, as many as there are cases; None leaves it at random."""
        return None

    def draws(self, training: LocalTraining, order: Sequence[int]) -> Sequence[Draw] | None:
        """For each case of an epoch's order what its patch follows from; None takes the place in the order."""
        return None

    def batch(self, training: LocalTraining, batch: Sample) -> Sample:
        """A batch on the device, ``image`` [B, C, ...] and ``classes`` [B, 1, ...], is about to be used; what is
        returned is used in its place."""
        return batch

    def step(self, training: LocalTraining, batch: Sample) -> float | None:
        """Do the whole step: gradients, optimizer, everything; returns the loss. None leaves it to the trainer."""
        return None

    def loss(
        self, training: LocalTraining, images: torch.Tensor, logits: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor | None:
        """A term that is added to the loss; None adds nothing."""
        return None

    def after_backward(self, training: LocalTraining) -> None:
        """Gradients are there, not yet clipped; they may be changed in place."""

    def after_step(self, training: LocalTraining) -> None:
        """The optimizer has stepped."""

    def before_fine_tuning(self, training: LocalTraining) -> None:
        """The site goes on with the last model for itself, without hooks; what the loss of the job is may be said here.

        ``training.totals`` are those of the run, and nothing else of its rounds needs to be there: the site's process
        may have been started anew.
        """

    def after_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        """All local epochs of the round are done."""

    def shared_arrays(self, training: LocalTraining) -> Arrays:
        """Arrays that travel to the server with the update of the round, under names of the hook's own prefix."""
        return {}

    def report(self, training: LocalTraining) -> dict[str, float]:
        """Those of the fields declared in ``reports`` that there is a number for."""
        return {}

    def personal_model(self, training: LocalTraining) -> Arrays | None:
        """A model of the site's own, which the last evaluation scores beside the global one; None without one."""
        return None

    def state(self) -> dict[str, Any]:
        """What the next round needs: tensors, numbers, strings, lists and dicts of them. Companions are kept anyway."""
        return {}

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Load what ``state`` gave after the site's last finished round; None before the first one."""


def check_hooks(hooks: Sequence[Any], plan: Plan) -> None:
    """Refuse what is no training hook, and hooks that cannot work with a plan or with each other.

    Raises:
        ConfigurationError: see ``TrainingHook.check_plan``; or more than one hook has the same moment to itself.
    """
    for hook in hooks:
        if not isinstance(hook, TrainingHook):
            raise ConfigurationError("executor.hooks", type(hook).__name__, "a training hook")
        hook.check_plan(plan)
    for moment in _SINGLE:
        own = [type(hook).__name__ for hook in hooks if replaces(hook, moment)]
        if len(own) > 1:
            raise ConfigurationError("executor.hooks", own, f"hooks of which one at most has a `{moment}` of its own")


def personal_plan(plan: Plan, hooks: Iterable[object]) -> Plan:
    """The plan of the models that sites of a job have for themselves, which may be of a larger network.

    Args:
        plan: of the job.
        hooks: of the job, or their classes; what is no hook adds nothing.
    """
    added = [part for hook in hooks for part in getattr(hook, "personal_parts", ())]
    return replace(plan, network=replace(plan.network, parts=(*plan.network.parts, *added))) if added else plan


def replaces(hook: TrainingHook, moment: str) -> bool:
    """Whether a hook has a method of its own for a moment."""
    return getattr(type(hook), moment) is not getattr(TrainingHook, moment)
