"""``fedseg package``: a job with the code inside."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedseg.console import out
from fedseg.jobs.job import apply_settings, read_job
from fedseg.jobs.packaging import package_job


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "package",
        help="make the self-contained form of a job",
        description="Copy a job with fedseg's own code inside (BYOC), for sites that do not have fedseg installed "
        "and whose policy permits code in jobs.",
        epilog="example: fedseg package jobs/hippocampus_fedavg --out runs/hippocampus_fedavg_packed",
    )
    parser.add_argument("job", type=Path, help="job folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the self-contained job, made new")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for simulate")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check the job and pack it."""
    job = read_job(options.job)
    apply_settings(job, None, None, None, options.set)
    job.check()
    folder = package_job(job, options.out)
    out().print(f"self-contained job written to {folder}; sites need the byoc right and the requirements")
    return 0
