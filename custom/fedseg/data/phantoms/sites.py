"""How simulated sites differ: scanner, resolution, tumour size and number of cases, in proportion to one number."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

MINIMUM_CASES = 3
GOLDEN_RATIO = 0.6180339887


@dataclass(frozen=True)
class SiteStyle:
    """What one simulated site does to its images.

    Attributes:
        gain: factor on MR intensities; CT is calibrated, so there 1 % of gain is an offset of 0.5 HU.
        contrast: exponent on MR intensities; factor on the iodine enhancement of CT.
        noise: factor on the standard deviation of the noise.
        bias: factor on the strength of the low-frequency shading.
        blur: factor on the width of the point spread.
        spacing: factors on the voxel size (in plane, in plane, between slices); at least 1.
        lesion: factor on the radius of tumours.
    """

    gain: float = 1.0
    contrast: float = 1.0
    noise: float = 1.0
    bias: float = 1.0
    blur: float = 1.0
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    lesion: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form for the notes of a datalist."""
        return asdict(self)


# largest change at heterogeneity 1, as a natural logarithm: exp(0.6) = 1.8 times more, or less
_SPREAD = {"gain": 0.5, "contrast": 0.2, "noise": 0.6, "bias": 0.5, "blur": 0.5, "lesion": 0.16}
_CASES_SPREAD = 1.6  # of the cases beyond the minimum
_SPACING_SPREAD = (0.2, 0.25)


def site_style(seed: int, site: int, heterogeneity: float) -> SiteStyle:
    """The style of site ``site`` (from 1), whatever the number of other sites; all ones at heterogeneity 0."""
    changes = {name: np.exp(heterogeneity * s * _place(seed, site, name)) for name, s in _SPREAD.items()}
    plane, slices = (
        1 + heterogeneity * s * (1 + _place(seed, site, name)) / 2
        for s, name in zip(_SPACING_SPREAD, ("plane", "slices"), strict=True)
    )
    factors = {name: round(float(value), 4) for name, value in changes.items()}
    spacing = (round(plane, 2), round(plane, 2), round(slices, 2))
    return SiteStyle(**factors, spacing=spacing)


def case_counts(seed: int, sites: int, cases: int, heterogeneity: float) -> list[int]:
    """Number of cases of each site: mean ``cases``, never below 3, equal at heterogeneity 0."""
    shares = np.array([np.exp(heterogeneity * _CASES_SPREAD * _place(seed, s, "cases")) for s in range(1, sites + 1)])
    exact = shares / shares.sum() * (cases - MINIMUM_CASES) * sites
    counts = np.floor(exact + 1e-9).astype(int)
    missing = (cases - MINIMUM_CASES) * sites - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1  # largest remainders
    return [MINIMUM_CASES + int(c) for c in counts]


def split_counts(cases: int, test_fraction: float) -> tuple[int, int, int]:
    """Cases for training, validation (30 %, at least 1, and at least 2 out of 6) and test; training is never empty."""
    test = min(cases - 2, max(1, round(test_fraction * cases))) if test_fraction > 0 else 0
    validation = max(1 if cases < 6 else 2, round(0.3 * (cases - test)))
    validation = min(validation, cases - test - 1)
    return cases - validation - test, validation, test


def _place(seed: int, site: int, name: str) -> float:
    """A number from -1 to 1. Steps of the golden ratio spread even two or three sites over the whole range."""
    start = np.random.default_rng([seed, *name.encode()]).uniform()
    return 2 * ((start + site * GOLDEN_RATIO) % 1.0) - 1
