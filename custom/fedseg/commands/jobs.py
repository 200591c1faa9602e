"""``fedseg jobs``: the jobs of a federation."""

from __future__ import annotations

import argparse
from typing import Any

from rich.markup import escape
from rich.table import Table

from fedseg.commands.arguments import Command
from fedseg.console import out
from fedseg.deployment.coordination.session import connect

_COLUMNS = {
    "id": "job_id",
    "job": "name",
    "submitted by": "submitter_name",
    "at": "submit_time_iso",
    "status": "status",
    "duration": "duration",
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
    table = Table()
    for column in _COLUMNS:
        # An id is there to be copied, so it is never cut or folded.
        table.add_column(column, no_wrap=column == "id", overflow="fold")
    for job in sorted(jobs, key=lambda meta: str(meta.get("submit_time_iso"))):
        cells = {column: str(job.get(key) or "") for column, key in _COLUMNS.items()}
        cells["at"], cells["duration"] = cells["at"].partition(".")[0], cells["duration"].partition(".")[0]
        table.add_row(*map(escape, cells.values()))
    out().print(table)
    return 0
