"""``fedseg package``: a job with the code inside."""

from __future__ import annotations

import argparse
from typing import Any

from fedseg.commands.arguments import Command
from fedseg.console import out


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    command.path("job", "job folder")
    command.path("--out", "folder of the self-contained job, made new", required=True)
    command.settings()


def run(options: argparse.Namespace) -> int:
    """``fedseg package``: make the self-contained form of a job.

    Copy a job with fedseg's own code inside (BYOC), for sites that do not have fedseg installed and whose policy
    permits code in jobs.

    example: fedseg package jobs/hippocampus_fedavg --out runs/hippocampus_fedavg_packed
    """
    from fedseg.jobs.job import apply_settings, read_job
    from fedseg.jobs.packaging import package_job

    job = read_job(options.job)
    apply_settings(job, None, None, None, options.set)
    job.check()
    folder = package_job(job, options.out)
    out().print(f"self-contained job written to {folder}; sites need the byoc right and the requirements")
    return 0
