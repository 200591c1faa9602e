"""SCAFFOLD's control variates at the server."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedseg.aggregators.shared_state import SharedArray, SharedState
from fedseg.contract.plan import Plan


class ControlVariates(SharedState):
    """SCAFFOLD's c (Karimireddy et al., ICML 2020): c <- c + |S| / N * mean over the sites S of (c_i+ - c_i).

    N are all sites that accepted the job, so c stays the mean of all c_i, also of those that were not asked. Sites
    count equally, as in the paper; its model is then the ``uniform`` mean too.
    """

    prefix = "control/"

    def declare(self, plan: Plan, weights: Mapping[str, np.ndarray]) -> dict[str, SharedArray]:
        return {name: SharedArray(value.shape, dtype=value.dtype) for name, value in weights.items()}

    def join(self) -> None:
        """The newcomer's c_i is 0: c stays the mean of all c_i."""
        super().join()
        share = (self.total_sites - 1) / self.total_sites
        self._current = {name: (value * share).astype(value.dtype) for name, value in self._current.items()}

    def update(self, current: np.ndarray, combined: np.ndarray, sites: int) -> np.ndarray:
        return current + sites / self.total_sites * combined
