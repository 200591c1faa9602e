"""Further arrays that travel with the weights: sent out, and updated from what comes back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from fedseg.aggregators.spool.updates import UpdateSpool
from fedseg.errors import RefusalError
from fedseg.networks.weights import Arrays, check_weights

_TOTAL_SITES = "total_sites"


class SharedArrays(ABC):
    """One array for each of the model's, sent out with the weights, updated from what the sites send back.

    What a site sends waits on disk, and is summed array by array in the order of the sites' names.

    Attributes:
        prefix: first part of the arrays' names on the wire.
        total_sites: sites that accepted the job.
    """

    prefix: str

    def __init__(self) -> None:
        self.total_sites = 0
        self._current: Arrays = {}
        self._spool = UpdateSpool()

    @abstractmethod
    def initial(self, weight: np.ndarray) -> np.ndarray:
        """The shared array that goes with an array of the model, before the first round."""

    @abstractmethod
    def update(self, current: np.ndarray, mean: np.ndarray, sites: int) -> np.ndarray:
        """The array for the next round.

        Args:
            current: the array of this round.
            mean: plain mean of what the sites sent, float64.
            sites: how many sent something.
        """

    def describe(self) -> dict[str, Any]:
        """Name and arguments, for the run's summary."""
        return {"name": type(self).__name__}

    def start(self, weights: Mapping[str, np.ndarray], total_sites: int) -> None:
        """Begin a run.

        Args:
            weights: the arrays of the global model that are averaged.
            total_sites: sites that accepted the job, whether or not they take part in every round.
        """
        self._current = {self.prefix + name: self.initial(value) for name, value in weights.items()}
        self.total_sites = total_sites

    def join(self) -> None:
        """One more site takes part from now on; it has sent nothing so far."""
        self.total_sites += 1

    def outgoing(self) -> Arrays:
        """What travels to the sites of a round."""
        return dict(self._current)

    def take(self, site: str, extras: Mapping[str, np.ndarray]) -> None:
        """Keep what a site sent; a second time replaces the first.

        Raises:
            RefusalError: names, shapes or types differ from ``outgoing``, or a value is not finite (``weights``).
        """
        check_weights(self._current, extras)
        with np.errstate(over="ignore"):
            sent = {name: np.asarray(value).astype(self._current[name].dtype) for name, value in extras.items()}
            moved = [self._current[name] + value for name, value in sent.items()]
        if not all(np.isfinite(value).all() for value in moved):
            raise RefusalError("weights", "The further arrays are so large that the server's would not stay finite.")
        self._spool.put(site, sent)

    def finish_round(self, counted: Collection[str]) -> None:
        """Update every array; without answers all stay as they are.

        Args:
            counted: sites whose update the rule took; what others sent is dropped.
        """
        sites = [site for site in self._spool.sites if site in counted]
        with self._spool.columns() as reader:
            for name in self._current if sites else ():
                total = np.zeros(self._current[name].shape, np.float64)
                for site in sites:
                    total += reader.read(site, name)
                current = self._current[name]
                self._current[name] = self.update(current, total / len(sites), len(sites)).astype(current.dtype)
        self.reset_round()

    def reset_round(self) -> None:
        """Forget what the sites of the round sent."""
        self._spool.clear()

    def state(self) -> Arrays:
        """All that the next round needs, for a checkpoint."""
        return {**self._current, _TOTAL_SITES: np.array(self.total_sites)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take back what ``state`` gave.

        Raises:
            RefusalError: it is not the state of arrays with this prefix (reason ``state``).
        """
        names = set(arrays) - {_TOTAL_SITES}
        if _TOTAL_SITES not in arrays or not names or not all(name.startswith(self.prefix) for name in names):
            raise RefusalError("state", f"The stored arrays are not those of {type(self).__name__}.")
        self.total_sites = int(arrays[_TOTAL_SITES])
        self._current = {name: np.array(arrays[name]) for name in sorted(names)}
        self.reset_round()
