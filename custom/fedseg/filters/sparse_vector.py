"""The sparse vector technique as a filter: a few coordinates, chosen and sent with noise (Li et al., MLMI 2019)."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from fedseg import allowed
from fedseg.contract.combinations import EVERY_COORDINATE
from fedseg.contract.update import SPARSE, Update
from fedseg.filters.context import SiteContext
from fedseg.filters.noise import GuaranteedFilter, Protected
from fedseg.networks.weights import flatten, unflatten
from fedseg.privacy.accounting.epsilon import REPLACE, SITE_UPDATE, Release
from fedseg.privacy.mechanisms.noise import NoiseSource
from fedseg.privacy.mechanisms.sparse import to_sparse
from fedseg.privacy.mechanisms.sparse_vector import CHARGES, EVERY_PASS, SINGLE_PASS, sparse_vector
from fedseg.privacy.mechanisms.top_k import selected_count

logger = logging.getLogger(__name__)


_NORM = "coordinate, per step"


class SparseVector(GuaranteedFilter):
    """Chooses up to a fraction of the coordinates by noisy comparisons, and sends them with noise, sparse on the wire.

    The update is divided by the site's optimizer steps, so that clip and threshold are in units of one step, and
    multiplied again at the end. One pass by default; see ``privacy.sparse_vector`` for what is private and why. With
    many coordinates the noise of a meaningful epsilon is far larger than any update: the choice is then little better
    than chance, which the site's log tells (``overlap``), and the values are noise within the clip.
    """

    meaning = "chooses and sends noisy values by the sparse vector technique: a formal guarantee"
    gives = SPARSE
    # What is sparse has the coordinates of the network's arrays alone, by which guard and server read it.
    accepts_shared_arrays = False
    withholds = GuaranteedFilter.withholds | {EVERY_COORDINATE}
    words = GuaranteedFilter.words | {_NORM, *CHARGES}

    def __init__(
        self,
        fraction: float,
        clip: float,
        threshold: float,
        epsilon_threshold: float,
        epsilon_query: float,
        epsilon_release: float,
        charge: str = SINGLE_PASS,
        max_passes: int = 5,
        delta: float = 1e-5,
    ) -> None:
        """Set the mechanism; no epsilon has a default.

        Args:
            fraction: above 0, at most 1: at most ceil(fraction * n) of n coordinates are sent.
            clip: largest magnitude of a coordinate per step (gamma), before and after the noise.
            threshold: magnitude per step from which a coordinate is sent (tau).
            epsilon_threshold, epsilon_query: for the choice, in every pass.
            epsilon_release: for the sent values together.
            charge: ``single_pass`` (fewer coordinates may be sent) or ``every_pass`` (passes until the fraction is
                reached or ``max_passes`` is).
            max_passes: with ``every_pass`` the most passes, all of which are charged, whether or not they were needed:
                how many were depends on the data.
            delta: for the composition over rounds.

        Raises:
            ConfigurationError: an argument is not allowed.
        """
        super().__init__(delta, REPLACE)
        allowed.number("SparseVector.fraction", fraction, above=0, most=1)
        for name, value in (
            ("clip", clip),
            ("epsilon_threshold", epsilon_threshold),
            ("epsilon_query", epsilon_query),
            ("epsilon_release", epsilon_release),
        ):
            allowed.number(f"SparseVector.{name}", value, above=0)
        allowed.number("SparseVector.threshold", threshold, least=0)
        allowed.one_of("SparseVector.charge", charge, CHARGES)
        allowed.whole("SparseVector.max_passes", max_passes)
        self._passes = max_passes if charge == EVERY_PASS else 1
        self.fraction, self.clip, self.threshold, self.charge = fraction, float(clip), float(threshold), charge
        self.epsilons = (float(epsilon_threshold), float(epsilon_query), float(epsilon_release))

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "fraction": self.fraction,
            "clip": self.clip,
            "norm": _NORM,
            "threshold": self.threshold,
            "epsilon_threshold": self.epsilons[0],
            "epsilon_query": self.epsilons[1],
            "epsilon_release": self.epsilons[2],
            "charge": self.charge,
            "max_passes": self._passes,
            "delta": self.delta,
            "neighbours": self.neighbours,
        }

    def planned(self) -> Release:
        threshold, query, release = self.epsilons
        return Release("pure", epsilon=self._passes * (threshold + query) + release, unit=SITE_UPDATE)

    def protect(self, update: Update, noise: NoiseSource, context: SiteContext) -> Protected:
        steps = max(1, update.report.num_steps)
        values = flatten(update.arrays) / steps
        count = selected_count(self.fraction, values.size)
        found = sparse_vector(
            values, count, self.clip, self.threshold, *self.epsilons, noise, charge=self.charge, max_passes=self._passes
        )
        logger.info(
            "%d of %d coordinates sent, overlap with the largest: %s",
            len(found.indices),
            values.size,
            found.overlap_with_top_k,
        )
        sent = np.zeros(values.size)
        sent[found.indices] = found.released * steps
        mask = np.zeros(values.size, bool)
        mask[found.indices] = True
        facts: dict[str, Any] = {"coordinates": values.size, "sent": len(found.indices)}
        if context.profile.simulated:
            # Computed from the exact update: for experiments only, and not covered by epsilon.
            facts["overlap_with_top_k"] = found.overlap_with_top_k
        whole = {n: value.astype(update.arrays[n].dtype) for n, value in unflatten(sent, update.arrays).items()}
        return Protected(to_sparse(whole, unflatten(mask, update.arrays)), facts, SPARSE)
