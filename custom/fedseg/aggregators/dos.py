"""Distance-based outlier suppression, DOS (Alkhunaizi et al., MICCAI 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedseg import allowed
from fedseg.aggregators.copod import copod_scores
from fedseg.aggregators.geometry import Geometry, measure
from fedseg.aggregators.weighted import WeightedAggregator
from fedseg.contract.combinations import COMPARED_UPDATES
from fedseg.contract.report import SiteReport

_TEMPERATURES = ("sum", "mean")
# Below it a cosine distance is rounding noise, and COPOD would rank the noise.
_COSINE_DIGITS = 12


class DOS(WeightedAggregator):
    """Weights fall exponentially with how outlying an update is; the sites' sizes do not count.

    1. Distances between all pairs of updates, D_cos and D_euc [J, J].
    2. r = COPOD(D_cos) + COPOD(D_euc), one score per row.
    3. w = softmax(-r).

    The scores are sums over J columns, so the published weights (``sum``) move away from equal ones the more sites
    there are, with no attacker present: among ten honest sites with random updates the largest weight is 0.47 on
    average, not 0.1. ``mean`` divides r by J before step 3, which is not in the paper. The largest weight is then 0.13.

    COPOD sees ranks, so the weight of an attacker does not depend on how far out it is. An update a hundred times too
    long gets 0.07 of three sites, 0.015 of four and 1e-7 of ten by ``sum``, but 0.03 of ten by ``mean``, with which it
    still outweighs the honest ones: clip norms at the sites too, or choose a median.

    ``last_notes`` holds ``scores``, the r of each site.
    """

    needs = COMPARED_UPDATES

    def __init__(self, temperature: str = "sum") -> None:
        """Choose how scores become weights.

        Args:
            temperature: ``sum`` (published) or ``mean`` (scores divided by the number of sites).
        """
        super().__init__()
        allowed.one_of("temperature", temperature, _TEMPERATURES)
        self.temperature = temperature

    def site_weights(self, reports: Mapping[str, SiteReport]) -> dict[str, float]:
        geometry = measure(self._spool)
        scores = copod_scores(cosine_distances(geometry)) + copod_scores(np.sqrt(geometry.squared))
        self.last_notes = {"scores": dict(zip(geometry.sites, scores.tolist(), strict=True))}
        cooled = scores / len(scores) if self.temperature == "mean" else scores
        weights = np.exp(cooled.min() - cooled)
        return dict(zip(geometry.sites, (weights / weights.sum()).tolist(), strict=True))


def cosine_distances(geometry: Geometry) -> np.ndarray:
    """1 - cos of the angle between all pairs of updates [J, J], from 0 to 2.

    From (|u - v|^2 - (|u| - |v|)^2) / (2 |u| |v|), which is exactly 0 for equal updates. An update of zeros points
    nowhere: it has the distance 1 (as if orthogonal) to all others and 0 to its like.
    """
    norms = geometry.norms
    lengths, gaps = np.outer(norms, norms), np.subtract.outer(norms, norms)
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = np.clip((geometry.squared - gaps**2) / (2 * lengths), 0.0, 2.0)
    zero = norms == 0
    distances[zero[:, None] != zero[None]] = 1.0
    distances[zero[:, None] & zero[None]] = 0.0
    return distances.round(_COSINE_DIGITS)
