"""HarmoFL's amplitudes at the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedseg.aggregators.shared_state import SharedArray, SharedState
from fedseg.allowed import one_of
from fedseg.contract.plan import Plan
from fedseg.networks.parts.amplitude import AMPLITUDE, SPECTRUM


class MeanAmplitude(SharedState):
    """The mean over the sites of the mean amplitudes of their images (HarmoFL; Jiang, Wang and Dou, AAAI 2022).

    Sites send theirs once, before round 0. The mean becomes an array of the model, which no site changes any more.
    """

    prefix = "amplitude/"

    def __init__(self, weight_by: str = "uniform") -> None:
        """Choose what counts.

        Args:
            weight_by: ``uniform``: all sites count equally, as published; ``samples``: by their training cases.
        """
        super().__init__()
        self.weight_by = one_of("MeanAmplitude.weight_by", weight_by, ("uniform", "samples"))

    def declare(self, plan: Plan, weights: Mapping[str, np.ndarray]) -> dict[str, SharedArray]:
        plan.network.require_part(AMPLITUDE, "MeanAmplitude")
        weighted = self.weight_by == "samples"
        shape = weights[SPECTRUM].shape
        return {"spectrum": SharedArray(shape, weighted=weighted, before_rounds=True, becomes=SPECTRUM)}

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "weight_by": self.weight_by}
