"""The base of methods that teach from pseudo-labels of the received model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from fedseg.allowed import number, one_of, whole
from fedseg.contract.combinations import COUNTED_STEPS, LOCAL_STEPS, PLAIN_STEPS
from fedseg.contract.plan import Plan
from fedseg.contract.report import TAUGHT_CASES, ReportField
from fedseg.errors import ConfigurationError
from fedseg.networks.parts.deep_supervision import DEEP_SUPERVISION
from fedseg.networks.weights import Arrays
from fedseg.training.cache import CaseCache
from fedseg.training.hooks import LocalTraining, TrainingHook
from fedseg.training.inference import infer_logits
from fedseg.training.optimisation import check_loss
from fedseg.training.patches import Sample
from fedseg.training.pseudo_labels import BOX_FORMS, BoxRule, PseudoLabel, TaughtCases, refined


class TaughtByLabels(TrainingHook, ABC):
    """Makes pseudo-labels of weakly labelled cases once a round, with the received networks, and trains with them.

    Attributes:
        networks: how many learn.
    """

    weak_labels = True
    withholds = frozenset({LOCAL_STEPS, PLAIN_STEPS, COUNTED_STEPS})
    networks: ClassVar[int] = 1
    reports: ClassVar[Mapping[str, ReportField]] = {
        TAUGHT_CASES: ReportField("training cases from which the round learned", 0, whole=True)
    }

    def __init__(self, strength: float, from_round: int, box_overlap: float, box_form: str) -> None:
        self.strength = number("strength", strength, least=0)
        self.from_round = whole("from_round", from_round, least=0)
        least = number("box_overlap", box_overlap, least=0, most=1)
        self.rule = BoxRule(least, one_of("box_form", box_form, BOX_FORMS))
        self._labelled: CaseCache | None = None
        self._taught = 0

    @abstractmethod
    def learners(self, training: LocalTraining) -> Sequence[nn.Module]:
        """The networks that learn; the first is, or stands for, the network in training."""

    @abstractmethod
    def labels(self, training: LocalTraining, found: Sequence[np.ndarray]) -> Sequence[np.ndarray] | None:
        """What each learner learns from in a case, class values [X, Y, Z]; None leaves the case out.

        Args:
            training: at the site.
            found: refined pseudo-labels of the learners, in their order.
        """

    def check_plan(self, plan: Plan) -> None:
        """Refuse other kinds of task, and outputs that have no pseudo-labels."""
        name = type(self).__name__
        if not plan.objective.partial:
            raise ConfigurationError("task.objective", plan.task.objective, f"'segmentation' with {name}")
        parts = [part.name for part in plan.network.parts]
        if DEEP_SUPERVISION in parts:
            raise ConfigurationError("network.parts", parts, f"a list without {DEEP_SUPERVISION!r} with {name}")

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        found: dict[int, PseudoLabel] = {}
        self._labelled = training.training_cases
        if self.strength > 0 and round_number >= self.from_round:
            for index in range(len(training.weak_cases)):
                label = self._pseudo_label(training, index)
                if label is not None:
                    found[index] = label
        training.training_cases = TaughtCases(self._labelled, training.weak_cases, found, self.networks)
        self._taught = len(training.training_cases)

    def after_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        assert self._labelled is not None
        training.training_cases, self._labelled = self._labelled, None

    def report(self, training: LocalTraining) -> dict[str, float]:
        return {TAUGHT_CASES: self._taught}

    def step(self, training: LocalTraining, batch: Sample) -> float:
        """A step of each learner by itself; returns the loss of the first."""
        losses = []
        for position, network in enumerate(self.learners(training)):
            # What others draw (dropout) changes nothing for the first.
            with torch.random.fork_rng(devices=[]) if position else nullcontext():
                losses.append(self._learn(training, network, batch, position))
        return losses[0]

    def _learn(self, training: LocalTraining, network: nn.Module, batch: Sample, position: int) -> float:
        pseudo = batch.get("pseudo")
        own = {name: values for name, values in batch.items() if name != "pseudo"}
        if batch["classes"].shape[1] > 1:
            # In a round with pseudo-labels every case has a label map for each learner, masks the same one.
            own["classes"] = batch["classes"][:, position : position + 1]
        targets = training.objective.targets(own)
        training.optimizer.zero_grad(set_to_none=True)
        with training.autocast():
            logits = network(own["image"])
        loss = self._loss(training, logits.float(), targets, pseudo)
        told = float(loss.detach())
        check_loss(loss)
        loss.backward()
        training.apply_gradients()
        return told

    def _loss(
        self, training: LocalTraining, logits: torch.Tensor, targets: torch.Tensor, pseudo: torch.Tensor | None
    ) -> torch.Tensor:
        """The loss of all cases, in which each with a pseudo-label counts by ``strength``."""
        if pseudo is None or self.strength == 1:
            return training.loss(logits, targets)
        rows, total = pseudo.flatten(), logits.new_zeros(())
        for chosen, weight in ((~rows, 1.0), (rows, self.strength)):
            if bool(chosen.any()):
                share = weight * float(chosen.float().mean())
                total = total + share * training.loss(logits[chosen], targets[chosen])
        return total

    def _pseudo_label(self, training: LocalTraining, index: int) -> PseudoLabel | None:
        case, said = training.weak_cases[index], training.weak_cases.cases[index].supervision
        kind, task = training.objective, training.task
        assert case.possible is not None
        found = []
        for network in self.learners(training):
            network.eval()
            with training.autocast():
                overlap, device = training.settings.overlap, training.device
                logits = infer_logits(network, task, case.image, overlap, device, training.check_abort)
            with torch.inference_mode():
                values = kind.activate(logits)[0].numpy()
            label = refined(task, values, case.possible.numpy(), said, self.rule)
            if label is None:
                return None
            found.append(label)
        labels = self.labels(training, found)
        return None if labels is None else PseudoLabel.of(task, labels)
