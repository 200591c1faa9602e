"""What ComBat needs of all sites' images, at the server: sums of landmarks and of their squared deviations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedseg.aggregators.shared_state import SharedArray, SharedState
from fedseg.contract.plan import Plan
from fedseg.networks.parts.combat import COMBAT
from fedseg.tasks.landmarks import LEVELS


class LandmarkMoments(SharedState):
    """Adds up [channels, 3, landmarks]: numbers of images, sums of landmarks, squared deviations within each site.

    Sites send theirs once, before round 0, and get the sums with the weights of every round. The grand mean and the
    pooled variance of ComBat follow from them, and are those of all images in one place up to rounding.
    """

    prefix = "combat/"

    def declare(self, plan: Plan, weights: Mapping[str, np.ndarray]) -> dict[str, SharedArray]:
        plan.network.require_part(COMBAT, "LandmarkMoments")
        shape = (len(plan.task.channels), 3, len(LEVELS))
        return {"moments": SharedArray(shape, combine="sum", before_rounds=True, dtype=np.dtype(np.float64))}
