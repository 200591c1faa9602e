"""The processes of a kit on this machine: started by the kit's own script, and recognised among all others.

FLARE's script writes the ids of itself and of its program into the kit (``daemon_pid.fl``, ``pid.fl``). An id may be
somebody else's by now, so a process counts only if its command line names this very kit.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fedseg.deployment.kits.installed_kit import START_SCRIPT, STARTUP, InstalledKit
from fedseg.files.locks import held_locks
from fedseg.processes import FLARE_PROGRAMS, flare_program, living_commands, process_group

_CLIENT = f"{FLARE_PROGRAMS}client.client_train"
_MAIN_PROGRAMS = ("client_train", "server_train")


@dataclass
class KitProcesses:
    """What runs from a kit now.

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


def run_start_script(
    kit: Path, log: Path, words: Sequence[str] = (), wrapper: Sequence[str] = (), folder: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start FLARE in the background by a kit's own script, in a session of its own.

    Args:
        kit: of a server or a site.
        log: file to which is added what the processes print.
        words: arguments of the script. With ``--once`` it becomes FLARE's program; without, it starts it again
            whenever it ends.
        wrapper: words before the command, of a program that becomes the command, such as ``ip netns exec NAME``.
        folder: in which it runs; None for the present one.
    """
    # With this variable FLARE's script would run a copy of the kit in another folder.
    environment = {name: value for name, value in os.environ.items() if name != "NVFL_WORKSPACE"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with log.open("ab") as file:
        return subprocess.Popen(
            [*wrapper, "bash", str(kit / STARTUP / START_SCRIPT), *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**environment, "PATH": path, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
            pass_fds=held_locks(),
        )


def find_processes(kit: InstalledKit) -> KitProcesses:
    """All living processes of a kit, whoever started them."""
    found = KitProcesses()
    for process, command in living_commands():
        with contextlib.suppress(psutil.Error, OSError):
            if _runs_script(process, command, kit.folder):
                # The script runs FLARE's program in a copy of itself for a moment, until that copy becomes the program.
                if found.keeper is None or process.ppid() != found.keeper.pid:
                    found.keeper = process
            elif (program := flare_program(command, kit.folder)) is not None:
                _note_program(found, process, command, program.rpartition(".")[2])
    return found


def living_processes(kits: Iterable[Path], leaders: Iterable[int] = ()) -> list[psutil.Process]:
    """Every living process that runs from one of the kits, those of jobs included, also when their parent is gone.

    FLARE gives each job's process a session of its own, in which it outlives its parent.

    Args:
        kits: folders of kits on this machine.
        leaders: ids of processes that lead or led a session, whose members count too, whatever they run.
    """
    found = {process.pid: process for pid in leaders for process in process_group(pid)}
    folders = {kit.resolve() for kit in kits}
    for process, command in living_commands():
        with contextlib.suppress(psutil.Error, OSError):
            if any(_runs_script(process, command, kit) or flare_program(command, kit) for kit in folders):
                found[process.pid] = process
    return [process for process in found.values() if _lives(process)]


def other_sites(kit: InstalledKit) -> list[Path]:
    """The folders of other kits from which a site runs on this machine, as far as this user may see them."""
    found = set()
    for _, command in living_commands():
        if _CLIENT in command and "-m" in command[command.index(_CLIENT) : -1]:
            found.add(Path(command[command.index("-m", command.index(_CLIENT)) + 1]).resolve())
    return sorted(found - {kit.folder})


def _runs_script(process: psutil.Process, command: Sequence[str], kit: Path) -> bool:
    """Whether this is the kit's start script; whoever typed its name may have counted from the folder he was in."""
    names = (Path(word) for word in command[:3] if word.endswith(START_SCRIPT))
    paths = (name if name.is_absolute() else Path(process.cwd()) / name for name in names)
    return any(path.resolve() == kit / STARTUP / START_SCRIPT for path in paths)


def _note_program(found: KitProcesses, process: psutil.Process, command: Sequence[str], program: str) -> None:
    job = command[command.index("-n") + 1] if "-n" in command[:-1] else str(process.pid)
    former = found.main if program in _MAIN_PROGRAMS else found.jobs.get(job)
    # For a moment a process that FLARE starts is a copy of FLARE's own.
    if former is not None and process.ppid() == former.pid:
        return
    if program in _MAIN_PROGRAMS:
        found.main = process
    else:
        found.jobs[job] = process


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
