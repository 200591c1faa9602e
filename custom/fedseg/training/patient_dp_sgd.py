"""Training whose every step is differentially private for each patient: clipped gradients, and noise on their sum."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fedseg import allowed
from fedseg.contract.plan import Plan
from fedseg.errors import ConfigurationError
from fedseg.networks.weights import Arrays
from fedseg.privacy.accounting.epsilon import PATIENT, Release, relative_to_sensitivity
from fedseg.randomness import derive_seed, generator
from fedseg.training.hooks import Draw, LocalTraining, TrainingHook
from fedseg.training.optimisation import set_rate
from fedseg.training.patches import Sample

Charge = Callable[[Release, int], None]


class PatientDPSGD(TrainingHook):
    """DP-SGD (Abadi et al., "Deep learning with differential privacy", CCS 2016) with the patient as its unit.

    The gradients of all cases of a patient are added up, their sum is clipped to an L2 norm, the clipped sums of all
    patients of an epoch are added up, Gaussian noise is added, and the optimizer takes one step with it, divided by the
    number of patients. So an epoch is one release: no patient is drawn at random, and none counts twice. Cases go
    through the network one by one, a patient's one after the other; memory holds two gradients, however many cases
    there are. What the optimizer and the server do with noisy gradients afterwards costs nothing more.

    Exchanging one patient moves the sum by at most 2 * clip, however many cases either has: what is drawn for the
    others (order, patch, augmentation, dropout) follows from the job's seed and their own ids, and the learning rate
    from the epoch. A patient whose gradient is not finite counts as zero: a refusal would tell something of him, and
    cost nothing.

    Attributes:
        finished: the round in which this hook made the gradients, after its last step; -1 before.
    """

    # The sums of an epoch and of a patient; a case's own gradients take the place of the network's.
    copies = 2
    case_by_case = True

    def __init__(self, clip: float, noise_multiplier: float, charge: Charge | None = None) -> None:
        """Set the mechanism.

        Args:
            clip: largest L2 norm of one patient's gradient over all trained parameters, above 0.
            noise_multiplier: standard deviation of the noise on the sum over ``clip``, from 0 (no protection) up.
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
        self.clip, self.noise_multiplier, self.charge = float(clip), float(noise_multiplier), charge
        self.finished = -1
        self._round, self._epoch, self._seen = -1, 0, 0
        self._order: Sequence[int] = ()
        self._draws: Sequence[Draw] = ()
        self._sum: list[torch.Tensor] = []
        self._patient: list[torch.Tensor] = []

    def check_plan(self, plan: Plan) -> None:
        """Refuse what follows from other patients: from where in its batch a case stands, or how many batches there
        are."""
        usually = {"patches_per_case": 1, "patch_sizes": (), "forced_foreground": 0.0, "weight_average": 0.0}
        for name, usual in usually.items():
            if (value := getattr(plan.training, name)) != usual:
                raise ConfigurationError(f"training.{name}", value, f"{json.dumps(usual)} with DP-SGD")

    def release(self, epochs: int) -> Release:
        """What local epochs cost each patient."""
        return Release("gaussian", relative_to_sensitivity(self.noise_multiplier), unit=PATIENT, count=epochs)

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        """Check that nothing else touches the gradients, and charge the round.

        Raises:
            ConfigurationError: other hooks look at the data too, or a layer mixes the cases of a batch.
            RefusalError: the round cannot be charged (reason ``privacy``).
        """
        others = [type(hook).__name__ for hook in training.hooks if hook is not self]
        if others:
            raise ConfigurationError("executor.hooks", others, "empty: with DP-SGD nothing else may see the data")
        if any(isinstance(module, _BatchNorm) for module in training.network.modules()):
            raise ConfigurationError(
                "network.norm", "batch", "instance or group", "Batch normalisation mixes patients, so none is clipped."
            )
        self.finished, self._round, self._epoch, self._seen = -1, round_number, 0, 0
        self._sum, self._patient = ([torch.zeros_like(p) for p in _trained(training)] for _ in range(2))
        if self.charge is not None:
            self.charge(self.release(training.settings.local_epochs), round_number)

    def order(self, training: LocalTraining, round_number: int, epoch: int) -> Sequence[int]:
        """Patients in a random order, the cases of each one after the other."""
        cases: dict[str, list[int]] = {}
        for index, case in enumerate(training.datalist.training):
            cases.setdefault(case.patient, []).append(index)
        where, patients = (training.plan.seed, training.site, round_number, epoch, "order"), list(cases)
        return [index for place in generator(*where).permutation(len(patients)) for index in cases[patients[place]]]

    def draws(self, training: LocalTraining, order: Sequence[int]) -> Sequence[Draw]:
        """For each case its patient and its number among his: none depends on the cases of others."""
        patients, counts = [training.datalist.training[index].patient for index in order], Counter[str]()
        found: list[Draw] = []
        for patient in patients:
            found.append((patient, counts[patient]))
            counts[patient] += 1
        return found

    def step(self, training: LocalTraining, batch: Sample) -> float:
        """Add the gradients of a batch's cases; with the last case of the epoch add noise, and step."""
        if self._seen == 0:
            self._order = self.order(training, self._round, self._epoch)
            self._draws = self.draws(training, self._order)
        count = len(batch["image"])
        return sum(self._add(training, {k: v[i : i + 1] for k, v in batch.items()}) for i in range(count)) / count

    def after_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        """Note that all steps of the round were made from noisy sums."""
        if self._epoch == training.settings.local_epochs and self._seen == 0:
            self.finished = round_number

    def facts(self, training: LocalTraining) -> dict[str, Any]:
        """What may be told of the mechanism."""
        count = sum(p.numel() for p in _trained(training))
        ratio = self.noise_multiplier * math.sqrt(count) / max(1, training.datalist.patients("training"))
        return {"coordinates": count, "noise_to_signal": ratio}

    def _add(self, training: LocalTraining, case: Sample) -> float:
        """Add the gradient of one case [1, ...] to those of its patient; returns its loss."""
        where = (training.plan.seed, training.site, self._round, self._epoch, "network")
        torch.manual_seed(derive_seed(*where, *self._draws[self._seen]))
        loss = training.supervise(training.forward(case["image"]), training.objective.targets(case))
        # A case may leave parameters out, as those of another modality.
        gradients = torch.autograd.grad(loss, _trained(training), allow_unused=True)
        for total, gradient in zip(self._patient, gradients, strict=True):
            if gradient is not None:
                total.add_(gradient)
        self._seen += 1
        if self._seen == len(self._draws) or self._draws[self._seen][1] == 0:
            self._end_patient()
        if self._seen == len(self._draws):
            self._end_epoch(training)
        return float(loss.detach())

    def _end_patient(self) -> None:
        """Clip the sum of a patient's gradients, and add it to those of the others."""
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in self._patient))
        scale = min(1.0, self.clip / norm) if norm else 1.0
        for total, gradient in zip(self._sum, self._patient, strict=True):
            if math.isfinite(norm):
                total.add_(gradient, alpha=scale)
            gradient.zero_()

    def _end_epoch(self, training: LocalTraining) -> None:
        """The release: noise on the sum of all patients, and a step with their mean."""
        noise = training.noise_source(self._round, self._epoch)
        scale = self.noise_multiplier * self.clip if self.noise_multiplier else 0.0
        patients = sum(1 for draw in self._draws if draw[1] == 0)
        training.optimizer.zero_grad(set_to_none=True)
        for parameter, total in zip(_trained(training), self._sum, strict=True):
            drawn = torch.from_numpy(noise.normal(tuple(total.shape), scale))
            noisy = total.detach().cpu().double() + drawn
            parameter.grad = noisy.to(device=total.device, dtype=total.dtype) / patients
            total.zero_()
        # The trainer's own course follows from the number of batches, which the number of cases decides.
        progress = (self._round + self._epoch / training.settings.local_epochs) / training.total_rounds
        set_rate(training.optimizer, training.settings, progress)
        training.apply_gradients()
        self._epoch, self._seen = self._epoch + 1, 0


def _trained(training: LocalTraining) -> list[torch.nn.Parameter]:
    return [parameter for parameter in training.network.parameters() if parameter.requires_grad]
