"""``fedseg resume``: let a job that was stopped go on from its last finished round."""

from __future__ import annotations

import argparse
from typing import Any

from rich.markup import escape

from fedseg.commands.arguments import add_kit
from fedseg.commands.submit import follow
from fedseg.console import err, out
from fedseg.deployment.coordination.resumed_job import resume
from fedseg.deployment.coordination.session import connect


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "resume",
        help="let a stopped job of a federation go on",
        description="Submit a job that a crash, an abort or a restart has ended once more, so that the server "
        "and sites go on after its last finished round with everything that they kept, and print its new id.",
        epilog="example: fedseg resume JOB_ID --kit coordinator@example.org --wait",
    )
    parser.add_argument("job_id", help="as `fedseg submit` printed it; `fedseg jobs` lists all")
    add_kit(parser)
    parser.add_argument(
        "--from-round",
        type=int,
        metavar="N",
        help="go back: continue after round N instead of the last one (server and sites keep a few)",
    )
    parser.add_argument("--wait", action="store_true", help="show how it goes until the job has ended")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Resume; with ``--wait`` a job that does not end well is an error."""
    with connect(options.kit) as coordinator:
        err().print(f"connected sites: {', '.join(map(escape, coordinator.sites())) or 'none'}")
        job_id = resume(coordinator, options.job_id, options.from_round)
        out().print(job_id)
        if options.wait:
            follow(coordinator, job_id)
    return 0
