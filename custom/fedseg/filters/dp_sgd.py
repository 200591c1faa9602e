"""DP-SGD as a filter: it brings the hook that makes training private, and lets nothing out that the hook did not make.

Against the update noise of ``filters.noise`` the unit is smaller (one patient instead of all that a site sends), and
so the same epsilon costs far less: a patient moves a mean over n patients by the n-th part only.
"""

from __future__ import annotations

from typing import Any

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.filters.context import SiteContext
from fedseg.filters.noise import GuaranteedFilter, Protected
from fedseg.privacy.accounting import PATIENT, REPLACE, Release, relative_to_sensitivity
from fedseg.privacy.noise import NoiseSource
from fedseg.privacy.update import Update
from fedseg.training.dp_sgd import PatientDPSGD
from fedseg.training.hooks import TrainingHook


class DPSGD(GuaranteedFilter):
    """Trains with clipped and noisy gradients (see ``training.dp_sgd``) and charges each round to the ledger.

    The update itself passes unchanged: it follows from noisy gradients alone, since the hook makes all gradients of the
    site's training. What changes without a gradient, such as a running mean over images, does not pass.
    """

    accepts_extras = False

    def __init__(self, clip: float, noise_multiplier: float, delta: float = 1e-5) -> None:
        """Set the mechanism.

        Args:
            clip: largest L2 norm of one case's gradient, above 0.
            noise_multiplier: standard deviation of the noise on the sum of an epoch's gradients over ``clip``.
            delta: for which epsilon is stated; well below one over the number of patients.

        Raises:
            ConfigurationError: an argument is not allowed.
        """
        super().__init__(delta, REPLACE)
        if type(noise_multiplier) not in (int, float) or not noise_multiplier > 0:
            raise ConfigurationError("DPSGD.noise_multiplier", noise_multiplier, "a finite number above 0")
        self._hook = PatientDPSGD(clip, noise_multiplier)

    def describe(self) -> dict[str, Any]:
        return {
            "filter": type(self).__name__,
            "clip": self._hook.clip,
            "norm": "gradient of a case",
            "noise_multiplier": self._hook.noise_multiplier,
            "delta": self.delta,
            "neighbours": self.neighbours,
        }

    def training_hook(self) -> TrainingHook:
        """The hook that has to make the gradients; always the same one."""
        return self._hook

    def planned(self) -> Release:
        """One epoch over patients with one case each."""
        return Release("gaussian", relative_to_sensitivity(self._hook.noise_multiplier), unit=PATIENT)

    def protect(self, update: Update, noise: NoiseSource, context: SiteContext) -> Protected:
        trainer = context.trainer
        if trainer is None or self._hook not in trainer.hooks or self._hook.finished != context.round_number:
            raise RefusalError("privacy", "This round was not trained with DP-SGD, so its update does not leave.")
        parameters = {name for name, _ in trainer.network.named_parameters()}
        if others := sorted(set(update.arrays) - parameters):
            raise RefusalError("privacy", f"{', '.join(others)} of the update follows from no gradient, so it stays.")
        return Protected(update.arrays, self._hook.release(trainer), self._hook.facts(trainer))
