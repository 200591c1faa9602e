"""Statistics with a formal guarantee for each patient: coarse counts of bounded weight, and noise in every bin.

Every patient weighs 1 in each histogram and each count of categories, however many cases he has and however many
voxels these have, or 0 where nothing is told. So exchanging one patient for another moves each of the H counts by 2 at
most in the L1 norm, and by sqrt(2) at most in the L2 norm, because two vectors without negative numbers whose sums are
at most 1 are no further apart. All counts leave as one release, whose sensitivity is 2 H (L1) or sqrt(2 H) (L2) under
replacement. The number of patients is not hidden: it is equal in data sets that differ in what one patient is. Their
numbers of cases are not, so this number stays, and so do moments.

Dwork et al., "Calibrating noise to sensitivity in private data analysis" (TCC 2006); for Gaussian noise see
``privacy.accounting``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedseg import allowed
from fedseg.errors import ConfigurationError
from fedseg.privacy.accounting.epsilon import PATIENT, Release, noise_for
from fedseg.privacy.mechanisms.noise import NoiseSource
from fedseg.statistics.histogram import Histogram
from fedseg.statistics.measuring import Tallies
from fedseg.statistics.quantities import Quantities
from fedseg.statistics.site_statistics import Statistics
from fedseg.statistics.tally import Tally

LAPLACE, GAUSSIAN = "laplace", "gaussian"


@dataclass(frozen=True)
class NoiseSetting:
    """How statistics are protected.

    >>> NoiseSetting(epsilon=2.0).release()
    Release(mechanism='laplace', noise_multiplier=0.5, epsilon=None, unit='patient', sampling_rate=1.0, count=1, \
neighbours='replace')

    Attributes:
        epsilon: of this one release, per patient; above 0.
        mechanism: ``laplace``, which needs no delta for itself, or ``gaussian``.
        delta: for which epsilon is stated, also in the ledger's sum; above 0 and below 1.
    """

    epsilon: float
    mechanism: str = LAPLACE
    delta: float = 1e-5

    def __post_init__(self) -> None:
        allowed.number("noise.epsilon", self.epsilon, above=0)
        allowed.one_of("noise.mechanism", self.mechanism, (LAPLACE, GAUSSIAN))
        allowed.number("noise.delta", self.delta, above=0, below=1)

    @property
    def multiplier(self) -> float:
        """Scale or standard deviation of the noise over the sensitivity."""
        return 1 / self.epsilon if self.mechanism == LAPLACE else noise_for(self.epsilon, self.delta, 1)

    def release(self) -> Release:
        """What leaves, as the accountant understands it."""
        return Release(self.mechanism, self.multiplier, unit=PATIENT)

    def sensitivity(self, counts: int) -> float:
        """How far one patient can move all ``counts`` histograms together, in the norm of the mechanism."""
        return 2.0 * counts if self.mechanism == LAPLACE else math.sqrt(2.0 * counts)


def protected(tallies: Tallies, setting: NoiseSetting, source: NoiseSource) -> Statistics:
    """What may leave with noise: every bin and every category of coarse counts.

    Args:
        tallies: of ``measure`` with coarse bins, in which each patient weighs 1.
        setting: of the noise.
        source: where draws come from.
    """
    counts: dict[str, Tally] = {**tallies.bins, **tallies.names}
    sensitivity = setting.sensitivity(len(counts))
    scale = setting.multiplier * sensitivity
    draw = source.laplace if setting.mechanism == LAPLACE else source.normal
    noisy = {name: tally.dense() + draw(tally.dense().shape, scale) for name, tally in counts.items()}
    patients = len(tallies.patients)
    return Statistics(
        patients,
        patients,
        0,
        False,
        {name: _histogram(tallies.what, name, noisy[name]) for name in tallies.bins},
        {},
        {name: dict(zip(tally.names, noisy[name].tolist(), strict=True)) for name, tally in tallies.names.items()},
        {
            "mechanism": setting.mechanism,
            "epsilon": setting.epsilon,
            "delta": setting.delta,
            "sensitivity": sensitivity,
            "scale": scale,
            "variance": scale**2 * (2 if setting.mechanism == LAPLACE else 1),
        },
    )


def parse_noise(declaration: Any) -> NoiseSetting | None:
    """The setting that a job declares; None for no noise.

    Raises:
        ConfigurationError: it is no object of ``epsilon``, ``mechanism`` and ``delta``, or a value is not allowed.
    """
    if declaration is None:
        return None
    if not isinstance(declaration, dict) or "epsilon" not in declaration:
        raise ConfigurationError("noise", declaration, 'an object such as {"epsilon": 2.0}, or null')
    allowed.known_names("noise", declaration, ("epsilon", "mechanism", "delta"), "noise has")
    return NoiseSetting(**declaration)


def _histogram(what: Quantities, name: str, values: np.ndarray) -> Histogram:
    first = what.scales[name].ends[0]
    return Histogram(what.scales[name], {(first + i, first + i): float(v) for i, v in enumerate(values)})
