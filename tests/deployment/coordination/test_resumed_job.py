"""A stopped job that is submitted again."""

import json
from pathlib import Path

import pytest

from fedseg.deployment.coordination.resumed_job import continued, resume
from fedseg.deployment.coordination.session import FINISHED
from fedseg.errors import UsageError
from fedseg.jobs.job import read_job

JOB = Path(__file__).parents[3] / "jobs" / "hippocampus_fedavg"


class Server:
    """What ``resume`` asks of a coordinator's session."""

    def __init__(self, status, events=None, others=()):
        self.status, self.events, self.others = status, events, others

    def describe(self, job_id):
        return {"job_id": job_id, "status": self.status}

    def jobs(self):
        return [{"job_id": "first", "status": self.status}, *self.others]

    def download(self, job_id, folder):
        """The folder as FLARE sends it: signing made a temporary name of the job's own."""
        place = folder / job_id
        (place / "job").mkdir(parents=True)
        read_job(JOB).write(place / "job" / "tmpx1y2")
        if self.events is not None:
            (place / "workspace" / "fedseg").mkdir(parents=True)
            lines = "".join(json.dumps({"event": event}) + "\n" for event in self.events)
            (place / "workspace" / "fedseg" / "progress.jsonl").write_text(lines)
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


def test_rounds_are_counted_from_1():
    with pytest.raises(UsageError, match="--from-round 0: rounds are counted from 1"):
        resume(Server("FINISHED:ABORTED"), "first", 0)
    server = Server("FINISHED:ABORTED", ["round", "round_done", "round"])
    assert resume(server, "first", 1) == "second"
    assert server.submitted["resume_round"] == 0


def test_a_job_without_a_finished_round_is_not_resumed():
    server = Server("FINISHED:EXECUTION_EXCEPTION", ["prepare", "accepted", "round", "failed"])
    with pytest.raises(UsageError, match="No round of the job first was finished, so there is nothing to continue"):
        resume(server, "first")
    assert not hasattr(server, "submitted")


def test_a_run_on_which_another_job_works_is_not_resumed_twice(tmp_path):
    job = continued(read_job(JOB), "first")
    written = json.loads((job.write(tmp_path / "job") / "meta.json").read_text("utf-8"))
    second = {**written, "job_id": "second"}
    for status in ("RUNNING", "SUBMITTED", "DISPATCHED"):
        server = Server("FINISHED:ABORTED", others=[{**second, "status": status}])
        with pytest.raises(UsageError, match=rf"first is being resumed already, as job second \({status}\)"):
            resume(server, "first")
        assert not hasattr(server, "submitted")


@pytest.mark.parametrize("run_id", ["first", "another"])
def test_a_job_that_has_ended_or_has_another_run_stands_in_nobodys_way(tmp_path, run_id):
    job = continued(read_job(JOB), run_id)
    written = json.loads((job.write(tmp_path / "job") / "meta.json").read_text("utf-8"))
    status = "FINISHED:ABANDONED" if run_id == "first" else "RUNNING"
    plain = {"job_id": "third", "status": "RUNNING", "custom_props": None}
    assert resume(Server("FINISHED:ABORTED", others=[{**written, "job_id": "x", "status": status}, plain]), "first")


def test_limits_of_time_and_of_sites_may_change_and_nothing_that_a_round_makes():
    server = Server("FINISHED:ABORTED", ["round", "round_done", "round"])
    settings = ["workflow.min_sites=2", "workflow.round_timeout=600", "workflow.min_sites=3"]
    assert resume(server, "first", None, settings) == "second"
    assert (server.submitted["min_sites"], server.submitted["round_timeout"]) == (3, 600)
    assert (server.submitted["run_id"], server.submitted["resume"]) == ("first", True)
    server = Server("FINISHED:ABORTED", ["round", "round_done", "round"])
    with pytest.raises(UsageError, match=r"as it was; only workflow\.round_timeout, .*fresh_states.* may change"):
        resume(server, "first", None, ["training.learning_rate=0.1"])
    assert not hasattr(server, "submitted")
