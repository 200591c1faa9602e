"""All units of an experiment, as many at a time as cores allow; each is done or not, so that a stop loses only those
that were under way."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from fedseg.errors import FedsegError
from fedseg.experiments.definition import Watts
from fedseg.experiments.unit_run import is_done, run_unit
from fedseg.experiments.units import Unit

_LOOK = 1.0
"""Seconds between looks at how far the units under way are."""
Watch = Callable[[Sequence[Unit], Sequence[Unit]], None]
"""Gets the units that are done or have failed, and those under way, whenever that may have changed."""


def run_units(units: Sequence[Unit], out: Path, watts: Watts, jobs: int, watch: Watch) -> dict[str, str]:
    """Do all units that are not done.

    Args:
        units: in an order in which those that others need come first.
        out: folder of the experiment.
        watts: for the energy.
        jobs: units at a time; with 1 they run in this process.
        watch: see ``Watch``.

    Returns:
        Why units failed, by their names; one that needs a failed unit fails, too.
    """
    if jobs == 1:
        return _run_here(units, out, watts, watch)
    return _Pool(units, out, watts, watch).run(jobs)


def _run_here(units: Sequence[Unit], out: Path, watts: Watts, watch: Watch) -> dict[str, str]:
    failed: dict[str, str] = {}
    for number, unit in enumerate(units):
        watch(units[:number], [unit])
        if reason := _missing(unit, failed):
            failed[unit.name] = reason
            continue
        try:
            run_unit(unit, out, watts)
        except FedsegError as error:
            failed[unit.name] = str(error)
    watch(units, [])
    return failed


def _missing(unit: Unit, failed: Mapping[str, str]) -> str:
    return next((f"It needs {name}, which failed." for name in unit.needs if name in failed), "")


class _Pool:
    """Units in processes of their own, which end with this one, however that ends."""

    def __init__(self, units: Sequence[Unit], out: Path, watts: Watts, watch: Watch) -> None:
        self._out, self._watts, self._watch = out, watts, watch
        done = {unit.name for unit in units if is_done(out, unit)}
        self._ended = [unit for unit in units if unit.name in done]
        self._waiting = [unit for unit in units if unit.name not in done]
        self._running: dict[Future[None], Unit] = {}
        self._failed: dict[str, str] = {}

    def run(self, jobs: int) -> dict[str, str]:
        """See ``run_units``."""
        context = multiprocessing.get_context("spawn")
        alive, end = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(jobs, context, initializer=_end_with_parent, initargs=(alive,))
        try:
            while self._waiting or self._running:
                self._submit(pool, jobs)
                self._watch(self._ended, list(self._running.values()))
                self._collect()
        except BrokenProcessPool:
            raise FedsegError(
                "A process of the experiment ended; was there enough memory? Call the command again, with fewer --jobs."
            ) from None
        finally:
            end.close()
            pool.shutdown(cancel_futures=True)
        self._watch(self._ended, [])
        return self._failed

    def _submit(self, pool: ProcessPoolExecutor, jobs: int) -> None:
        """Start units whose needs are done, as long as there is room."""
        for unit in list(self._waiting):
            if reason := _missing(unit, self._failed):
                self._end(unit, reason)
            elif len(self._running) < jobs and not self._needs(unit):
                self._waiting.remove(unit)
                self._running[pool.submit(run_unit, unit, self._out, self._watts)] = unit

    def _needs(self, unit: Unit) -> bool:
        """Whether a unit has to wait for another one."""
        return any(other.name in unit.needs for other in [*self._waiting, *self._running.values()])

    def _end(self, unit: Unit, reason: str) -> None:
        self._failed[unit.name] = reason
        self._waiting.remove(unit)
        self._ended.append(unit)

    def _collect(self) -> None:
        done, _ = wait(self._running, timeout=_LOOK, return_when=FIRST_COMPLETED)
        for future in done:
            unit = self._running.pop(future)
            self._ended.append(unit)
            try:
                future.result()
            except BrokenProcessPool:
                raise
            except FedsegError as error:
                self._failed[unit.name] = str(error)


def _end_with_parent(alive: Connection) -> None:
    """End this process at once when the one that started it closes its end of the pipe, or is gone.

    What a person types at the terminal (Ctrl-C) goes to that one only.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        with suppress(EOFError, OSError):
            alive.recv()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
