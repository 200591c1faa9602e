"""``fedseg submit``: give a job to a running federation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape

from fedseg.commands.arguments import add_kit
from fedseg.console import err, out
from fedseg.deployment.coordination.session import FINISHED, Coordinator, FederationError, connect
from fedseg.jobs.job import apply_settings, read_job


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "submit",
        help="give a job to a running federation",
        description="Check a job, submit it with the kit of a person who may, and print its id.",
        epilog="example: fedseg submit jobs/brats_fedcostwavg --kit coordinator@example.org --wait",
    )
    parser.add_argument("job", type=Path, help="job folder, e.g. jobs/brats_fedcostwavg")
    add_kit(parser)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for simulate")
    parser.add_argument("--wait", action="store_true", help="show how it goes until the job has ended")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Submit; with ``--wait`` a job that does not end well is an error."""
    job = read_job(options.job)
    apply_settings(job, None, None, None, options.set)
    job.check()
    with connect(options.kit) as coordinator:
        err().print(f"connected sites: {', '.join(map(escape, coordinator.sites())) or 'none'}")
        job_id = coordinator.submit(job)
        out().print(job_id)
        if options.wait:
            follow(coordinator, job_id)
    return 0


def follow(coordinator: Coordinator, job_id: str, timeout: float = 0.0) -> None:
    """Show how a job goes until it has ended.

    Raises:
        FederationError: it did not end well, or not in time.
    """
    status = coordinator.wait(job_id, show_progress, timeout)
    if status != FINISHED:
        raise FederationError(
            f"The job {job_id} ended with {status}. `fedseg fetch {job_id}` brings what it left, and `fedseg resume "
            f"{job_id}` goes on after its last finished round."
        )


def show_progress(seen: dict[str, Any]) -> None:
    """One line on stderr for each change, such as ``running: round 3 of 15: train at alpha, beta``."""
    parts = [seen["status"].lower()]
    if "round" in seen:
        parts.append(f"round {seen['round'] + 1} of {seen['rounds']}")
    done = set(seen.get("answered", ()))
    tasks = [_at(task, sites, [site for site in sites if site not in done]) for task, sites in seen["tasks"].items()]
    err().print(escape(": ".join([*parts, *(["; ".join(tasks)] if tasks else [])])))


def _at(task: str, begun: list[str], left: list[str]) -> str:
    if begun and not left:
        return f"{task} done at {', '.join(begun)}"
    return f"{task} at {', '.join(left) or 'no site yet'}"
