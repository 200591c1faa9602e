"""``fedseg resume``: let a job that was stopped go on from its last finished round."""

from __future__ import annotations

import argparse
from typing import Any

from fedseg.commands.arguments import Command
from fedseg.commands.submit import submit_and_follow
from fedseg.deployment.coordination.session import connect


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    after = "go back: continue after round N (from 1) instead of the last one (server and sites keep a few)"
    command.job_id()
    command.kit()
    command.value("--from-round", after, int, metavar="N")
    command.several("--set", "change when a round or the run ends; may be repeated", "KEY=VALUE")
    command.wait()


def run(options: argparse.Namespace) -> int:
    """``fedseg resume``: let a stopped job of a federation go on.

    Submit a job that a crash, an abort or a restart has ended once more, so that the server and sites go on after its
    last finished round with everything that they kept, and print its new id.

    example: fedseg resume JOB_ID --kit coordinator@example.org --wait
    """
    with connect(options.kit) as coordinator:
        # Imported here, since a kit that is none needs no network.
        from fedseg.deployment.coordination.resumed_job import resume

        asked = options.job_id, options.from_round, options.set
        submit_and_follow(coordinator, lambda: resume(coordinator, *asked), options.wait)
    return 0
