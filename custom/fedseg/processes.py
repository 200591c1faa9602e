"""Processes of this machine: which run FLARE's programs, their memory while they run, and an end for every one;
workers, which end with the process that they work for.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

FLARE_PROGRAMS = "nvflare.private.fed.app."
_NAME_FLAGS = ("--client",)


class MemoryWatch:
    """Samples the resident memory of a process and all its children until ``stop``.

    Attributes:
        peak: largest resident memory seen per process name, in MiB; sites go by their names, the rest is ``server``.
        peak_total: largest sum over all processes at one moment, in MiB.
    """

    def __init__(self, pid: int, interval: float = 0.5) -> None:
        self.peak: dict[str, float] = {}
        self.peak_total = 0.0
        self._pid, self._interval, self._end = pid, interval, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the sampling."""
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(self._interval):
            sizes: dict[str, float] = {}
            for process in process_tree(self._pid):
                with contextlib.suppress(psutil.Error):
                    name = _name(process.cmdline())
                    sizes[name] = sizes.get(name, 0.0) + process.memory_info().rss / 2**20
            for name, size in sizes.items():
                self.peak[name] = round(max(self.peak.get(name, 0.0), size), 1)
            self.peak_total = max(self.peak_total, round(sum(sizes.values()), 1))


def _name(command: list[str]) -> str:
    for flag in _NAME_FLAGS:
        if flag in command[:-1]:
            return command[command.index(flag) + 1]
    return "server"


def living_commands() -> Iterator[tuple[psutil.Process, list[str]]]:
    """Every process of this machine that lives and that this user may look at, with its command line."""
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            command = process.cmdline()
        except (psutil.Error, OSError):
            continue
        yield process, command


def flare_program(command: Sequence[str], kit: Path) -> str | None:
    """The program of FLARE that a command line runs from a kit; None for every other command.

    >>> command = ["python3", "-m", "nvflare.private.fed.app.client.client_train", "-m", "/kits/a"]
    >>> flare_program(command, Path("/kits/a"))
    'nvflare.private.fed.app.client.client_train'
    """
    program = next((word for word in command if word.startswith(FLARE_PROGRAMS)), None)
    if program is None or not any(word.startswith(os.sep) and Path(word).resolve() == kit for word in command):
        return None
    return program


def process_tree(pid: int) -> list[psutil.Process]:
    """A process and all its descendants; empty when it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def process_group(pid: int) -> list[psutil.Process]:
    """Every process of the session that ``pid`` leads or led, also those that outlive it, and their descendants."""
    found = {process.pid: process for process in process_tree(pid)}
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == pid or any(p.pid == pid for p in process.parents()):
                found.update({p.pid: p for p in process_tree(process.pid)})
    return list(found.values())


def end_processes(processes: Iterable[psutil.Process], patience: float = 5.0) -> None:
    """Ask the processes to end, and kill those that have not after ``patience`` seconds."""
    processes = list(processes)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=patience)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=patience)


@contextlib.contextmanager
def worker_pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes for work, from scratch (``spawn``), when there is some.

    Each watches a pipe of which this process holds the other end. The system closes that end when this process is gone,
    also where it was killed, and then they end at once. When the block is left, work that has not ended is dropped.

    Args:
        count: processes at a time, at least 1.
    """
    context = multiprocessing.get_context("spawn")
    alive, end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(count, context, initializer=_end_with_parent, initargs=(alive,))
    try:
        yield pool
    finally:
        end.close()
        pool.shutdown(cancel_futures=True)
        alive.close()


def _end_with_parent(alive: Connection) -> None:
    """End this process at once when the one that started it closes its end of the pipe, or is gone.

    What a person types at the terminal (Ctrl-C) goes to that one only.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            alive.recv()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
