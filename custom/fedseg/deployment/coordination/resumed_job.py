"""A stopped job of a federation, submitted again so that it goes on where it was."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedseg.contract.round_numbers import from_nth
from fedseg.deployment.coordination.fetched_run import finished_rounds, submitted_job
from fedseg.deployment.coordination.session import FINISHED, Coordinator, has_ended
from fedseg.errors import UsageError
from fedseg.jobs.changes import change_stopped
from fedseg.jobs.job import RUN_PROPERTY, Job


def resume(coordinator: Coordinator, job_id: str, from_round: int | None = None, settings: Sequence[str] = ()) -> str:
    """Submit a job that has ended too early once more, so that its run goes on.

    The server finds the run's checkpoints and every site its state by the run's id, which is the id of the first of
    its jobs where the job itself names none. What server and sites have kept is checked there: a run goes on with the
    same plan, rule and number of rounds only.

    Args:
        coordinator: a session.
        job_id: of the job, or of one that resumed it before.
        from_round: the finished round to continue after, from 1; None for the last one.
        settings: each ``key=value``: what shall be otherwise than before, of what decides when a round or the run ends.

    Returns:
        The id of the new job.

    Raises:
        UsageError: the job has ended well or without a finished round, another job continues its run at this moment,
            ``from_round`` is below 1, or a setting may not change.
        FederationError: there is no such job, it still runs, or this person may not fetch or submit it.
    """
    if from_round is not None and from_round < 1:
        raise UsageError(f"--from-round {from_round}: rounds are counted from 1.")
    known = coordinator.describe(job_id)
    if str(known.get("status")) == FINISHED:
        raise UsageError(
            f"The job {job_id} ended well, so there is nothing to resume. `fedseg fetch` brings it; submit a new job "
            "for more rounds."
        )
    _refuse_second(coordinator, job_id, _run_of(known) or job_id)
    with tempfile.TemporaryDirectory() as scratch:
        download = coordinator.download(job_id, Path(scratch))
        job = submitted_job(download)
        if not job.workflow.get("run_id") and finished_rounds(download) == 0:
            raise UsageError(
                f"No round of the job {job_id} was finished, so there is nothing to continue. `fedseg fetch {job_id}` "
                "brings the reason; submit the job anew."
            )
        change_stopped(job, settings)
        return coordinator.submit(continued(job, job_id, None if from_round is None else from_nth(from_round)))


def _refuse_second(coordinator: Coordinator, job_id: str, run_id: str) -> None:
    """Refuse to continue a run on which another job works, or will; the server would refuse it once it has begun."""
    for other in coordinator.jobs():
        name, status = other.get("job_id"), str(other.get("status"))
        if _run_of(other) == run_id and name != job_id and not has_ended(status):
            raise UsageError(
                f"The job {job_id} is being resumed already, as job {name} ({status}). Wait for its end, or abort "
                "it and resume that one."
            )


def _run_of(known: Mapping[str, Any]) -> Any:
    """The run that a job continues; None where it began one."""
    return (known.get("custom_props") or {}).get(RUN_PROPERTY)


def continued(job: Job, job_id: str, from_round: int | None = None) -> Job:
    """The job, changed so that it continues the run that ``job_id`` started or continued; ``from_round`` is from 0."""
    job.workflow.setdefault("run_id", None)
    job.workflow.update(run_id=job.workflow["run_id"] or job_id, resume=True, resume_round=from_round)
    job.check()
    return job
