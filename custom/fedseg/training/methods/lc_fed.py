"""LC-Fed: private heads, calibrated where the heads of the sites disagree (Wang et al., ECCV 2022)."""

from __future__ import annotations

import torch
from torch import nn

from fedseg import allowed
from fedseg.contract.combinations import COUNTED_STEPS, PLAIN_STEPS
from fedseg.contract.plan import Plan
from fedseg.contract.round_settings import round_steps
from fedseg.errors import ConfigurationError
from fedseg.networks.parts.head_calibration import HEAD_CALIBRATION, calibration_of, head_of
from fedseg.networks.weights import Arrays
from fedseg.training.hooks import LocalTraining, TrainingHook
from fedseg.training.patches import Sample


class LCFed(TrainingHook):
    """Trains a network whose part ``head_calibration`` gives each site a head of its own.

    1. A round begins with the heads that all other sites had after the round before.
    2. In its first ``head_steps`` steps, at most half of them, only the head is trained; from then on all arrays are.
    3. Wherever the network is trained, the loss of the calibrated logits, times the part's ``weight``, is added to that
       of the head's; it trains the calibration, and nothing else. Scores and predictions come from calibrated logits.
    4. The head leaves for the other sites' calibration (``aggregators.site_heads.SiteHeads``), and is never averaged.

    The part ``site_attention`` beside it is the published channel selection. Sites count equally in the paper (FedAvg
    with ``weight_by`` ``"uniform"``). With a ``weight`` of 0 and no ``head_steps`` this is FedPer with the last
    convolution.
    """

    prefix = "heads/"
    withholds = frozenset({PLAIN_STEPS, COUNTED_STEPS})

    def __init__(self, head_steps: int = 10) -> None:
        """Choose how long the head is trained by itself.

        Args:
            head_steps: at the start of each round, from 0 up; at most half of the round's steps are.
        """
        self.head_steps = allowed.whole("head_steps", head_steps, least=0)
        self._done, self._alone = 0, 0
        self._body: list[nn.Parameter] = []

    def check_plan(self, plan: Plan) -> None:
        plan.network.require_part(HEAD_CALIBRATION, "LCFed")
        if plan.training.weight_average:
            # The average over a round's steps would undo those of the head.
            raise ConfigurationError("training.weight_average", plan.training.weight_average, "0 with LCFed")

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        calibration, head = calibration_of(training.network), head_of(training.network)
        received = {name.removeprefix(self.prefix): v for name, v in training.received_shared_arrays.items()}
        if "weight" in received:
            biases = received.get("bias", received["weight"][:, :, 0, 0, 0, 0] * 0)
            calibration.meet(torch.from_numpy(received["weight"]), torch.from_numpy(biases))
        own = {id(parameter) for module in (calibration, head) for parameter in module.parameters()}
        self._body = [p for p in training.network.parameters() if p.requires_grad and id(p) not in own]
        self._done = 0
        self._alone = min(self.head_steps, round_steps(training.settings, len(training.training_cases)) // 2)

    def batch(self, training: LocalTraining, batch: Sample) -> Sample:
        """Freeze the body before the first step, and free it after the head's."""
        if self._alone and self._done in (0, self._alone):
            self._train_body(self._done == self._alone)
        self._done += 1
        return batch

    def after_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        self._train_body(True)

    def shared_arrays(self, training: LocalTraining) -> Arrays:
        if not calibration_of(training.network).weight:
            return {}
        head = head_of(training.network).named_parameters()
        return {f"{self.prefix}{name}": value.detach().cpu().numpy().copy() for name, value in head}

    def _train_body(self, trained: bool) -> None:
        for parameter in self._body:
            parameter.requires_grad_(trained)
            parameter.grad = None
