"""The processes of one kit on this machine: started in the background, and ended in order."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import psutil

from fedseg.deployment.kits.container_runtime import runtime_of
from fedseg.deployment.kits.installed_kit import InstalledKit
from fedseg.deployment.operation.kit_processes import KitProcesses, find_processes, run_start_script
from fedseg.errors import FedsegError
from fedseg.processes import end_processes, process_tree

LOG_FILE = "console.log"
SHUTDOWN_FILE = "shutdown.fl"
START_SECONDS, SETTLE_SECONDS, FLARE_SECONDS, PATIENCE = 60.0, 5.0, 20.0, 10.0
_LEFT_BY_FLARE = ("pid.fl", "daemon_pid.fl", SHUTDOWN_FILE, "restart.fl")


class ProcessError(FedsegError):
    """A kit's processes could not be started or ended."""


@dataclass(frozen=True)
class Ended:
    """A process that is no more.

    Attributes:
        pid: its id.
        what: what it was.
        how: ``by FLARE's own way``, ``terminated`` or ``killed``.
    """

    pid: int
    what: str
    how: str


def refuse_to_start(kit: InstalledKit) -> None:
    """Two of one kit would take turns at the server, and one for containers has no script for this machine.

    Raises:
        ProcessError: something runs from this kit, or it is started by other means.
    """
    runtime = runtime_of(kit.folder)
    if runtime is not None:
        raise ProcessError(f"{kit.name} was made ready for {runtime.name}: start it by {runtime.start}.")
    running = find_processes(kit)
    if running:
        pids = ", ".join(str(process.pid) for process in running.all)
        raise ProcessError(f"{kit.name} runs already (process {pids}). `fedseg site stop` ends it.")


def start(kit: InstalledKit, timeout: float = START_SECONDS, settle_seconds: float = SETTLE_SECONDS) -> psutil.Process:
    """Start FLARE from a kit in the background, by the kit's own script, which starts it again whenever it ends.

    Args:
        kit: of a site or of the server.
        timeout: seconds until FLARE's program must run.
        settle_seconds: how long it must then live: one that cannot work ends at once, and is started again and again.

    Returns:
        FLARE's program.

    Raises:
        ProcessError: something runs from this kit already, it was made ready for containers or a cluster, or the
            program does not start or ends at once.
    """
    refuse_to_start(kit)
    for name in _LEFT_BY_FLARE:
        (kit.folder / name).unlink(missing_ok=True)
    keeper = run_start_script(kit.folder, kit.folder / LOG_FILE, folder=kit.folder)
    end = time.monotonic() + timeout
    while (main := find_processes(kit).main) is None:
        if keeper.poll() is not None or time.monotonic() > end:
            raise _failed(kit, "did not start")
        time.sleep(0.5)
    _, alive = psutil.wait_procs([main], timeout=settle_seconds)
    if not alive:
        raise _failed(kit, "ended as soon as it had started")
    return main


def _failed(kit: InstalledKit, what: str) -> ProcessError:
    """Leave nothing behind, and say why."""
    stop(kit)
    log = kit.folder / LOG_FILE
    return ProcessError("\n".join([f"{kit.name} {what}; the end of {log}:", *last_lines(log)]))


def stop(kit: InstalledKit, flare_seconds: float = FLARE_SECONDS, patience: float = PATIENCE) -> list[Ended]:
    """End everything that runs from a kit: first as FLARE's own script does it, then by signals.

    The program goes before its jobs: FLARE takes the end of a job's process under a living program for a failure of
    the whole job.

    Args:
        kit: of a site or of the server.
        flare_seconds: how long FLARE's own way may take, once its script runs.
        patience: seconds between asking a process to end and killing it.

    Returns:
        What was ended, in order; empty if nothing ran.

    Raises:
        ProcessError: something is still there, e.g. since another user started it.
    """
    found, ended = find_processes(kit), list[Ended]()
    names = _names(found)
    if found.keeper is not None:
        (kit.folder / SHUTDOWN_FILE).touch()
        gone, _ = psutil.wait_procs([p for p in (found.keeper, found.main) if p is not None], timeout=flare_seconds)
        ended += [Ended(process.pid, names[process.pid], "by FLARE's own way") for process in gone]
    for process in found.all:
        if process.is_running() and process.pid not in {each.pid for each in ended}:
            ended.append(Ended(process.pid, names[process.pid], _end(process, patience)))
    left = find_processes(kit)
    if left:
        # A keeper may have started its program once more before it was ended itself.
        names = _names(left)
        ended += [Ended(process.pid, names[process.pid], _end(process, patience)) for process in left.all]
        left = find_processes(kit)
    if left:
        pids = ", ".join(str(process.pid) for process in left.all)
        raise ProcessError(f"Processes of {kit.name} could not be ended: {pids}. Does another user run them?")
    for name in _LEFT_BY_FLARE:
        (kit.folder / name).unlink(missing_ok=True)
    return ended


def _names(found: KitProcesses) -> dict[int, str]:
    names = {process.pid: f"job {job}" for job, process in found.jobs.items()}
    if found.keeper is not None:
        names[found.keeper.pid] = "start script"
    if found.main is not None:
        names[found.main.pid] = "FLARE"
    return names


def _end(process: psutil.Process, patience: float) -> str:
    """End a process with all its children; says what it took."""
    family = process_tree(process.pid)
    with contextlib.suppress(psutil.Error):
        process.terminate()
    _, alive = psutil.wait_procs([process], timeout=patience)
    end_processes([each for each in family if each.is_running()], patience)
    return "killed" if alive else "terminated"


def last_lines(log: Path, count: int = 15) -> list[str]:
    """The end of a log; nothing where there is none."""
    if not log.is_file():
        return []
    with log.open("r", encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, maxlen=count)]
