"""Training whose every step is differentially private for each patient: clipped gradients, and noise on their sum."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fedseg import allowed
from fedseg.data.datalist import same_patient
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.weights import Arrays
from fedseg.privacy.accounting.epsilon import PATIENT, Release, relative_to_sensitivity
from fedseg.training.hooks import LocalTraining, TrainingHook
from fedseg.training.patches import Sample

CaseGradient = tuple[tuple[torch.Tensor, ...], float]
Charge = Callable[[Release, int], None]


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

    def __init__(
        self, clip: float, noise_multiplier: float, max_cases_per_patient: int = 1, charge: Charge | None = None
    ) -> None:
        """Set the mechanism.

        Args:
            clip: largest L2 norm of one case's gradient over all trained parameters, above 0.
            noise_multiplier: standard deviation of the noise on the sum over ``clip``, from 0 (no protection) up.
            max_cases_per_patient: how many training cases one patient may have; each costs as much as all others, also
                where no patient has so many.
            charge: called with what a round costs before its first step, and with the round; what it raises ends the
                round. Optimizer and private layers are kept after every round, so what a round has learnt may leave
                with a later one, also if this round's own result never does.

        Raises:
            ConfigurationError: an argument is not allowed.
        """
        allowed.number("clip", clip, above=0, infinite=True)
        allowed.number("noise_multiplier", noise_multiplier, least=0, allowed="a finite number from 0 up")
        if noise_multiplier and clip == math.inf:
            raise ConfigurationError("clip", clip, "finite where noise is measured against it")
        allowed.whole("max_cases_per_patient", max_cases_per_patient)
        self.clip, self.noise_multiplier = float(clip), float(noise_multiplier)
        self.max_cases_per_patient, self.charge = max_cases_per_patient, charge
        self.finished = -1
        self._round, self._epoch, self._seen = -1, 0, 0
        self._sum: list[torch.Tensor] = []

    def release(self, training: LocalTraining) -> Release:
        """What a round costs each patient.

        Raises:
            RefusalError: a patient has more cases than the job counts on (reason ``privacy``).
        """
        cases = Counter(same_patient(case.patient) for case in training.datalist.training)
        if max(cases.values()) > self.max_cases_per_patient:
            raise RefusalError(
                "privacy",
                f"A patient of this site has more than {self.max_cases_per_patient} training case(s). Keep one case of "
                "each patient, or set DPSGD's max_cases_per_patient, which every patient then pays for.",
            )
        multiplier = relative_to_sensitivity(self.noise_multiplier) / self.max_cases_per_patient
        return Release("gaussian", multiplier, unit=PATIENT, count=training.settings.local_epochs)

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        """Check that nothing else touches the gradients, and charge the round.

        Raises:
            ConfigurationError: other hooks look at the data too, or a layer mixes the cases of a batch.
            RefusalError: a patient has too many cases, or the round cannot be charged (reason ``privacy``).
        """
        others = [type(hook).__name__ for hook in training.hooks if hook is not self]
        if others:
            raise ConfigurationError("executor.hooks", others, "empty: with DP-SGD nothing else may see the data")
        if any(isinstance(module, _BatchNorm) for module in training.network.modules()):
            raise ConfigurationError(
                "network.norm", "batch", "instance or group", "Batch normalisation mixes patients, so none is clipped."
            )
        self.finished, self._round, self._epoch, self._seen = -1, round_number, 0, 0
        self._sum = [torch.zeros_like(p) for p in _trained(training)]
        if self.charge is not None:
            self.charge(self.release(training), round_number)

    def step(self, training: LocalTraining, batch: Sample) -> float:
        """Add the clipped gradients of a batch's cases; with the last case of the epoch add noise, and step."""
        logits = training.forward(batch["image"])
        loss = float(training.loss(logits.float(), batch["classes"]).detach())
        for gradients, norm in self._case_gradients(training, logits, batch):
            if math.isfinite(norm):
                scale = min(1.0, self.clip / norm) if norm else 1.0
                for total, gradient in zip(self._sum, gradients, strict=True):
                    total.add_(gradient, alpha=scale)
        self._seen += len(logits)
        if self._seen == len(training.training_cases):
            self._end_epoch(training)
        return loss

    def after_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        """Note that all steps of the round were made from noisy sums."""
        if self._epoch == training.settings.local_epochs and self._seen == 0:
            self.finished = round_number

    def facts(self, training: LocalTraining) -> dict[str, Any]:
        """What may be told of the mechanism."""
        count = sum(p.numel() for p in _trained(training))
        ratio = self.noise_multiplier * math.sqrt(count) / max(1, len(training.training_cases))
        return {"coordinates": count, "noise_to_signal": ratio}

    def _case_gradients(self, training: LocalTraining, logits: torch.Tensor, batch: Sample) -> list[CaseGradient]:
        """The gradient of each case of a batch, and its norm."""
        images, classes = batch["image"], batch["classes"]
        found = [_gradient(training, logits[i : i + 1], classes[i : i + 1]) for i in range(len(logits))]
        if all(math.isfinite(norm) for _, norm in found):
            return found
        # Zero times infinity is no number: in one batch a case that is not finite would spoil those beside it too.
        pairs = zip(images.split(1), classes.split(1), strict=True)
        return [_gradient(training, training.forward(image), truth) for image, truth in pairs]

    def _end_epoch(self, training: LocalTraining) -> None:
        """The release: noise on the sum of all cases, and a step with their mean."""
        noise = training.noise_source(self._round, self._epoch)
        scale = self.noise_multiplier * self.clip if self.noise_multiplier else 0.0
        training.optimizer.zero_grad(set_to_none=True)
        for parameter, total in zip(_trained(training), self._sum, strict=True):
            drawn = torch.from_numpy(noise.normal(tuple(total.shape), scale))
            noisy = total.detach().cpu().double() + drawn
            parameter.grad = noisy.to(device=total.device, dtype=total.dtype) / self._seen
            total.zero_()
        training.apply_gradients()
        self._epoch, self._seen = self._epoch + 1, 0


def _gradient(training: LocalTraining, logits: torch.Tensor, classes: torch.Tensor) -> CaseGradient:
    """The gradient of one case, and its L2 norm over all trained parameters."""
    loss = training.loss(logits.float(), classes)
    gradients = torch.autograd.grad(loss, _trained(training), retain_graph=True)
    return gradients, math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


def _trained(training: LocalTraining) -> list[torch.nn.Parameter]:
    return [parameter for parameter in training.network.parameters() if parameter.requires_grad]
