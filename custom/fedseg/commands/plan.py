"""``fedseg plan``: a job for a federation, from what its cases are like."""

from __future__ import annotations

import argparse
from typing import Any

from rich.markup import escape

from fedseg.commands.arguments import Command
from fedseg.console import out, tell
from fedseg.contract.proposal import VOXELS
from fedseg.errors import UsageError
from fedseg.files.folders import new_folder
from fedseg.files.names import JOB
from fedseg.files.outputs import check_new_folder

SMALLEST_PATCH = 16**3


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    command.path("statistics", "a statistics.json, or the folder of a run of a job of statistics", "STATISTICS")
    command.value("--name", "name of the job (default: the task's name and _planned)", metavar="NAME")
    command.value("--voxels", f"the most that a patch may have (default {VOXELS})", int, metavar="N", default=VOXELS)
    command.path("--out", "a new or empty folder", "DIR", required=True)


def run(options: argparse.Namespace) -> int:
    """``fedseg plan``: propose a job for a federation.

    From merged statistics, propose voxel size, patch, network, normalisation and batch by the rules of nnU-Net, and
    write DIR/NAME (a job folder), DIR/task.json and DIR/reasons.md. Read them, change what you know better, and submit
    the job.

    example: fedseg plan runs/statistics --name liver_planned --out runs/plan
    """
    if options.voxels < SMALLEST_PATCH:
        raise UsageError(f"--voxels is {options.voxels}, but must be at least {SMALLEST_PATCH}.")
    # Imported here: a wrong call needs no network.
    from fedseg.jobs.job import read_job
    from fedseg.planning.job_folder import write_job
    from fedseg.planning.proposed_job import propose_job
    from fedseg.statistics.document import read_statistics

    statistics = read_statistics(options.statistics)
    check_new_folder("--out", options.out, {"STATISTICS": options.statistics})
    name = JOB.check("--name", options.name or f"{statistics.task.name}_planned")
    with new_folder(options.out) as folder:
        proposed = propose_job(statistics, options.voxels)
        read_job(write_job(proposed, name, folder)).check()
    for text in proposed.reasons:
        out().print(escape(text))
    for text in proposed.warnings:
        tell(text, warning=True)
    out().print(escape(f"job:     {options.out / name}"))
    return 0
