"""How a kit's processes are now: for the person who looks, without asking the server."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from fedseg.deployment.kits.installed_kit import InstalledKit
from fedseg.deployment.operation.kit_processes import KitProcesses, find_processes
from fedseg.deployment.operation.start_stop import LOG_FILE, last_lines


@dataclass(frozen=True)
class KitStatus:
    """How a kit's processes are.

    Attributes:
        processes: that run now.
        since: when FLARE's program started; None where none runs.
        connected: whether it has a connection with the server now; for the server, whether it listens. None where
            this user may not look.
        log: file with everything that was printed.
        lines: its last lines.
    """

    processes: KitProcesses
    since: datetime | None
    connected: bool | None
    log: Path
    lines: tuple[str, ...]


def status(kit: InstalledKit, lines: int = 5) -> KitStatus:
    """Look at a kit's processes and at the end of their log."""
    found = find_processes(kit)
    since, connected = None, None
    if found.main is not None:
        with contextlib.suppress(psutil.Error):
            since = datetime.fromtimestamp(found.main.create_time(), UTC)
            connected = _is_connected(found.main, kit)
    # Started by other means, FLARE prints elsewhere; its own log is always there.
    log = next((path for name in (LOG_FILE, "log.txt") if (path := kit.folder / name).is_file()), kit.folder / LOG_FILE)
    return KitStatus(found, since, connected, log, tuple(last_lines(log, lines)))


def _is_connected(main: psutil.Process, kit: InstalledKit) -> bool:
    connections = main.net_connections("tcp")
    if kit.is_site:
        return any(c.status == psutil.CONN_ESTABLISHED and c.raddr and c.raddr.port == kit.port for c in connections)
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == kit.port for c in connections)
