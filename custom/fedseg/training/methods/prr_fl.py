"""PRR-FL: aggregation by frequencies, and a personal model that learns from a deputy (Chen et al., MICCAI 2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fedseg import allowed
from fedseg.contract.combinations import COUNTED_STEPS, PLAIN_STEPS
from fedseg.contract.plan import Plan
from fedseg.errors import ConfigurationError
from fedseg.networks.frequencies import mix_frequencies
from fedseg.networks.weights import Arrays, set_weights
from fedseg.tasks.objective import MEAN
from fedseg.training.companions import Companion
from fedseg.training.hooks import LocalTraining, TrainingHook
from fedseg.training.methods.personal_model import PersonalModel
from fedseg.training.site_round import scores_by_output

RECOVER, EXCHANGE, SUBLIMATE = "recover", "exchange", "sublimate"
_DEPUTY = "deputy"


class PRRFL(PersonalModel):
    """The site's network is a deputy, which takes the low frequencies of the global model only; a personal model stays.

    1. Progressive Fourier aggregation: a round starts from the global model in which the convolutions have the high
       frequencies of the deputy as this site left it (``networks.frequencies``). The window of low frequencies grows
       over the rounds up to ``share``.
    2. Deputy-enhanced transfer: r is the validation score of that deputy over the personal model's. Below ``recover``
       the personal model teaches the deputy, from there to ``exchange`` both teach each other, from there on the deputy
       teaches the personal model. To teach is a term of ``teaching`` times the mean squared difference of the
       activated outputs. Without validation scores both teach each other.

    The personal model has the plan's optimizer and local epochs, after the deputy's. Each round takes three times the
    time, and two more validations. How spectra are averaged is the server's part:

    - FedAvg: as complex numbers, which is the mean of the weights.
    - ``AmplitudePhaseAvg``: amplitudes and phases each for itself, as in the published code up to its last version.
    - ``AmplitudePhaseAvg``, and ``own_phase`` at the sites: amplitudes alone, as in the paper and in that last version.
      Only of a kernel's mean, whose phase is its sign, the amplitude is smaller where sites differ in the sign.
    """

    # The change of the weights holds what a site keeps of its high frequencies.
    withholds = frozenset({PLAIN_STEPS, COUNTED_STEPS})

    def __init__(
        self,
        share: float = 0.7,
        recover: float = 0.7,
        exchange: float = 0.9,
        teaching: float = 10.0,
        grow: bool = True,
        own_phase: bool = False,
    ) -> None:
        """Choose how much is shared, and who teaches.

        Args:
            share: width of the window of low frequencies after the last round, from 0 (none) to 1 (all).
            recover, exchange: bounds of r, from 0 up and in this order.
            teaching: weight of the term, from 0 up.
            grow: whether the window grows from round to round; else it is ``share`` in every round.
            own_phase: whether the deputy keeps its own phases at low frequencies too, and takes amplitudes only.
        """
        self.share = allowed.number("share", share, least=0, most=1)
        self.recover = allowed.number("recover", recover, least=0)
        self.exchange = allowed.number("exchange", exchange, least=0)
        if exchange < recover:
            raise ConfigurationError("exchange", exchange, f"at least recover, which is {recover}")
        self.teaching = allowed.number("teaching", teaching, least=0)
        self.grow = allowed.switch("grow", grow)
        self.own_phase = allowed.switch("own_phase", own_phase)
        self.stage = EXCHANGE

    def companions(self, plan: Plan) -> dict[str, Companion]:
        return {**super().companions(plan), _DEPUTY: Companion(plan.build_network().requires_grad_(False))}

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        super().before_round(training, global_weights, round_number)
        personal, deputy = training.companions["personal"], training.companions[_DEPUTY]
        mixed = global_weights
        if deputy.started:
            grown = (round_number + 1) / training.total_rounds if self.grow else 1.0
            own, width = deputy.weights(), self.share * min(1.0, grown)
            mixed = {n: mix_frequencies(own[n], v, width, self.own_phase) for n, v in global_weights.items()}
        self.stage = EXCHANGE
        if self.teaching:
            self.stage = self._stage(training, _score(training, mixed), _score(training, personal.weights()))
        set_weights(training.network, mixed)

    def loss(
        self, training: LocalTraining, images: torch.Tensor, logits: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor | None:
        if not self.teaching or self.stage == SUBLIMATE:
            return None
        return self.teaching * lesson(training, training.companions["personal"].network, images, logits)

    def train_personal(self, training: LocalTraining) -> None:
        taught = self.teaching and self.stage != RECOVER
        training.train_companion("personal", [_Taught(training.network, self.teaching)] if taught else [])
        training.companions[_DEPUTY].network.load_state_dict(training.network.state_dict())

    def _stage(self, training: LocalTraining, deputy: float | None, personal: float | None) -> str:
        if deputy is None or personal is None:
            return EXCHANGE
        if not training.objective.primary.better(1.0, 0.0):
            deputy, personal = personal, deputy
        if deputy < self.recover * personal:
            return RECOVER
        return EXCHANGE if deputy < self.exchange * personal else SUBLIMATE

    def state(self) -> dict[str, Any]:
        return {"stage": self.stage}

    def load_state(self, state: dict[str, Any] | None) -> None:
        self.stage = str(state["stage"]) if state else EXCHANGE


class _Taught(TrainingHook):
    """A network in training that learns from another, which stays as it is."""

    def __init__(self, teacher: nn.Module, weight: float) -> None:
        self.teacher, self.weight = teacher, weight

    def loss(
        self, training: LocalTraining, images: torch.Tensor, logits: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor | None:
        return self.weight * lesson(training, self.teacher, images, logits)


def lesson(training: LocalTraining, teacher: nn.Module, images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Mean squared difference between the activated outputs of a network and of its teacher, a scalar.

    Args:
        training: of the site.
        teacher: it is run as in validation, and nothing of it changes.
        images: [B, C, ...].
        logits: of the network, [B, out, ...].
    """
    learning = teacher.training
    teacher.eval()
    with torch.no_grad(), training.autocast():
        given = teacher(images)
    teacher.train(learning)
    kind = training.objective
    return functional.mse_loss(kind.activate(logits.float()), kind.activate(given.float()))


def _score(training: LocalTraining, weights: Arrays) -> float | None:
    return scores_by_output(training.objective, training.validate(weights))[MEAN]
