"""What left a site, as an accountant sees it, and the conventions that its numbers refer to.

Every number belongs to a unit of protection (what may differ between two data sets that an attacker must not tell
apart) and to a convention of how it differs:

- ``replace``: one unit is exchanged for any other. A clipped update, or a patient's clipped gradient, then moves the
  result by at most twice the clipping norm. This is the convention of the ledger and of all defaults.
- ``add-remove``: one unit is there or not (its contribution counts as zero). The result moves by at most the norm.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fedseg import allowed
from fedseg.errors import ConfigurationError

MECHANISMS = ("gaussian", "laplace", "pure")
SITE_UPDATE, PATIENT = "site update", "patient"
UNITS = (SITE_UPDATE, PATIENT)
REPLACE, ADD_REMOVE = "replace", "add-remove"
NEIGHBOURS = (REPLACE, ADD_REMOVE)

_NO_NOISE = 1e-100


@dataclass(frozen=True)
class Release:
    """One result that left, or several alike.

    Attributes:
        mechanism: ``gaussian``, ``laplace`` or ``pure`` (any mechanism with an epsilon and no delta, such as the
            sparse vector technique).
        noise_multiplier: standard deviation (``gaussian``) or scale (``laplace``) of the noise over the SENSITIVITY,
            which under replacement is twice the clipping norm; see ``relative_to_sensitivity``. 0 is no noise, with
            an infinite epsilon. Absent for ``pure``.
        epsilon: of ``pure``, under ``neighbours``; may be infinite. Absent otherwise.
        unit: what is protected: ``site update`` or ``patient``.
        sampling_rate: probability with which each unit takes part, drawn again for every release (Poisson sampling);
            below 1 for ``gaussian`` alone.
        count: how many such releases, 1 or more.
        neighbours: the convention that the noise multiplier or epsilon refers to.
    """

    mechanism: str
    noise_multiplier: float | None = None
    epsilon: float | None = None
    unit: str = SITE_UPDATE
    sampling_rate: float = 1.0
    count: int = 1
    neighbours: str = REPLACE

    def __post_init__(self) -> None:
        allowed.one_of("mechanism", self.mechanism, MECHANISMS)
        allowed.one_of("unit", self.unit, UNITS)
        allowed.one_of("neighbours", self.neighbours, NEIGHBOURS)
        allowed.whole("count", self.count)
        pure, described = self.mechanism == "pure", f"absent: the {self.mechanism} mechanism is described by its"
        if pure and self.noise_multiplier is not None:
            raise ConfigurationError("noise_multiplier", self.noise_multiplier, f"{described} epsilon")
        if not pure and self.epsilon is not None:
            raise ConfigurationError("epsilon", self.epsilon, f"{described} noise_multiplier")
        if pure:
            allowed.number("epsilon", self.epsilon, least=0, infinite=True)
        else:
            allowed.number("noise_multiplier", self.noise_multiplier, least=0)
        allowed.number("sampling_rate", self.sampling_rate, above=0, most=1, allowed="above 0, at most 1")
        if self.sampling_rate < 1 and self.mechanism != "gaussian":
            raise ConfigurationError("sampling_rate", self.sampling_rate, f"1 for the {self.mechanism} mechanism")

    @property
    def noiseless(self) -> bool:
        """Whether the release has no noise that could be counted, so that its epsilon is infinite."""
        if self.mechanism == "pure":
            return self.epsilon == math.inf
        return (self.noise_multiplier or 0.0) < _NO_NOISE


def sensitivity(clip: float, neighbours: str = REPLACE) -> float:
    """How far a clipped contribution can move the result: 2 * clip under replacement, clip under adding or removing.

    Holds for each norm by which the contribution is clipped: L2 for the Gaussian mechanism, L1 for the Laplace one.

    Raises:
        ConfigurationError: an unknown convention, or ``clip`` is not above 0.
    """
    allowed.one_of("neighbours", neighbours, NEIGHBOURS)
    allowed.number("clip", clip, above=0, infinite=True)
    return 2.0 * clip if neighbours == REPLACE else float(clip)


def relative_to_sensitivity(multiplier_of_clip: float, neighbours: str = REPLACE) -> float:
    """The accountant's noise multiplier, from noise that is stated as a multiple of the clipping norm."""
    return multiplier_of_clip / sensitivity(1.0, neighbours)


def grouped(releases: Iterable[Release]) -> list[Release]:
    """Equal releases as one with their number, in a fixed order: the cost of composing grows with the kinds alone."""
    counts: Counter[Release] = Counter()
    for release in releases:
        counts[replace(release, count=1, unit=SITE_UPDATE)] += release.count
    return sorted((replace(kind, count=count) for kind, count in counts.items()), key=repr)


def common_unit(releases: Sequence[Release]) -> str:
    """The unit that the composed epsilon of these releases protects; see ``epsilon``."""
    return PATIENT if any(release.unit == PATIENT for release in releases) else SITE_UPDATE


def in_convention(release: Release, neighbours: str) -> Release:
    """The same release in another convention; see ``accounting.epsilon``.

    Raises:
        ConfigurationError: it was stated for replacement and cannot be stated for adding or removing.
    """
    if release.neighbours == neighbours:
        return release
    if neighbours == ADD_REMOVE:
        raise ConfigurationError("neighbours", neighbours, "replace, because a release was stated for replacement")
    if release.mechanism == "pure":
        return replace(release, epsilon=2 * (release.epsilon or 0.0), neighbours=REPLACE)
    return replace(release, noise_multiplier=(release.noise_multiplier or 0.0) / 2, neighbours=REPLACE)
