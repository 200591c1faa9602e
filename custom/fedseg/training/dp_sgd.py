"""Training whose every step is differentially private for each patient: clipped gradients, and noise on their sum."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.privacy.accounting import PATIENT, Release, relative_to_sensitivity
from fedseg.training.hooks import TrainingHook

if TYPE_CHECKING:
    from fedseg.networks.weights import Arrays
    from fedseg.training.trainer import SiteTrainer


class PatientDPSGD(TrainingHook):
    """DP-SGD (Abadi et al., "Deep learning with differential privacy", CCS 2016) with the patient as its unit.

    The gradient of each case is clipped to an L2 norm, the clipped gradients of all cases of an epoch are added up,
    Gaussian noise is added to the sum, and the optimizer takes one step with it, divided by the number of cases. So an
    epoch is one release: no case is drawn at random, and none counts twice. Batches only say how many cases go through
    the network at a time. What the optimizer and the server do with noisy gradients afterwards costs nothing more.

    Exchanging one patient moves the sum by at most 2 * clip for each of his cases, which is what ``release`` charges.

    Attributes:
        finished: the round in which this hook made the gradients, after its last step; -1 before.
    """

    def __init__(self, clip: float, noise_multiplier: float) -> None:
        """Set the mechanism.

        Args:
            clip: largest L2 norm of one case's gradient over all trained parameters, above 0.
            noise_multiplier: standard deviation of the noise on the sum over ``clip``, from 0 (no protection) up.

        Raises:
            ConfigurationError: an argument is not allowed.
        """
        if type(clip) not in (int, float) or not clip > 0:
            raise ConfigurationError("clip", clip, "a number above 0")
        if type(noise_multiplier) not in (int, float) or not 0 <= noise_multiplier < math.inf:
            raise ConfigurationError("noise_multiplier", noise_multiplier, "a finite number from 0 up")
        if noise_multiplier and clip == math.inf:
            raise ConfigurationError("clip", clip, "finite where noise is measured against it")
        self.clip, self.noise_multiplier = float(clip), float(noise_multiplier)
        self.finished = -1
        self._round, self._epoch, self._seen = -1, 0, 0
        self._sum: list[torch.Tensor] = []

    def release(self, trainer: SiteTrainer) -> Release:
        """What a round costs each patient."""
        cases = Counter(case.patient for case in trainer.datalist.training)
        multiplier = relative_to_sensitivity(self.noise_multiplier) / max(cases.values())
        return Release("gaussian", multiplier, unit=PATIENT, count=trainer.settings.local_epochs)

    def before_round(self, trainer: SiteTrainer, global_weights: Arrays, round_number: int) -> None:
        """Check that nothing else touches the gradients.

        Raises:
            ConfigurationError: other hooks look at the data too, or a layer mixes the cases of a batch.
        """
        others = [type(hook).__name__ for hook in trainer.hooks if hook is not self]
        if others:
            raise ConfigurationError("executor.hooks", others, "empty: with DP-SGD nothing else may see the data")
        if any(isinstance(module, _BatchNorm) for module in trainer.network.modules()):
            raise ConfigurationError(
                "network.norm", "batch", "instance or group", "Batch normalisation mixes patients, so none is clipped."
            )
        self.finished, self._round, self._epoch, self._seen = -1, round_number, 0, 0
        self._sum = [torch.zeros_like(p) for p in _trained(trainer)]

    def backward(self, trainer: SiteTrainer, logits: torch.Tensor, classes: torch.Tensor) -> bool:
        """Add the clipped gradients of a batch's cases; with the last case of the epoch, noise and the mean."""
        parameters = _trained(trainer)
        for index in range(len(logits)):
            loss = trainer.loss(logits[index : index + 1].float(), classes[index : index + 1])
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
            if not math.isfinite(norm):
                raise RefusalError("loss", "A gradient is not finite; the learning rate may be too high.")
            scale = min(1.0, self.clip / norm) if norm else 1.0
            for total, gradient in zip(self._sum, gradients, strict=True):
                total.add_(gradient, alpha=scale)
        self._seen += len(logits)
        if self._seen == len(trainer.training_cases):
            noise = trainer.noise_source(self._round, self._epoch)
            for parameter, total in zip(parameters, self._sum, strict=True):
                drawn = torch.from_numpy(noise.normal(tuple(total.shape), self._scale())).to(total)
                parameter.grad = (total + drawn) / self._seen
                total.zero_()
            self._epoch, self._seen = self._epoch + 1, 0
        return True

    def after_round(self, trainer: SiteTrainer, global_weights: Arrays, round_number: int) -> None:
        """Note that all steps of the round were made from noisy sums."""
        if self._epoch == trainer.settings.local_epochs and self._seen == 0:
            self.finished = round_number

    def facts(self, trainer: SiteTrainer) -> dict[str, Any]:
        """What may be told of the mechanism."""
        count = sum(p.numel() for p in _trained(trainer))
        ratio = self.noise_multiplier * math.sqrt(count) / max(1, len(trainer.training_cases))
        return {"coordinates": count, "noise_to_signal": ratio}

    def _scale(self) -> float:
        return self.noise_multiplier * self.clip if self.noise_multiplier else 0.0


def _trained(trainer: SiteTrainer) -> list[torch.nn.Parameter]:
    return [parameter for parameter in trainer.network.parameters() if parameter.requires_grad]
