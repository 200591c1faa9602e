"""DP-SGD as a filter: its hook makes training private, and no update passes that the hook did not make.

Against the update noise of ``filters.noise`` the unit is smaller (one patient instead of all that a site sends), and
so the same epsilon costs far less: a patient moves a mean over n patients by the n-th part only.
"""

from __future__ import annotations

from typing import Any

from fedseg import allowed
from fedseg.contract.combinations import EVERY_CASE, LOCAL_STEPS
from fedseg.contract.update import Update
from fedseg.errors import RefusalError
from fedseg.filters.context import SiteContext
from fedseg.filters.noise import GuaranteedFilter, Protected
from fedseg.privacy.accounting.epsilon import REPLACE, Release
from fedseg.privacy.mechanisms.noise import NoiseSource, SecureNoise
from fedseg.training.hooks import TrainingHook
from fedseg.training.patient_dp_sgd import PatientDPSGD

_NORM = "gradient of a patient"


class DPSGD(GuaranteedFilter):
    """Trains with clipped and noisy gradients (see ``PatientDPSGD``) and charges each round to the ledger.

    The update itself passes unchanged: it follows from noisy gradients alone, since the hook makes all gradients of the
    site's training. What changes without a gradient, such as a running mean over images, does not pass.
    """

    meaning = "training clips each patient's gradient and adds Gaussian noise: a formal guarantee for each patient"
    words = GuaranteedFilter.words | {_NORM}
    accepts_shared_arrays = False
    needs = GuaranteedFilter.needs | {EVERY_CASE}
    withholds = GuaranteedFilter.withholds | {LOCAL_STEPS}

    def __init__(self, clip: float, noise_multiplier: float, delta: float = 1e-5) -> None:
        """Set the mechanism.

        Args:
            clip: largest L2 norm of one patient's gradient, the sum over his cases; above 0.
            noise_multiplier: standard deviation of the noise on the sum of an epoch's gradients over ``clip``.
            delta: for which epsilon is stated; well below one over the number of patients.

        Raises:
            ConfigurationError: an argument is not allowed.
        """
        super().__init__(delta, REPLACE)
        allowed.number("DPSGD.noise_multiplier", noise_multiplier, above=0)
        self._hook = PatientDPSGD(clip, noise_multiplier, self._charge)
        self._context: SiteContext | None = None

    def describe(self) -> dict[str, Any]:
        return {
            "filter": type(self).__name__,
            "clip": self._hook.clip,
            "norm": _NORM,
            "noise_multiplier": self._hook.noise_multiplier,
            "delta": self.delta,
            "neighbours": self.neighbours,
        }

    def training_hook(self) -> TrainingHook:
        """The hook that has to make the gradients; always the same one."""
        return self._hook

    def before_task(self, context: SiteContext) -> None:
        self._context = context

    def planned(self) -> Release:
        """One epoch; a round is as many as the plan has local epochs."""
        return self._hook.release(1)

    def apply(self, update: Update, context: SiteContext) -> Update:
        # Charged by the hook, before the first step.
        protected = self.protect(update, SecureNoise(), context)
        release, spent = self._charged
        return self.released(update, protected, release, spent, context)

    def protect(self, update: Update, noise: NoiseSource, context: SiteContext) -> Protected:
        trainer = context.trainer
        if trainer is None or self._hook not in trainer.hooks or self._hook.finished != context.round_number:
            raise RefusalError("privacy", "This round was not trained with DP-SGD, so its update does not leave.")
        parameters = {name for name, _ in trainer.network.named_parameters()}
        if others := sorted(set(update.arrays) - parameters):
            raise RefusalError("privacy", f"{', '.join(others)} of the update follows from no gradient, so it stays.")
        return Protected(update.arrays, self._hook.facts(trainer))

    def _charge(self, release: Release, round_number: int) -> None:
        """Enter the whole round in the ledger before its first step."""
        context = self._context
        if context is None or context.round_number != round_number:
            raise RefusalError("privacy", "DP-SGD cannot charge this round, so it is not trained.")
        self._charged = release, self.charge_ledger(release, context)
