"""How important each weight is for the sites that were visited, at the server of a model that is carried."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedseg.aggregators.shared_state import SharedArray, SharedState
from fedseg.contract.plan import Plan


class Importance(SharedState):
    """The Omega of synaptic intelligence (Zenke et al., ICML 2017), which is handed on from site to site.

    Omega <- max(0, Omega + what a visit added), for every weight. It begins with zeros. What a site adds is never
    negative, so only noise that a filter added can bring a value below zero.
    """

    prefix = "importance/"
    handed_on = True

    def declare(self, plan: Plan, weights: Mapping[str, np.ndarray]) -> dict[str, SharedArray]:
        return {name: SharedArray(value.shape, combine="sum", dtype=value.dtype) for name, value in weights.items()}

    def update(self, current: np.ndarray, combined: np.ndarray, sites: int) -> np.ndarray:
        return np.maximum(current + combined, 0.0)
