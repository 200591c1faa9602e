"""The processes of a provisioned federation on this machine: started from its kits, found again, and asked for."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from fedseg.deployment.kits.federation_kits import Kit
from fedseg.deployment.kits.project_file import HOST
from fedseg.processes import process_group

_PROGRAMS = "nvflare.private.fed.app."
_JOB_PROGRAMS = (f"{_PROGRAMS}client.worker_process", f"{_PROGRAMS}server.runner_process")


@dataclass(frozen=True)
class Participant:
    """A server or a site that runs.

    Attributes:
        kit: from which it runs.
        process: FLARE's parent process; it starts one more for each job.
        log: everything that it printed.
    """

    kit: Kit
    process: subprocess.Popen[bytes]
    log: Path


def launch(kit: Kit, logs: Path, wrapper: Sequence[str] = ()) -> Participant:
    """Start a kit's own script without its loop that restarts what ends, so that it becomes FLARE's process.

    Args:
        kit: of a server or a site.
        logs: existing folder for what it prints.
        wrapper: words before the command, of a program that becomes the command, such as ``ip netns exec NAME``.
    """
    log = logs / f"{kit.name}.log"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*wrapper, "bash", str(kit.folder / "startup" / "sub_start.sh"), "--once"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    return Participant(kit, process, log)


def living_processes(kits: Iterable[Kit], parents: Iterable[int]) -> list[psutil.Process]:
    """Every living process that runs from one of the kits, those of jobs included, also when their parent is gone.

    FLARE gives each job's process a session of its own, in which it outlives its parent; it is found by the kit in its
    command line.

    Args:
        kits: of a federation on this machine.
        parents: ids of the processes that were started from them.
    """
    found = {p.pid: p for pid in parents for p in process_group(pid)}
    folders = {str(kit.folder) for kit in kits}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if any(word.startswith(_PROGRAMS) for word in command) and folders & set(command):
                found[process.pid] = process
    return [process for process in found.values() if _lives(process)]


def job_processes(kit: Kit, job_id: str | None = None) -> list[psutil.Process]:
    """The living processes of jobs that run from a kit; with ``job_id`` of that job only."""
    found = []
    for process in living_processes([kit], []):
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if set(_JOB_PROGRAMS) & set(command) and (job_id is None or job_id in command):
                found.append(process)
    return found


def free_port() -> int:
    """A port of this machine on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
