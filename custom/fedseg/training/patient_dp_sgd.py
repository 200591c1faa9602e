"""Training whose every step is differentially private for each patient: clipped gradients, and noise on their sum."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fedseg import allowed
from fedseg.data.datalist import same_patient
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.privacy.accounting.epsilon import PATIENT, Release, relative_to_sensitivity
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

    Exchanging one patient moves the sum by at most 2 * clip for each of his cases, which is what ``release`` charges. A
    gradient that is not finite counts as zero: a refusal would tell something of the patient, and cost nothing.

    Attributes:
        finished: the round in which this hook made the gradients, after its last step; -1 before.
    """

    makes_gradients = True

    def __init__(self, clip: float, noise_multiplier: float, max_cases_per_patient: int = 1) -> None:
        """Set the mechanism.

        Args:
            clip: largest L2 norm of one case's gradient over all trained parameters, above 0.
            noise_multiplier: standard deviation of the noise on the sum over ``clip``, from 0 (no protection) up.
            max_cases_per_patient: how many training cases one patient may have; each costs as much as all others, also
                where no patient has so many.

        Raises:
            ConfigurationError: an argument is not allowed.
        """
        allowed.number("clip", clip, above=0, infinite=True)
        allowed.number("noise_multiplier", noise_multiplier, least=0, allowed="a finite number from 0 up")
        if noise_multiplier and clip == math.inf:
            raise ConfigurationError("clip", clip, "finite where noise is measured against it")
        allowed.whole("max_cases_per_patient", max_cases_per_patient)
        self.clip, self.noise_multiplier = float(clip), float(noise_multiplier)
        self.max_cases_per_patient = max_cases_per_patient
        self.finished = -1
        self._round, self._epoch, self._seen = -1, 0, 0
        self._sum: list[torch.Tensor] = []

    def release(self, trainer: SiteTrainer) -> Release:
        """What a round costs each patient.

        Raises:
            RefusalError: a patient has more cases than the job counts on (reason ``privacy``).
        """
        cases = Counter(same_patient(case.patient) for case in trainer.datalist.training)
        if max(cases.values()) > self.max_cases_per_patient:
            raise RefusalError(
                "privacy",
                f"A patient of this site has more than {self.max_cases_per_patient} training case(s). Keep one case of "
                "each patient, or set DPSGD's max_cases_per_patient, which every patient then pays for.",
            )
        multiplier = relative_to_sensitivity(self.noise_multiplier) / self.max_cases_per_patient
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

    def backward(self, trainer: SiteTrainer, images: torch.Tensor, logits: torch.Tensor, classes: torch.Tensor) -> bool:
        """Add the clipped gradients of a batch's cases; with the last case of the epoch, noise and the mean."""
        parameters = _trained(trainer)
        found = [_gradient(trainer, logits[i : i + 1], classes[i : i + 1]) for i in range(len(logits))]
        if not all(math.isfinite(norm) for _, norm in found):
            # Zero times infinity is no number: in one batch a case that is not finite would spoil those beside it too.
            found = []
            for image, truth in zip(images.split(1), classes.split(1), strict=True):
                with trainer.autocast():
                    alone = trainer.network(image)
                found.append(_gradient(trainer, alone, truth))
        for gradients, norm in found:
            if math.isfinite(norm):
                scale = min(1.0, self.clip / norm) if norm else 1.0
                for total, gradient in zip(self._sum, gradients, strict=True):
                    total.add_(gradient, alpha=scale)
        self._seen += len(logits)
        if self._seen == len(trainer.training_cases):
            noise = trainer.noise_source(self._round, self._epoch)
            for parameter, total in zip(parameters, self._sum, strict=True):
                drawn = torch.from_numpy(noise.normal(tuple(total.shape), self._scale()))
                noisy = total.detach().cpu().double() + drawn
                parameter.grad = noisy.to(device=total.device, dtype=total.dtype) / self._seen
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


def _gradient(
    trainer: SiteTrainer, logits: torch.Tensor, classes: torch.Tensor
) -> tuple[tuple[torch.Tensor, ...], float]:
    """The gradient of one case, and its L2 norm over all trained parameters."""
    loss = trainer.loss(logits.float(), classes)
    gradients = torch.autograd.grad(loss, _trained(trainer), retain_graph=True)
    return gradients, math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


def _trained(trainer: SiteTrainer) -> list[torch.nn.Parameter]:
    return [parameter for parameter in trainer.network.parameters() if parameter.requires_grad]
