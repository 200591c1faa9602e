"""What a client notes of its jobs, and how one that is started again takes them up."""

import json
import stat
import subprocess
import sys
from types import SimpleNamespace

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobProcessArgs
from nvflare.apis.workspace import Workspace

from fedseg.resilience.supervised_launcher import SupervisedLauncher
from fedseg.resilience.unfinished_jobs import NOTE, forget_job, note_job, take_up_jobs


def arguments(token):
    return {
        JobProcessArgs.JOB_ID: ("-n", "job-1"),
        JobProcessArgs.AUTH_TOKEN: ("-t", token),
        JobProcessArgs.TOKEN_SIGNATURE: ("-ts", f"signature of {token}"),
        JobProcessArgs.SSID: ("-d", "session"),
    }


def test_a_job_is_begun_as_given_and_gone_on_with_by_the_first_clients_token(tmp_path):
    assert note_job(tmp_path, arguments("first")) == arguments("first")
    assert note_job(tmp_path, arguments("second")) == arguments("first")
    forget_job(tmp_path)
    assert note_job(tmp_path, arguments("third")) == arguments("third")


def test_the_note_is_readable_for_its_owner_only_and_holds_nothing_else(tmp_path):
    note_job(tmp_path, arguments("first"))
    assert stat.S_IMODE((tmp_path / NOTE).stat().st_mode) == 0o600
    assert set(json.loads((tmp_path / NOTE).read_text())) == {"auth_token", "auth_signature", "ssid"}


def test_a_note_that_cannot_be_written_stops_no_job(tmp_path):
    (tmp_path / NOTE).mkdir()
    assert note_job(tmp_path, arguments("first")) == arguments("first")


@pytest.fixture
def client(tmp_path):
    """A client's engine, which writes down what it is asked to start."""
    started, consumed = [], []
    manager = SimpleNamespace(
        check_resources=lambda resource_requirement, fl_ctx: (resource_requirement != {"gpu": 9}, "reserved"),
        allocate_resources=lambda resource_requirement, token, fl_ctx: resource_requirement,
    )
    parts = {"resource_manager": manager, "resource_consumer": SimpleNamespace(consume=consumed.append)}
    engine = SimpleNamespace(
        args=SimpleNamespace(workspace=str(tmp_path)),
        get_client_name=lambda: "alpha",
        get_component=parts.get,
        new_context=FLContext,
        start_app=lambda job_id, **facts: started.append((job_id, facts)),
    )
    context = FLContext()
    context.get_engine = lambda: engine
    for name in ("startup", "local"):
        (tmp_path / name).mkdir()
    return SimpleNamespace(folder=tmp_path, context=context, started=started, consumed=consumed)


def leave_job(client, job_id, **meta):
    """A job that a former client did not finish."""
    (client.folder / job_id).mkdir()
    note_job(client.folder / job_id, arguments("first"))
    path = Workspace(str(client.folder), site_name="alpha").get_job_meta_path(job_id)
    with open(path, "w") as file:
        json.dump({"job_id": job_id, **meta}, file)


def test_unfinished_jobs_are_started_with_their_meta_and_resources_and_finished_ones_are_not(client):
    leave_job(client, "job-1", resource_spec={"alpha": {"gpu": 1}, "beta": {"gpu": 2}})
    leave_job(client, "job-2")
    leave_job(client, "job-3")
    forget_job(client.folder / "job-3")
    SupervisedLauncher().handle_event(EventType.SYSTEM_START, client.context)
    assert [job_id for job_id, _ in client.started] == ["job-1", "job-2"]
    facts = client.started[0][1]
    assert facts["job_meta"]["job_id"] == "job-1"
    assert (facts["allocated_resource"], facts["token"]) == ({"gpu": 1}, "reserved")
    assert client.consumed == [{"gpu": 1}]


def test_no_other_event_starts_a_job(client):
    leave_job(client, "job-1")
    SupervisedLauncher().handle_event(EventType.SYSTEM_BOOTSTRAP, client.context)
    assert client.started == []


def test_a_job_that_cannot_be_started_is_forgotten_and_stops_neither_the_client_nor_other_jobs(client):
    leave_job(client, "job-1", resource_spec={"alpha": {"gpu": 9}})
    leave_job(client, "job-2")
    (client.folder / "job-0").mkdir()
    note_job(client.folder / "job-0", arguments("first"))
    take_up_jobs(client.context)
    assert [job_id for job_id, _ in client.started] == ["job-2"]
    assert not (client.folder / "job-0" / NOTE).exists()
    assert not (client.folder / "job-1" / NOTE).exists()
    assert (client.folder / "job-2" / NOTE).exists()


def test_what_the_dead_client_left_running_of_a_job_is_ended_and_nothing_else(client):
    leave_job(client, "job-1")
    program = [sys.executable, "-c", "import time; time.sleep(600)", "nvflare.private.fed.app.client.worker_process"]
    orphan = subprocess.Popen([*program, "job-1", str(client.folder)])
    others = [
        subprocess.Popen([*program, *words]) for words in (("job-9", str(client.folder)), ("job-1", "/elsewhere"))
    ]
    try:
        take_up_jobs(client.context)
        orphan.wait(timeout=10)
        assert [other.poll() for other in others] == [None, None]
    finally:
        for process in (orphan, *others):
            process.kill()
            process.wait()
