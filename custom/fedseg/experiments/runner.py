"""All units of an experiment, as many at a time as cores allow; each is done or not, so that a stop loses only those
that were under way, and a failure only the unit that failed and those that need it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path

from fedseg.experiments.definition import Watts
from fedseg.experiments.unit_run import is_done, try_unit
from fedseg.experiments.units import Unit
from fedseg.processes import worker_pool

_LOOK = 1.0
"""Seconds between looks at how far the units under way are."""
_KILLED = (
    "Its process was ended from outside, as a system does that has no memory left. Call the command again, with fewer "
    "--jobs, or where more memory is."
)
Watch = Callable[[Sequence[Unit], Sequence[Unit]], None]
"""Gets the units that are done or have failed, and those under way, whenever that may have changed."""


def run_units(units: Sequence[Unit], out: Path, watts: Watts, jobs: int, watch: Watch) -> dict[str, str]:
    """Do all units that are not done, each in a process that is not this one.

    Args:
        units: in an order in which those that others need come first.
        out: folder of the experiment.
        watts: for the energy.
        jobs: units at a time.
        watch: see ``Watch``.

    Returns:
        Why units failed, by their names, whatever the reason; one that needs a failed unit fails, too.
    """
    return _Run(units, out, watts, watch).run(jobs)


def _missing(unit: Unit, failed: Mapping[str, str]) -> str:
    return next((f"It needs {name}, which failed." for name in unit.needs if name in failed), "")


class _Run:
    """Units in processes of their own; each process is a pool of one, so that it breaks alone."""

    def __init__(self, units: Sequence[Unit], out: Path, watts: Watts, watch: Watch) -> None:
        self._out, self._watts, self._watch = out, watts, watch
        done = {unit.name for unit in units if is_done(out, unit)}
        self._ended = [unit for unit in units if unit.name in done]
        self._waiting = [unit for unit in units if unit.name not in done]
        self._running: dict[Future[str], tuple[Unit, ProcessPoolExecutor]] = {}
        self._idle: list[ProcessPoolExecutor] = []
        self._failed: dict[str, str] = {}

    def run(self, jobs: int) -> dict[str, str]:
        """See ``run_units``."""
        with ExitStack() as pools:
            while self._waiting or self._running:
                self._submit(pools, jobs)
                self._watch(self._ended, self._under_way())
                self._collect()
        self._watch(self._ended, [])
        return self._failed

    def _under_way(self) -> list[Unit]:
        return [unit for unit, _ in self._running.values()]

    def _submit(self, pools: ExitStack, jobs: int) -> None:
        """Start units whose needs are done, as long as there is room."""
        for unit in list(self._waiting):
            if reason := _missing(unit, self._failed):
                self._waiting.remove(unit)
                self._end(unit, reason)
            elif len(self._running) < jobs and not self._needs(unit):
                self._waiting.remove(unit)
                self._start(unit, pools)

    def _needs(self, unit: Unit) -> bool:
        """Whether a unit has to wait for another one."""
        return any(other.name in unit.needs for other in [*self._waiting, *self._under_way()])

    def _start(self, unit: Unit, pools: ExitStack) -> None:
        """Give a unit to a process that has nothing to do; one that has ended meanwhile is given nothing more."""
        while True:
            pool = self._idle.pop() if self._idle else pools.enter_context(worker_pool(1))
            try:
                future = pool.submit(try_unit, unit, self._out, self._watts)
            except BrokenProcessPool:
                continue
            self._running[future] = unit, pool
            return

    def _collect(self) -> None:
        done, _ = wait(self._running, timeout=_LOOK, return_when=FIRST_COMPLETED)
        for future in done:
            unit, pool = self._running.pop(future)
            error = future.exception()
            if error is None:
                self._idle.append(pool)
                self._end(unit, future.result())
            else:
                self._end(unit, _KILLED if isinstance(error, BrokenProcessPool) else f"{type(error).__name__}: {error}")

    def _end(self, unit: Unit, reason: str) -> None:
        """Count a unit as ended; a reason says that it failed."""
        self._ended.append(unit)
        if reason:
            self._failed[unit.name] = reason
