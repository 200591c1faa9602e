"""A stopped job that is submitted again."""

from pathlib import Path

import pytest

from fedseg.deployment.coordination.resumed_job import continued, resume
from fedseg.deployment.coordination.session import FINISHED
from fedseg.errors import UsageError
from fedseg.jobs.job import read_job

JOB = Path(__file__).parents[3] / "jobs" / "hippocampus_fedavg"


class Server:
    """What ``resume`` asks of a coordinator's session."""

    def __init__(self, status):
        self.status = status

    def describe(self, job_id):
        return {"job_id": job_id, "status": self.status}

    def download(self, job_id, folder):
        """The folder as FLARE sends it: signing made a temporary name of the job's own."""
        place = folder / job_id
        (place / "job").mkdir(parents=True)
        read_job(JOB).write(place / "job" / "tmpx1y2")
        return place

    def submit(self, job):
        self.submitted = job.workflow
        return "second"


def test_the_run_of_a_job_that_names_none_is_the_job_itself():
    server = Server("FINISHED:ABORTED")
    assert resume(server, "first") == "second"
    assert server.submitted["run_id"] == "first"
    assert server.submitted["resume"] is True
    assert server.submitted["resume_round"] is None


def test_a_job_that_was_resumed_before_keeps_its_run():
    job = continued(read_job(JOB), "first")
    again = continued(job, "second", 3)
    assert (again.workflow["run_id"], again.workflow["resume_round"]) == ("first", 3)


def test_a_job_that_ended_well_is_not_resumed():
    with pytest.raises(UsageError, match="ended well, so there is nothing to resume"):
        resume(Server(FINISHED), "first")


def test_rounds_are_counted_from_0():
    with pytest.raises(UsageError, match="--from-round -1"):
        resume(Server("FINISHED:ABORTED"), "first", -1)
