"""``fedseg submit``: give a job to a running federation."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.markup import escape

from fedseg.commands.arguments import Command
from fedseg.console import err, out, tell
from fedseg.contract.round_numbers import nth
from fedseg.deployment.coordination.session import FINISHED, Coordinator, FederationError, Progress, connect


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    command.path("job", "job folder, e.g. jobs/brats_fedcostwavg")
    command.kit()
    command.settings()
    command.path("--models", "folder of model files that are scored at every site, with workflow.cross_site", "DIR")
    command.wait()


def run(options: argparse.Namespace) -> int:
    """``fedseg submit``: give a job to a running federation.

    Check a job, submit it with the kit of a person who may, and print its id.

    example: fedseg submit jobs/brats_fedcostwavg --kit coordinator@example.org --wait
    """
    from fedseg.jobs.job import apply_settings, read_job
    from fedseg.jobs.scored_models import models_in

    job = read_job(options.job)
    if options.models is not None:
        job.models |= models_in(options.models)
    apply_settings(job, None, None, None, options.set)
    job.check()
    with connect(options.kit) as coordinator:
        submit_and_follow(coordinator, lambda: coordinator.submit(job), options.wait)
    return 0


def submit_and_follow(coordinator: Coordinator, submit: Callable[[], str], wait: bool) -> None:
    """Submit a job, print its id and, if that is wanted, show how it goes until it has ended.

    Raises:
        FederationError: it could not be submitted, or did not end well.
    """
    err().print(f"connected sites: {', '.join(map(escape, coordinator.sites())) or 'none'}")
    job_id = submit()
    out().print(job_id)
    if not wait:
        return
    status = coordinator.wait(job_id, new_watch())
    if status != FINISHED:
        raise FederationError(
            f"The job {job_id} ended with {status}. `fedseg fetch {job_id}` brings what it left, and the reason; "
            f"`fedseg resume {job_id}` goes on after its last finished round, if there is one."
        )


def new_watch() -> Progress:
    """What shows how a job goes while ``Coordinator.wait`` waits for it."""
    return partial(show_progress, told=[])


def show_progress(seen: dict[str, Any], told: list[str]) -> None:
    """One line on stderr for each change, such as ``running: round 3 of 15: train at alpha, beta``.

    Args:
        seen: what ``Coordinator.wait`` tells.
        told: events that were shown before; new ones come first, each in a line of its own, and are added.
    """
    for event in seen.get("events", ()):
        if event not in told:
            told.append(event)
            tell(event, warning=True)
    parts = [seen["status"].lower()]
    if "round" in seen:
        parts.append(f"round {nth(seen['round'])} of {seen['rounds']}")
    done = set(seen.get("answered", ()))
    tasks = [_at(task, sites, [site for site in sites if site not in done]) for task, sites in seen["tasks"].items()]
    err().print(escape(": ".join([*parts, *(["; ".join(tasks)] if tasks else [])])))


def _at(task: str, begun: list[str], left: list[str]) -> str:
    if begun and not left:
        return f"{task} done at {', '.join(begun)}"
    return f"{task} at {', '.join(left) or 'no site yet'}"
