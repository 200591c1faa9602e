"""Selective sharing by the sparse vector technique (Li et al., "Privacy-preserving federated brain tumour
segmentation", MLMI 2019), in the variant that is differentially private.

Of the published variants several are not private (Lyu, Su and Li, "Understanding the sparse vector technique for
differential privacy", 2017). This follows their standard one (algorithm 7): one threshold noise for a whole pass, not
refreshed after an acceptance; noise on each question that grows with the number of acceptances that are allowed; a stop
at the last of them; and released values with noise of their own.

Sensitivities, for one site's update against any other in its place (replacement), with every coordinate limited to
[-gamma, gamma]: the question asks for |v| in [0, gamma] and so moves by at most gamma; a released value moves by at
most 2 gamma, and ``count`` of them by 2 gamma count in the L1 norm. Hence the scales of the Laplace noise

    threshold  gamma / epsilon_threshold
    question   2 count gamma / epsilon_query
    release    2 gamma count / epsilon_release

and one pass over all coordinates is (epsilon_threshold + epsilon_query)-private, however many coordinates there are;
the values that are released are epsilon_release-private together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedseg import allowed
from fedseg.errors import ConfigurationError
from fedseg.privacy.mechanisms.clipping import check_floating, clip_coordinates
from fedseg.privacy.mechanisms.noise import NoiseSource
from fedseg.privacy.mechanisms.top_k import largest_of

SINGLE_PASS, EVERY_PASS = "single_pass", "every_pass"
CHARGES = (SINGLE_PASS, EVERY_PASS)


@dataclass(frozen=True)
class SparseVectorResult:
    """What was selected.

    Attributes:
        indices: of the released coordinates, rising, without repetition [accepted].
        released: their noisy values, within [-gamma, gamma] [accepted] float64.
        passes: how often the remaining coordinates were asked.
        epsilon: what the release costs, without a delta, per site update under replacement.
        overlap_with_top_k: the fraction of the selected coordinates that are among the equally many largest ones;
            None when nothing was selected. Computed from the exact update, so NOT covered by epsilon: it is for the
            site's own records and must not leave.
    """

    indices: np.ndarray
    released: np.ndarray
    passes: int
    epsilon: float
    overlap_with_top_k: float | None


def sparse_vector(
    values: np.ndarray,
    count: int,
    clip: float,
    threshold: float,
    epsilon_threshold: float,
    epsilon_query: float,
    epsilon_release: float,
    noise: NoiseSource,
    charge: str = SINGLE_PASS,
    max_passes: int = 100,
) -> SparseVectorResult:
    """Select and release up to ``count`` coordinates whose noisy magnitude reaches a noisy threshold.

    1. The coordinates are asked in a random order, each once in a pass.
    2. One is accepted if |clip(v)| + noise >= threshold + noise; the pass ends at the last acceptance that is allowed.
    3. ``single_pass`` stops here, also with fewer acceptances. ``every_pass`` asks the coordinates that are left, with
       fresh noise on threshold and questions, and for the acceptances that are left; each pass is charged.
    4. An accepted value is released as clip(clip(v) + noise); the second clipping needs no budget.

    Args:
        values: the update per local step [n], floating point.
        count: acceptances that are allowed, 1 to n.
        clip: gamma, above 0; finite unless every epsilon is infinite.
        threshold: tau, in the units of ``values``; it must not be chosen by looking at them.
        epsilon_threshold: for the noise on the threshold, in every pass; above 0, infinite for no noise.
        epsilon_query: for the noise on the questions, in every pass.
        epsilon_release: for the noise on all released values together, charged once.
        noise: where draws come from.
        charge: ``single_pass`` or ``every_pass``.
        max_passes: bounds ``every_pass``, and so its epsilon. The number of passes depends on the update; for pure
            epsilon the sum over the passes that happened is a guarantee all the same (Rogers et al., 2016).

    Returns:
        See ``SparseVectorResult``. The cost is charged in full also when fewer coordinates were accepted.

    Raises:
        ConfigurationError: an argument is out of its range.
        RefusalError: the values are not of floating point or not finite (reason ``weights``).
    """
    epsilons = {"threshold": epsilon_threshold, "query": epsilon_query, "release": epsilon_release}
    _check(values, count, clip, threshold, epsilons, charge, max_passes)
    clipped = clip_coordinates({"values": values}, clip)["values"].astype(np.float64)
    left, accepted, passes = np.arange(values.size), np.empty(0, np.intp), 0
    while passes < (max_passes if charge == EVERY_PASS else 1) and accepted.size < count:
        allowed = count - accepted.size
        positions = _one_pass(np.abs(clipped[left]), allowed, clip, threshold, epsilons, noise)
        accepted, left, passes = np.append(accepted, left[positions]), np.delete(left, positions), passes + 1
    indices = np.sort(accepted)
    noisy = clipped[indices] + noise.laplace(indices.shape, _scale(2 * clip, count, epsilon_release))
    total = passes * (epsilon_threshold + epsilon_query) + epsilon_release
    return SparseVectorResult(indices, np.clip(noisy, -clip, clip), passes, total, _overlap(values, indices))


def _one_pass(
    magnitudes: np.ndarray,
    allowed: int,
    clip: float,
    threshold: float,
    epsilons: dict[str, float],
    noise: NoiseSource,
) -> np.ndarray:
    """Positions that one pass accepts; the noise of the questions after the last acceptance is not released."""
    level = threshold + float(noise.laplace((1,), _scale(clip, 1, epsilons["threshold"]))[0])
    order = np.argsort(noise.uniform(magnitudes.shape))
    asked = magnitudes[order]
    asked += noise.laplace(magnitudes.shape, _scale(2 * clip, allowed, epsilons["query"]))
    return order[np.flatnonzero(asked >= level)[:allowed]]


def _scale(sensitivity: float, count: int, epsilon: float) -> float:
    return 0.0 if epsilon == math.inf else sensitivity * count / epsilon


def _overlap(values: np.ndarray, indices: np.ndarray) -> float | None:
    if not indices.size:
        return None
    return float(largest_of(np.abs(values), indices.size)[indices].mean())


def _check(
    values: Any,
    count: Any,
    clip: float,
    threshold: Any,
    epsilons: dict[str, float],
    charge: str,
    max_passes: Any,
) -> None:
    check_floating({"values": values})
    if values.ndim != 1 or not values.size:
        raise ConfigurationError("values", values.shape, "one row of coordinates, at least one")
    allowed.whole("count", count, most=values.size, allowed=f"a whole number from 1 to the {values.size} coordinates")
    allowed.number("clip", clip, above=0, infinite=True)
    allowed.number("threshold", threshold, least=0)
    for name, value in epsilons.items():
        allowed.number(f"epsilon_{name}", value, above=0, infinite=True)
    if clip == math.inf and min(epsilons.values()) < math.inf:
        raise ConfigurationError("clip", clip, "finite where noise is measured against it")
    allowed.one_of("charge", charge, CHARGES)
    allowed.whole("max_passes", max_passes)
