"""The standard scale of histograms at the server."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedseg.aggregators.shared_state import SharedArray, SharedState
from fedseg.contract.plan import Plan
from fedseg.errors import ConfigurationError
from fedseg.networks.parts.standard_scale import LANDMARK_SUMS, STANDARD_SCALE


class StandardLandmarks(SharedState):
    """Sums of the landmarks of all sites' images and their numbers (Nyul and Udupa, Magn Reson Med 1999).

    Sites send theirs once, before round 0. The sums become an array of the model, which no site changes any more. They
    are those of all images in one place, up to rounding: every image counts equally, wherever it lies.
    """

    prefix = "landmarks/"

    def declare(self, plan: Plan, weights: Mapping[str, np.ndarray]) -> dict[str, SharedArray]:
        if LANDMARK_SUMS not in weights:
            found, part = [part.name for part in plan.network.parts], f'{{"name": "{STANDARD_SCALE}"}}'
            raise ConfigurationError("network.parts", found, f"a list with {part} for StandardLandmarks")
        shape = weights[LANDMARK_SUMS].shape
        return {"sums": SharedArray(shape, combine="sum", before_rounds=True, becomes=LANDMARK_SUMS)}
