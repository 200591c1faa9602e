"""Arrays that the server keeps beside the global model and shares with the sites: SCAFFOLD's control variates."""

from __future__ import annotations

import numpy as np

from fedseg.aggregators.shared_arrays import SharedArrays


class ControlVariates(SharedArrays):
    """SCAFFOLD's c (Karimireddy et al., ICML 2020): c <- c + |S| / N * mean over the sites S of (c_i+ - c_i).

    N are all sites that accepted the job, so c stays the mean of all c_i, also of those that were not asked. Sites
    count equally, as in the paper; its model is then the ``uniform`` mean too.
    """

    prefix = "control/"

    def initial(self, weight: np.ndarray) -> np.ndarray:
        return np.zeros_like(weight)

    def join(self) -> None:
        """The newcomer's c_i is 0: c stays the mean of all c_i."""
        super().join()
        share = (self.total_sites - 1) / self.total_sites
        self._current = {name: (value * share).astype(value.dtype) for name, value in self._current.items()}

    def update(self, current: np.ndarray, mean: np.ndarray, sites: int) -> np.ndarray:
        return current + sites / self.total_sites * mean
