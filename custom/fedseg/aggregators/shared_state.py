"""Arrays that the server keeps beside the global model: sent by the sites, combined, and sent out again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal
from urllib.parse import quote, unquote

import numpy as np

from fedseg.aggregators.base import AggregationError
from fedseg.aggregators.spool.updates import UpdateSpool
from fedseg.contract.plan import Plan
from fedseg.contract.shapes import array_owners
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.weights import Arrays, check_weights

_TOTAL_SITES, _BANK = "total_sites", "bank/"
Combine = Literal["mean", "sum", "bank"]


@dataclass(frozen=True)
class SharedArray:
    """What is declared of one shared array.

    Attributes:
        shape: of what one site sends.
        combine: ``mean`` over the sites, ``sum`` over the sites, or ``bank``: the server keeps the last array of each
            site, and sends out all of them, stacked in the order of the sites' names [N, *shape].
        weighted: of a mean: whether sites count by their training cases; otherwise all sites count equally.
        with_own: of a bank: whether a site also receives its own array.
        before_rounds: whether sites send it once, before round 0; otherwise they send it with every update.
        becomes: name of an array of the global model in whose place the result is put before round 0; empty for none.
            It is an array of the same shape that no site trains, and the result of a mean or a sum.
        dtype: float32 or float64.
    """

    shape: tuple[int, ...]
    combine: Combine = "mean"
    weighted: bool = False
    with_own: bool = False
    before_rounds: bool = False
    becomes: str = ""
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.float32))

    @property
    def expected(self) -> np.ndarray:
        """Zeros of this shape and type, which take no memory."""
        return np.broadcast_to(np.zeros((), self.dtype), self.shape)


class SharedState(ABC):
    """Arrays of declared name and shape that sites send with their updates, or once before round 0.

    What sites send waits on disk, and is combined array by array in the order of the sites' names. What is combined
    travels with the weights of the next round.

    >>> class Offset(SharedState):
    ...     prefix = "offset/"
    ...     def declare(self, plan, weights):
    ...         return {"mean": SharedArray((2,))}
    >>> offset = Offset()
    >>> offset.set_plan(plan=None, weights={})
    >>> offset.start(total_sites=2)
    >>> offset.accept("a", {"offset/mean": np.array([1, 3], np.float32)})
    >>> offset.accept("b", {"offset/mean": np.array([3, 5], np.float32)})
    >>> offset.finish_round({"a": 10, "b": 30})
    >>> offset.outgoing("a")
    {'offset/mean': array([2., 4.], dtype=float32)}

    Attributes:
        prefix: first part of the arrays' names on the wire.
        hands_on_private: whether it is about arrays of the network that else stay at their sites, which it gives to
            other sites; it declares no others then. Without it a job whose network has such arrays is refused where
            sites send anything with their updates, as control variates, which would tell them.
        handed_on: whether it is handed on with a model that is carried from site to site: each visit's arrays are
            combined by themselves. Without it they are combined over the sites of a round.
        total_sites: sites that accepted the job.
    """

    prefix: ClassVar[str]
    hands_on_private: ClassVar[bool] = False
    handed_on: ClassVar[bool] = False

    def __init__(self) -> None:
        self.total_sites = 0
        self._declared: dict[str, SharedArray] = {}
        self._planned = False
        self._current: Arrays = {}
        self._bank: dict[str, Arrays] = {}
        self._spool = UpdateSpool()

    @abstractmethod
    def declare(self, plan: Plan, weights: Mapping[str, np.ndarray]) -> dict[str, SharedArray]:
        """The arrays, by their names without the prefix.

        Args:
            plan: of the job.
            weights: the arrays of the global model that are averaged.
        """

    def update(self, current: np.ndarray, combined: np.ndarray, sites: int) -> np.ndarray:
        """Return the array for the next round: the combined one unless a subclass overrides this. Not called for banks.

        Args:
            current: the array of this round; zeros before the first.
            combined: mean or sum of what the sites sent, float64.
            sites: how many sent something.
        """
        return combined

    def describe(self) -> dict[str, Any]:
        """Name and arguments, for the run's summary."""
        return {"name": type(self).__name__}

    @property
    def before_rounds(self) -> bool:
        """Whether sites are asked for arrays before round 0."""
        return any(array.before_rounds for array in self._declared.values())

    @property
    def every_round(self) -> bool:
        """Whether sites send arrays with their updates."""
        return not all(array.before_rounds for array in self._declared.values())

    @property
    def per_site(self) -> bool:
        """Whether sites receive different arrays."""
        return any(array.combine == "bank" and not array.with_own for array in self._declared.values())

    def set_plan(self, plan: Plan, weights: Mapping[str, np.ndarray]) -> None:
        """Declare the arrays of a run; see ``declare``.

        Raises:
            ConfigurationError: one cannot become what it says.
        """
        self._declared = {self.prefix + name: array for name, array in self.declare(plan, weights).items()}
        self._planned = True
        becoming = {name: array for name, array in self._declared.items() if array.becomes}
        owners = array_owners(plan) if becoming else {}
        taken: set[str] = set()
        for name, array in becoming.items():
            shape = weights[array.becomes].shape if array.becomes in weights else None
            fixed = array.becomes in owners and not owners[array.becomes].sites
            once = array.before_rounds and array.combine != "bank" and array.becomes not in taken
            if shape != tuple(array.shape) or not fixed or not once:
                allowed = "an array of the same shape that no site trains, by one mean or sum before the first round"
                raise ConfigurationError(f"{type(self).__name__}: {name} becomes", array.becomes, allowed)
            taken.add(array.becomes)

    def start(self, total_sites: int) -> None:
        """Begin a run with zeros and empty banks.

        Args:
            total_sites: sites that accepted the job, whether or not they take part in every round.
        """
        self.total_sites, self._bank = total_sites, {}
        self._current = {n: np.array(a.expected) for n, a in self._declared.items() if a.combine != "bank"}

    def join(self) -> None:
        """One more site takes part from now on; it has sent nothing so far."""
        self.total_sites += 1

    def outgoing(self, site: str) -> Arrays:
        """What travels to one site with the weights of a round."""
        arrays = {name: value for name, value in self._current.items() if not self._declared[name].becomes}
        for name, array in self._declared.items():
            if array.combine == "bank":
                others = [each for each in sorted(self._bank) if array.with_own or each != site]
                kept = [self._bank[each][name] for each in others if name in self._bank[each]]
                arrays[name] = np.stack(kept) if kept else np.zeros((0, *array.shape), array.dtype)
        return arrays

    def model_arrays(self) -> Arrays:
        """What stands in the global model from round 0 on, by the names of its arrays."""
        return {self._declared[n].becomes: v for n, v in self._current.items() if self._declared[n].becomes}

    def accept(self, site: str, shared: Mapping[str, np.ndarray], before_rounds: bool = False) -> None:
        """Keep what a site sent; a second time replaces the first.

        Args:
            site: its name.
            shared: exactly the arrays that are declared for this moment, names with the prefix.
            before_rounds: whether they are those of before round 0.

        Raises:
            RefusalError: names, shapes or types are others, or a value is not finite (``weights``).
        """
        expected = {n: a.expected for n, a in self._declared.items() if a.before_rounds == before_rounds}
        check_weights(expected, shared)
        with np.errstate(over="ignore"):
            sent = {name: np.asarray(value).astype(expected[name].dtype) for name, value in shared.items()}
            moved = [self._current.get(name, expected[name]) + value for name, value in sent.items()]
        if not all(np.isfinite(value).all() for value in moved):
            raise RefusalError("weights", "The shared arrays are so large that the server's would not stay finite.")
        self._spool.put(site, sent)

    def finish_before_rounds(self, samples: Mapping[str, float]) -> None:
        """Combine what sites sent before round 0; see ``finish_round``.

        Raises:
            AggregationError: no site sent anything, and the method cannot begin without.
        """
        if not set(self._spool.sites) & set(samples):
            raise AggregationError(f"No site sent the arrays that {type(self).__name__} needs before the first round.")
        self.finish_round(samples)

    def finish_round(self, samples: Mapping[str, float]) -> None:
        """Combine every array; without answers all stay as they are.

        Args:
            samples: training cases of the sites whose update the rule accepted; what others sent is dropped.
        """
        sites = [site for site in self._spool.sites if site in samples]
        with self._spool.columns() as reader:
            for name in self._spool.names() if sites else ():
                array, total = self._declared[name], np.zeros(self._declared[name].shape, np.float64)
                for site in sites:
                    value = reader.read(site, name)
                    if array.combine == "bank":
                        self._bank.setdefault(site, {})[name] = value.astype(array.dtype)
                    else:
                        total += np.multiply(value, samples[site] if array.weighted else 1.0, dtype=np.float64)
                if array.combine == "mean":
                    total = total / (sum(samples[site] for site in sites) if array.weighted else len(sites))
                if array.combine != "bank":
                    self._current[name] = self.update(self._current[name], total, len(sites)).astype(array.dtype)
        self.reset_round()

    def reset_round(self) -> None:
        """Forget what the sites of the round sent."""
        self._spool.clear()

    def state(self) -> Arrays:
        """All that the next round needs, for a checkpoint."""
        banks = {f"{_BANK}{quote(s, '')}/{n}": v for s, kept in self._bank.items() for n, v in kept.items()}
        return {**self._current, **banks, _TOTAL_SITES: np.array(self.total_sites)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore what ``state`` gave.

        Raises:
            RefusalError: it is not the state of the declared arrays (reason ``state``).
        """
        self.start(int(arrays.get(_TOTAL_SITES, 0)))
        fits = _TOTAL_SITES in arrays and self._planned
        for key in sorted(set(arrays) - {_TOTAL_SITES}):
            site, _, name = key.removeprefix(_BANK).partition("/") if key.startswith(_BANK) else ("", "", key)
            array = self._declared.get(name)
            fits &= array is not None and array.shape == arrays[key].shape and (array.combine == "bank") == bool(site)
            kept = self._bank.setdefault(unquote(site), {}) if site else self._current
            kept[name] = np.array(arrays[key])
        if not fits or not set(self._current) <= set(arrays):
            raise RefusalError("state", f"The stored arrays are not those of {type(self).__name__}.")
        self.reset_round()
