"""``fedseg jobs``: the jobs of a federation."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from fedseg.commands.arguments import Command
from fedseg.console import out
from fedseg.deployment.coordination.session import connect

_COLUMNS = {
    "id": "job_id",
    "status": "status",
    "job": "name",
    "submitted": "submit_time_iso",
    "took": "duration",
    "by": "submitter_name",
}


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    command.kit()


def run(options: argparse.Namespace) -> int:
    """``fedseg jobs``: list the jobs of a federation.

    List the jobs that the server of a federation knows, with who submitted them and how they went.

    example: fedseg jobs --kit coordinator@example.org
    """
    with connect(options.kit) as coordinator:
        jobs = coordinator.jobs()
    lines = [list(_COLUMNS), *(_cells(job) for job in sorted(jobs, key=lambda meta: str(meta.get("submit_time_iso"))))]
    console = out()
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    # One line for a job: where a terminal is too narrow the last columns give way, never the id, which is to be copied.
    shown = len(widths)
    while console.is_terminal and shown > 1 and sum(widths[:shown]) + 2 * (shown - 1) > console.width:
        shown -= 1
    for cells in lines:
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells[:shown], widths, strict=False))
        console.print(escape(line.rstrip()), soft_wrap=True)
    return 0


def _cells(job: Mapping[str, Any]) -> list[str]:
    cells = {column: str(job.get(key) or "") for column, key in _COLUMNS.items()}
    cells["status"] = cells["status"].removeprefix("FINISHED:").lower().replace("_", " ")
    cells["submitted"] = cells["submitted"][:16].replace("T", " ")
    cells["took"] = cells["took"].partition(".")[0]
    return list(cells.values())
