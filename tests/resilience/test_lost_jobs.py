"""What a server does at its start with jobs that a former process was running."""

from types import SimpleNamespace

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.job_def_manager import SimpleJobDefManager
from nvflare.apis.job_def import RunStatus

from fedseg.resilience.lost_jobs import LostJobs

BEFORE = {"waits": "SUBMITTED", "sent": "DISPATCHED", "runs": "RUNNING", "ended": "FINISHED:COMPLETED"}
AFTER = {**BEFORE, "sent": "FINISHED:ABANDONED", "runs": "FINISHED:ABANDONED"}


class Jobs(SimpleJobDefManager):
    """A store of jobs whose states are kept here."""

    def __init__(self, folder):
        super().__init__(str(folder))
        self.states = dict(BEFORE)

    def get_jobs_by_status(self, run_status, fl_ctx):
        wanted = {status.value for status in run_status}
        return [SimpleNamespace(job_id=job) for job, status in self.states.items() if status in wanted]

    def set_status(self, jid, status, fl_ctx):
        assert isinstance(status, RunStatus)
        self.states[jid] = status.value


def start(component, jobs, event=EventType.SYSTEM_BOOTSTRAP):
    context = FLContext()
    context.get_engine = lambda: SimpleNamespace(get_component=lambda name: jobs, fire_event=lambda *facts: None)
    component.handle_event(event, context)


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "jobs")


def test_what_a_former_process_was_running_is_abandoned_and_nothing_else(jobs):
    start(LostJobs(), jobs)
    assert jobs.states == AFTER


def test_other_events_change_nothing(jobs):
    start(LostJobs(), jobs, EventType.SYSTEM_START)
    assert jobs.states == BEFORE


def test_the_jobs_of_another_server_that_lives_are_not_lost(jobs, caplog):
    first, second = LostJobs(), LostJobs()
    start(first, jobs)
    jobs.states = dict(BEFORE)
    start(second, jobs)
    assert jobs.states == BEFORE
    assert "Another server uses the jobs in" in caplog.text
    first._claim.close()
    start(LostJobs(), jobs)
    assert jobs.states == AFTER, "the first server has ended"


def test_a_file_system_without_locks_hinders_nothing(jobs, tmp_path, caplog):
    (tmp_path / "jobs.lock").mkdir()
    start(LostJobs(), jobs)
    assert jobs.states == AFTER
    assert "cannot be told" in caplog.text


def test_a_server_without_a_store_is_left_alone(caplog):
    start(LostJobs(), None)
    assert "keeps no jobs" in caplog.text
