"""What runs on this machine as part of a local federation, and the ports on which it listens."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedseg.deployment.kits.project_file import HOST
from fedseg.deployment.kits.provisioned_kits import Kit
from fedseg.deployment.operation.kit_processes import run_start_script


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
    """Start FLARE from a kit, without the loop that starts again what ends.

    Args:
        kit: of a server or a site.
        logs: existing folder for what it prints.
        wrapper: see ``run_start_script``.
    """
    log = logs / f"{kit.name}.log"
    return Participant(kit, run_start_script(kit.folder, log, ["--once"], wrapper), log)


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
