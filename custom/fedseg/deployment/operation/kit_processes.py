"""The processes of one kit on this machine, recognised among all others.

FLARE's script writes the ids of itself and of its program into the kit (``daemon_pid.fl``, ``pid.fl``). An id may be
somebody else's by now, so a process counts only if its command line names this very kit.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fedseg.deployment.kits.installed_kit import START_SCRIPT, STARTUP, InstalledKit

_PROGRAMS = "nvflare.private.fed.app."
_CLIENT = f"{_PROGRAMS}client.client_train"
_MAIN_PROGRAMS = ("client_train", "server_train")


@dataclass
class KitProcesses:
    """What runs from a kit now. Every process is recognised by the kit's path in its command line.

    Attributes:
        keeper: FLARE's script, which starts its program anew when it ends; None where another keeper does.
        main: FLARE's program, which talks with the server.
        jobs: process of each job, by the job's id.
    """

    keeper: psutil.Process | None = None
    main: psutil.Process | None = None
    jobs: dict[str, psutil.Process] = field(default_factory=dict)

    @property
    def all(self) -> list[psutil.Process]:
        """In the order in which they are ended: who would start another one first."""
        return [process for process in (self.keeper, self.main, *self.jobs.values()) if process is not None]

    def __bool__(self) -> bool:
        return bool(self.all)


def find_processes(kit: InstalledKit) -> KitProcesses:
    """All living processes of a kit, whoever started them."""
    found = KitProcesses()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            _sort_in(found, process, process.cmdline(), kit.folder)
    return found


def other_sites(kit: InstalledKit) -> list[Path]:
    """The folders of other kits from which a site runs on this machine, as far as this user may see them."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            command = process.cmdline()
            if _CLIENT in command and "-m" in command[command.index(_CLIENT) : -1]:
                found.add(Path(command[command.index("-m", command.index(_CLIENT)) + 1]).resolve())
    return sorted(found - {kit.folder})


def _sort_in(found: KitProcesses, process: psutil.Process, command: list[str], folder: Path) -> None:
    script = folder / STARTUP / START_SCRIPT
    if any(word.endswith(START_SCRIPT) and _path(process, word) == script for word in command[:3]):
        # The script runs FLARE's program in a copy of itself for a moment, until that copy becomes the program.
        if found.keeper is None or process.ppid() != found.keeper.pid:
            found.keeper = process
        return
    program = next((word for word in command if word.startswith(_PROGRAMS)), None)
    if program is None or not any(word.startswith(os.sep) and Path(word).resolve() == folder for word in command):
        return
    if program.rpartition(".")[2] in _MAIN_PROGRAMS:
        # For a moment a process that FLARE starts is a copy of FLARE's own.
        if found.main is None or process.ppid() != found.main.pid:
            found.main = process
    else:
        job = command[command.index("-n") + 1] if "-n" in command[:-1] else str(process.pid)
        found.jobs[job] = process


def _path(process: psutil.Process, word: str) -> Path:
    """The file that a word of a process' command line means; it may count from the folder in which it was typed."""
    return (Path(word) if word.startswith(os.sep) else Path(process.cwd()) / word).resolve()
