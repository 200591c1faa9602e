"""How much privacy a row of releases costs: epsilon at a given delta, composed over all of them, and planned ahead.

``releases`` says what the numbers refer to. Gaussian releases without sampling have a closed form (Balle and Wang,
"Improving the Gaussian mechanism for differential privacy", 2018). Everything else is composed by dp-accounting: as
privacy loss distributions (Koskela, Jälkö and Honkela, 2020; Doroshenko et al., "Connect the dots", 2022), which are
tight, or as Rényi divergences (Mironov, 2017), an upper bound, which is what the older literature reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from scipy.optimize import brentq

from fedseg import allowed
from fedseg.errors import ConfigurationError
from fedseg.privacy.accounting.composition import Parts, adaptive, renyi, tight
from fedseg.privacy.accounting.releases import (
    ADD_REMOVE,
    MECHANISMS,
    NEIGHBOURS,
    PATIENT,
    REPLACE,
    SITE_UPDATE,
    UNITS,
    Release,
    common_unit,
    grouped,
    in_convention,
    relative_to_sensitivity,
    sensitivity,
)

__all__ = [
    "ACCOUNTANTS",
    "ADAPTIVE",
    "ADD_REMOVE",
    "MECHANISMS",
    "NEIGHBOURS",
    "PATIENT",
    "REPLACE",
    "SITE_UPDATE",
    "UNITS",
    "Release",
    "common_unit",
    "epsilon",
    "noise_for",
    "relative_to_sensitivity",
    "rounds_for",
    "sensitivity",
]

ACCOUNTANTS, ADAPTIVE = ("pld", "rdp"), "adaptive"
_COMPOSE = {"pld": tight, "rdp": renyi, ADAPTIVE: adaptive}

_LARGEST_MULTIPLIER = 1e6
_MOST_ROUNDS = 1_000_000
_SMALLEST_EPSILON = 1e-12
_TOLERANCE = 1e-4


def epsilon(releases: Iterable[Release], delta: float, accountant: str = "pld", neighbours: str = REPLACE) -> float:
    """Epsilon of all releases together: an upper bound, the same whatever their order.

    The unit is the smallest among the releases. A ``site update`` contains all its patients, so what hides the update
    hides each patient at least as well: beside a release per patient it counts in full, and the result then is an
    epsilon per patient. A release per patient says nothing of a whole update; the result must not be read so.

    Releases that were stated for adding or removing are converted where the result is for replacement: clipped
    contributions then differ by twice as much, and a pure epsilon counts twice.

    Args:
        releases: any number; none cost 0.
        delta: above 0 and below 1.
        accountant: ``pld`` (tight) or ``rdp``, for releases that are planned beforehand; ``adaptive``, the ledger's,
            also for such as were chosen after the results of others were seen.
        neighbours: the convention of the result.

    Returns:
        0 or more; infinite where a release has no noise.

    Raises:
        ConfigurationError: an argument is out of its range; a release for replacement cannot be stated for adding or
            removing; ``rdp`` cannot compose sampled releases under replacement.
    """
    allowed.number("delta", delta, above=0, below=1)
    allowed.one_of("accountant", accountant, tuple(_COMPOSE))
    allowed.one_of("neighbours", neighbours, NEIGHBOURS)
    kinds = grouped(in_convention(release, neighbours) for release in releases)
    if any(kind.noiseless for kind in kinds):
        return math.inf
    parts = _parts([kind for kind in kinds if kind.epsilon != 0], neighbours)
    return _COMPOSE[accountant](parts, delta)


def noise_for(
    target: float,
    delta: float,
    rounds: int,
    sampling_rate: float = 1.0,
    neighbours: str = REPLACE,
    accountant: str = "pld",
) -> float:
    """The least noise multiplier (over the sensitivity) with which ``rounds`` Gaussian releases cost ``target``.

    Args:
        target: epsilon, above 0.
        delta: above 0 and below 1.
        rounds: 1 or more.
        sampling_rate, neighbours, accountant: as in ``Release`` and ``epsilon``.

    Returns:
        A multiplier at most 1e-4 (relative) above the least one; its epsilon never exceeds ``target``.

    Raises:
        ConfigurationError: an argument is out of its range, or no multiplier up to a million is enough.
    """
    allowed.number("epsilon", target, above=0)
    allowed.number("delta", delta, above=0, below=1)
    allowed.whole("rounds", rounds)

    def excess(log_multiplier: float) -> float:
        """Above 0 if the noise is too small; on scales on which the course is almost a straight line."""
        plan = _plan(math.exp(log_multiplier), rounds, sampling_rate, neighbours)
        return math.log(max(epsilon([plan], delta, accountant, neighbours), _SMALLEST_EPSILON) / target)

    step, high = math.log(2), 0.0
    while excess(high) > 0:
        high += step
        if high > math.log(_LARGEST_MULTIPLIER):
            raise ConfigurationError("epsilon", target, "larger: no noise multiplier up to a million reaches it")
    low = high - step
    while excess(low) <= 0:
        low, high = low - step, low
    found = float(brentq(excess, low, high, xtol=_TOLERANCE / 4))
    while excess(found) > 0:
        found += _TOLERANCE / 4
    return math.exp(found)


def rounds_for(
    target: float,
    delta: float,
    multiplier: float,
    sampling_rate: float = 1.0,
    neighbours: str = REPLACE,
    accountant: str = "pld",
) -> int:
    """How many Gaussian releases with this noise multiplier (over the sensitivity) fit into ``target``; 0 if none.

    Arguments and errors are those of ``noise_for``; ``multiplier`` is above 0.
    """
    allowed.number("epsilon", target, above=0)
    allowed.number("noise_multiplier", multiplier, above=0)
    return _last_that(
        lambda rounds: (
            epsilon([_plan(multiplier, rounds, sampling_rate, neighbours)], delta, accountant, neighbours) <= target
        )
    )


def _parts(kinds: Sequence[Release], neighbours: str) -> Parts:
    noisy = [(kind.mechanism, kind.noise_multiplier or 0.0, kind.sampling_rate, kind.count) for kind in kinds]
    return Parts(
        gaussian=math.fsum(n / m**2 for name, m, q, n in noisy if name == "gaussian" and q == 1),
        sampled=[(m, q, n) for name, m, q, n in noisy if name == "gaussian" and q < 1],
        laplace=[(m, n) for name, m, _, n in noisy if name == "laplace"],
        pure=[(kind.epsilon, kind.count) for kind in kinds if kind.epsilon is not None],
        replaced=neighbours == REPLACE,
    )


def _plan(multiplier: float, rounds: int, sampling_rate: float, neighbours: str) -> Release:
    return Release(
        "gaussian", multiplier, unit=PATIENT, sampling_rate=sampling_rate, count=rounds, neighbours=neighbours
    )


def _last_that(fits: Callable[[int], bool]) -> int:
    """The largest whole number up to a million that fits, where none fits after one that does not; 0 if 1 does not."""
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
        if low >= _MOST_ROUNDS:
            return _MOST_ROUNDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
