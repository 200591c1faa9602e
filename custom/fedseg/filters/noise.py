"""Filters with a formal guarantee: a site's update is clipped, and noise is added before it leaves.

What is protected is the whole update of one site in one round, and with it every patient behind it: whatever the
site's data were, the clipped updates differ by no more than the sensitivity, which the noise hides. The server may be
curious or broken into; nobody has to be trusted but the site itself. Each release is entered in the site's ledger
before it leaves, and none leaves that would exceed the site's budget.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fedseg import allowed
from fedseg.contract.combinations import (
    COUNTED_STEPS,
    DURATION,
    EPSILON,
    OWN_MODELS,
    SCORES,
    STATISTICS,
    TRAIN_LOSS,
    VAL_LOSS,
)
from fedseg.contract.update import DENSE, Stage, Update
from fedseg.filters.base import UpdateFilter
from fedseg.filters.charging import charge_ledger, delta_at
from fedseg.filters.context import SiteContext
from fedseg.networks.weights import Arrays
from fedseg.privacy.accounting.epsilon import (
    MECHANISMS,
    NEIGHBOURS,
    REPLACE,
    SITE_UPDATE,
    UNITS,
    Release,
    relative_to_sensitivity,
)
from fedseg.privacy.accounting.ledger import Spent
from fedseg.privacy.mechanisms.noise import NoiseSource, SecureNoise, SeededNoise, gaussian_mechanism, laplace_mechanism

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Protected:
    """What a mechanism gives: arrays in a form, and what may be told of them."""

    arrays: Arrays
    facts: dict[str, Any]
    form: str = DENSE


class GuaranteedFilter(UpdateFilter):
    """A mechanism whose every release is charged to the site's ledger.

    A filter overrides ``planned``, ``protect`` and ``describe``. Noise is drawn from a cryptographic generator at a
    real site, and from a seeded one in a simulation, so that runs can be repeated.
    """

    stage: ClassVar[Stage] = Stage.NOISE
    accepts_shared_arrays: ClassVar[bool] = True
    guarantees: ClassVar[bool] = True
    provides = frozenset({EPSILON})
    # The steps that are told are those of one case of each patient, and a clip bounds how far any number of them goes.
    withholds = frozenset({TRAIN_LOSS, VAL_LOSS, SCORES, DURATION, STATISTICS, COUNTED_STEPS, OWN_MODELS})
    words: ClassVar[frozenset[str]] = frozenset({*NEIGHBOURS, *MECHANISMS, *UNITS})

    def __init__(self, delta: float, neighbours: str) -> None:
        super().__init__()
        allowed.number("delta", delta, above=0, below=1)
        allowed.one_of(f"{type(self).__name__}.neighbours", neighbours, NEIGHBOURS)
        self.delta, self.neighbours = delta, neighbours

    @abstractmethod
    def planned(self) -> Release:
        """What one release is charged, as the accountant understands it; the same in every round."""

    @abstractmethod
    def protect(self, update: Update, noise: NoiseSource, context: SiteContext) -> Protected:
        """What may leave; facts that depend on the data only in simulations."""

    def charge_ledger(self, release: Release, context: SiteContext) -> Spent:
        """Enter a release in the site's ledger; what is refused here stays.

        Raises:
            RefusalError: delta protects nobody, the budget is used up, or the ledger cannot be used (``privacy``).
        """
        return charge_ledger(release, context, self.delta, type(self).__name__, self.describe().get("clip"))

    def delta_at(self, context: SiteContext) -> float:
        """The delta at which this site counts: the filter's, or the policy's where that is smaller."""
        return delta_at(self.delta, context)

    def apply(self, update: Update, context: SiteContext) -> Update:
        # Charged before anything is computed from the update, and always the same: neither the cost nor a refusal may
        # depend on the data.
        release = self.planned()
        spent = self.charge_ledger(release, context)
        words = (context.plan.seed, context.site, context.round_number, "noise")
        noise = SeededNoise(*words) if context.profile.simulated else SecureNoise()
        return self.released(update, self.protect(update, noise, context), release, spent, context)

    def released(
        self, update: Update, protected: Protected, release: Release, spent: Spent, context: SiteContext
    ) -> Update:
        """The protected update with its entry in the record, epsilon in its report."""
        delta = self.delta_at(context)
        logger.info(
            "Round %d: epsilon %.4g at delta %g after %d releases (%s); the noise is %.3g times as long as the signal",
            context.round_number,
            spent.epsilon,
            delta,
            spent.releases,
            spent.unit,
            protected.facts.get("noise_to_signal", math.nan),
        )
        step = self.step(
            mechanism=release.mechanism,
            unit=spent.unit,
            epsilon=spent.epsilon,
            releases=spent.releases,
            without_guarantee=spent.without_guarantee,
            secure_noise=not context.profile.simulated,
            **protected.facts,
        )
        step["delta"] = delta
        report = replace(update.report, epsilon=spent.epsilon)
        return update.after(step, protected.arrays, protected.form, report)


class AdditiveNoise(GuaranteedFilter):
    """Clip an update to a norm and add noise in every coordinate, as much as ``noise_multiplier`` times the clip.

    A filter names its ``mechanism`` and, where it is not L2, the ``norm`` that it clips to, and overrides ``protect``.
    """

    mechanism: ClassVar[str]
    norm: ClassVar[str | None] = None

    def __init__(self, clip: float, noise_multiplier: float, delta: float = 1e-5, neighbours: str = REPLACE) -> None:
        """Set the mechanism.

        Args:
            clip: largest norm of an update, over all its arrays together; above 0.
            noise_multiplier: standard deviation or scale of the noise over ``clip``; above 0.
            delta: for which epsilon is stated; well below one over the number of patients.
            neighbours: ``replace`` (sensitivity 2 * clip) or ``add-remove`` (clip).

        Raises:
            ConfigurationError: an argument is not allowed.
        """
        super().__init__(delta, neighbours)
        where = type(self).__name__
        self.clip = float(allowed.number(f"{where}.clip", clip, above=0))
        self.noise_multiplier = float(allowed.number(f"{where}.noise_multiplier", noise_multiplier, above=0))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), **({} if self.norm is None else {"norm": self.norm})}

    def planned(self) -> Release:
        multiplier = relative_to_sensitivity(self.noise_multiplier, self.neighbours)
        return Release(self.mechanism, multiplier, unit=SITE_UPDATE, neighbours=self.neighbours)


class GaussianNoise(AdditiveNoise):
    """Clip to an L2 norm and add Gaussian noise: DP-FedAvg with the noise added by each site for itself.

    McMahan et al., "Learning differentially private recurrent language models" (ICLR 2018); here the server is not
    trusted, so that the noise of all sites adds up. The noise has the standard deviation noise_multiplier * clip in
    every coordinate. With n coordinates it is noise_multiplier * sqrt(n) times as long as the largest update
    (``noise_to_signal``): with a million of them it buries any update, so jobs share a small part of the network.
    """

    meaning = "clips the update and adds Gaussian noise: a formal guarantee for the whole update"
    mechanism = "gaussian"

    def protect(self, update: Update, noise: NoiseSource, context: SiteContext) -> Protected:
        count = sum(array.size for array in update.arrays.values())
        arrays = gaussian_mechanism(update.arrays, self.clip, self.noise_multiplier, noise)
        facts = {"coordinates": count, "noise_to_signal": self.noise_multiplier * math.sqrt(count)}
        return Protected(arrays, facts)


class LaplaceNoise(AdditiveNoise):
    """Clip to an L1 norm and add Laplace noise: a pure epsilon, at the price of more noise than ``GaussianNoise``.

    Dwork et al., "Calibrating noise to sensitivity in private data analysis" (TCC 2006). The noise has the scale
    noise_multiplier * clip in every coordinate; a single release needs no delta.
    """

    meaning = "clips the update and adds Laplace noise: a formal guarantee for the whole update"
    mechanism, norm = "laplace", "L1"
    words = AdditiveNoise.words | {norm}

    def protect(self, update: Update, noise: NoiseSource, context: SiteContext) -> Protected:
        # The L1 norm of n draws is about n scales.
        count = sum(array.size for array in update.arrays.values())
        arrays = laplace_mechanism(update.arrays, self.clip, self.noise_multiplier, noise)
        facts = {"coordinates": count, "noise_to_signal": self.noise_multiplier * count}
        return Protected(arrays, facts)
