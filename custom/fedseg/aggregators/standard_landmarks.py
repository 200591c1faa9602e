"""The standard scale of histograms at the server."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedseg.aggregators.shared_state import SharedArray, SharedState
from fedseg.contract.plan import Plan
from fedseg.networks.parts.standard_scale import LANDMARK_SUMS, STANDARD_SCALE


class StandardLandmarks(SharedState):
    """Sums of the landmarks of all sites' images and their numbers (Nyul and Udupa, Magn Reson Med 1999).

    Sites send theirs once, before round 0. The sums become an array of the model, which no site changes any more. They
    are those of all images in one place, up to rounding: every image counts equally, wherever it lies.
    """

    prefix = "landmarks/"

    def declare(self, plan: Plan, weights: Mapping[str, np.ndarray]) -> dict[str, SharedArray]:
        plan.network.require_part(STANDARD_SCALE, "StandardLandmarks")
        shape = weights[LANDMARK_SUMS].shape
        return {"sums": SharedArray(shape, combine="sum", before_rounds=True, becomes=LANDMARK_SUMS)}
