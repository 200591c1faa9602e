"""A coordinator's session: what FLARE says becomes a sentence, and what a job left becomes a run."""

import json
import sys
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.fuel.flare_api import api_spec
from rich.console import Console

from evaluation.synthetic_run import make_summary
from fedseg.cli import main
from fedseg.commands.fetch import finish_run
from fedseg.commands.submit import show_progress
from fedseg.deployment.coordination import session as federation
from fedseg.deployment.coordination.fetched_run import UnfinishedError, fetch
from fedseg.deployment.coordination.session import Coordinator, FederationError, connect
from fedseg.errors import UsageError

JOB = Path(__file__).parents[3] / "jobs" / "hippocampus_fedavg"


class FakeSession:
    """A session that answers from a script: an exception is raised, anything else is returned."""

    def __init__(self, **answers):
        self.answers, self.closed = answers, False

    def __getattr__(self, name):
        def call(*arguments, **options):
            sys.stdout.write("FLARE likes to print\n")
            answer = self.answers[name]
            answer = answer.pop(0) if isinstance(answer, list) else answer
            if isinstance(answer, Exception):
                raise answer
            return answer(*arguments) if callable(answer) else answer

        return call

    def close(self):
        self.closed = True


def coordinator(**answers):
    session = FakeSession(**answers)
    return Coordinator(lambda: session, "ada@example.org")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (api_spec.NoConnection("cannot connect"), "could not see the job 7: cannot connect. Is the server running"),
        (api_spec.SessionClosed("closed"), "the session has ended"),
        (api_spec.SessionExpired("idle"), "the session has ended"),
        (api_spec.AuthenticationError("bad"), "the server does not accept the kit"),
        (api_spec.AuthorizationError("no"), "ada@example.org has no right to see the job 7"),
        (api_spec.JobNotFound("7"), "the server knows no such job"),
        (api_spec.JobNotDone("7"), "it is still running"),
        (api_spec.InvalidJobDefinition("empty"), "FLARE refuses the job folder (empty)"),
        (ZeroDivisionError("odd"), "could not see the job 7: ZeroDivisionError: odd"),
    ],
)
def test_every_failure_is_a_sentence_with_the_person_and_the_wish(error, sentence, capsys):
    with pytest.raises(FederationError) as caught:
        coordinator(get_job_meta=error).describe("7")
    assert sentence in str(caught.value)
    assert "ada@example.org" in str(caught.value)
    assert capsys.readouterr().out == "", "FLARE's own prints would mix with results"


def status(*names):
    return [{"status": name} for name in names]


def test_waiting_tells_each_change_once():
    stats = [{"server": {"C": {"tasks": {"train": ["b", "a"]}}, "R": {"status": "x"}}}] * 2 + [{"server": {}}]
    seen = []
    last = coordinator(
        get_job_meta=status("SUBMITTED", "RUNNING", "RUNNING", "RUNNING", "FINISHED:COMPLETED"), show_stats=stats
    ).wait("7", seen.append, interval=0.001)
    assert last == "FINISHED:COMPLETED"
    assert seen == [
        {"status": "SUBMITTED", "tasks": {}},
        {"status": "RUNNING", "tasks": {"train": ["a", "b"]}},
        {"status": "RUNNING", "tasks": {}},
        {"status": "FINISHED:COMPLETED", "tasks": {}},
    ]


def round_of(number, total, answered, waiting):
    """What a server of fedseg tells."""
    work = {"tasks": {"train": ["b", "a"]}, "round": number, "rounds": total, "answered": answered, "waiting": waiting}
    return {"server": {"FederatedTraining": work, "ServerRunner": {"status": "started"}}}


def test_waiting_tells_the_round_and_who_has_answered_where_the_server_says_so():
    seen = []
    coordinator(
        get_job_meta=status("RUNNING", "RUNNING", "FINISHED:COMPLETED"),
        show_stats=[round_of(2, 15, [], ["b", "a"]), round_of(2, 15, ["b"], ["a"])],
    ).wait("7", seen.append, interval=0.001)
    tasks = {"train": ["a", "b"]}
    assert seen == [
        {"status": "RUNNING", "tasks": tasks, "round": 2, "rounds": 15, "answered": [], "waiting": ["a", "b"]},
        {"status": "RUNNING", "tasks": tasks, "round": 2, "rounds": 15, "answered": ["b"], "waiting": ["a"]},
        {"status": "FINISHED:COMPLETED", "tasks": {}},
    ]


@pytest.mark.parametrize(
    "odd",
    [{"round": "2", "rounds": 15}, {"round": 2}, {"round": 15, "rounds": 15}, {"round": -1, "rounds": 3},
     {"round": True, "rounds": 3}, {"answered": "a", "waiting": None}, "text", None],
)  # fmt: skip
def test_what_cannot_be_read_of_the_progress_is_left_out(odd):
    assert coordinator(show_stats={"server": {"C": odd, "D": {"tasks": {"t": []}}}}).activity("7") == {
        "tasks": {"t": []}
    }


@pytest.mark.parametrize(
    ("seen", "line"),
    [
        ({"status": "SUBMITTED", "tasks": {}}, "submitted"),
        ({"status": "RUNNING", "tasks": {"train": ["a", "b"]}}, "running: train at a, b"),
        ({"status": "RUNNING", "tasks": {"train": []}}, "running: train at no site yet"),
        (
            {"status": "RUNNING", "tasks": {"train": ["a", "b"]}, "round": 2, "rounds": 15, "answered": []},
            "running: round 3 of 15: train at a, b",
        ),
        (
            {"status": "RUNNING", "tasks": {"train": ["a", "b"]}, "round": 2, "rounds": 15, "answered": ["a"]},
            "running: round 3 of 15: train at b",
        ),
        (
            {"status": "RUNNING", "tasks": {"train": ["a"]}, "round": 2, "rounds": 15, "answered": ["a"]},
            "running: round 3 of 15: train done at a",
        ),
        ({"status": "RUNNING", "tasks": {}, "round": 2, "rounds": 15}, "running: round 3 of 15"),
    ],
)
def test_a_line_says_what_a_job_does(seen, line, capsys):
    show_progress(seen, [])
    assert capsys.readouterr().err == f"{line}\n"


def test_what_went_wrong_at_a_site_is_told_while_somebody_waits_and_once(capsys):
    refused = {"round": -1, "site": "beta", "what": "policy: rule min_cases"}
    silent = {"round": 0, "site": "alpha", "what": "did not answer the task train"}
    odd = {"site": 7, "what": "x"}

    def stats(*events):
        return {"server": {"C": {"tasks": {}, "events": list(events)}}}

    told = []
    coordinator(
        get_job_meta=status(*["RUNNING"] * 3, "FINISHED:COMPLETED"),
        show_stats=[stats(refused, odd), stats(refused), stats(refused, silent)],
    ).wait("7", lambda seen: show_progress(seen, told), interval=0.001)
    lines = capsys.readouterr().err.splitlines()
    expected = ["before round 1: beta: policy: rule min_cases", "round 1: alpha: did not answer the task train"]
    assert [line for line in lines if ": beta: " in line or ": alpha: " in line] == expected == told


class Clock:
    """Time that goes on only where somebody sleeps."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(federation, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=clock.sleep))
    return clock


def test_the_longer_a_wait_lasts_the_less_often_it_asks(clock):
    """2 s for the first 40 s; a twentieth of the time until 15 s are reached after 300 s, for hours."""
    asked = []

    def meta(job_id):
        asked.append(clock.now)
        return {"status": "RUNNING" if clock.now < 8 * 3600 else "FINISHED:COMPLETED"}

    assert coordinator(get_job_meta=meta, show_stats={}).wait("7") == "FINISHED:COMPLETED"
    assert clock.slept[:21] == [2.0] * 21
    assert clock.slept[21] == pytest.approx(42 / 20)
    assert max(clock.slept) == clock.slept[-1] == 15.0
    assert clock.slept == sorted(clock.slept)
    # Every 2 s would be 14400.
    assert len(asked) < 2000
    for before, after in pairwise(asked):
        assert after - before <= max(2.0, before / 20) + 1e-9


def test_a_limit_is_kept_although_the_pauses_grow(clock):
    with pytest.raises(FederationError, match="has not ended within 1000 s"):
        coordinator(get_job_meta={"status": "RUNNING"}, show_stats={}).wait("7", timeout=1000)
    assert 1000 <= clock.now <= 1002


def test_a_session_that_expired_while_the_computer_slept_is_opened_again(clock):
    """FLARE closes a session after 1800 s without a question."""
    meta = [{"status": "RUNNING"}, api_spec.SessionExpired("inactivity"), {"status": "RUNNING"},
            api_spec.SessionClosed("the session is closed on server"), {"status": "FINISHED:COMPLETED"}]  # fmt: skip
    sessions = []

    def open_session():
        sessions.append(FakeSession(get_job_meta=meta, show_stats={}))
        return sessions[-1]

    assert Coordinator(open_session, "ada@example.org").wait("7") == "FINISHED:COMPLETED"
    assert [session.closed for session in sessions] == [True, True, False]


def test_a_job_that_ends_while_it_is_asked_what_it_does_is_no_failure():
    gone = api_spec.JobNotRunning("7")
    assert coordinator(get_job_meta=status("RUNNING", "FINISHED:ABORTED"), show_stats=gone).wait(
        "7", interval=0.001
    ) == ("FINISHED:ABORTED")


def test_waiting_has_an_end():
    with pytest.raises(FederationError, match=r"has not ended within 0 s; its status is RUNNING"):
        coordinator(get_job_meta={"status": "RUNNING"}, show_stats={}).wait("7", timeout=0.01, interval=0.01)


def test_only_a_persons_kit_connects(tmp_path):
    with pytest.raises(UsageError, match="is no kit of a person"), connect(tmp_path):
        pass
    (tmp_path / "startup").mkdir()
    for damaged in ("{", "{}", '{"admin": {"username": "a"}}', "[]"):
        (tmp_path / "startup" / "fed_admin.json").write_text(damaged)
        with pytest.raises(UsageError, match="is damaged"), connect(tmp_path):
            pass


def test_a_session_is_closed_whatever_happens(tmp_path, monkeypatch):
    (tmp_path / "startup").mkdir()
    admin = {"username": "ada@example.org", "host": "h", "port": 1}
    (tmp_path / "startup" / "fed_admin.json").write_text(json.dumps({"admin": admin}))
    session = FakeSession(get_job_meta=api_spec.JobNotFound("ada@example.org"))
    monkeypatch.setattr(federation, "new_secure_session", lambda *a, **o: session)
    with pytest.raises(FederationError), connect(tmp_path) as found:
        found.describe(found.user)
    assert session.closed


# ---------------------------------------------------------------- fetch


def failed_download(events, results=None):
    """A download as the server gives it for a job that failed."""

    def download(job_id, folder):
        server = Path(folder) / job_id / "workspace" / "fedseg"
        server.mkdir(parents=True)
        (Path(folder) / job_id / "meta.json").write_text('{"status": "FINISHED:ABORTED"}')
        (server / "progress.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        (server / "last.safetensors").write_bytes(b"model")
        if results is not None:
            (server / "results.json").write_text(json.dumps(results))
        return str(Path(folder) / job_id)

    return download


@pytest.mark.parametrize("results", [None, {"rounds": []}], ids=["none", "rounds only"])
def test_a_failed_job_is_fetched_with_its_reason(results, tmp_path):
    events = [{"event": "round"}, {"event": "failed", "what": "1 site(s) accepted the job, but 2 must."}]
    with pytest.raises(UnfinishedError) as caught:
        fetch(coordinator(download_job_result=failed_download(events, results)), "7", tmp_path / "out")
    assert "1 site(s) accepted the job, but 2 must. FLARE's status is FINISHED:ABORTED." in str(caught.value)
    assert str(tmp_path / "out") in str(caught.value)
    assert (tmp_path / "out" / "models" / "last.safetensors").read_bytes() == b"model"
    assert (tmp_path / "out" / "workspace" / "meta.json").is_file()
    assert not (tmp_path / "out" / "report").exists()


def test_a_job_without_a_word_of_the_server_names_flares_status(tmp_path):
    with pytest.raises(UnfinishedError, match=r"model\. FLARE's status is FINISHED:ABORTED\. What it left"):
        fetch(coordinator(download_job_result=failed_download([])), "7", tmp_path / "out")


@pytest.mark.parametrize("answer", [None, "/no/such/folder"])
def test_nothing_is_not_taken_for_a_result(answer, tmp_path):
    with pytest.raises(FederationError, match="sent nothing for the job 7"):
        fetch(coordinator(download_job_result=answer), "7", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_is_refused_before_anything_is_fetched(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(UsageError, match="is not empty"):
        fetch(coordinator(), "7", tmp_path)


# ------------------------------------------------------------- commands


@pytest.fixture
def connected(monkeypatch):
    """Let the commands talk with a fake."""

    def use(command, **answers):
        @contextmanager
        def fake(kit, timeout=0.0):
            yield coordinator(**answers)

        monkeypatch.setattr(f"fedseg.commands.{command}.connect", fake)

    return use


def test_ids_of_jobs_are_shown_whole(connected, capsys):
    job_id = "6aec829a-d28e-4e6b-ab7c-79e67268c69d"
    meta = {"job_id": job_id, "name": "a_long_name_of_a_job", "submitter_name": "coordinator@example.org"}
    meta |= {"submit_time_iso": "2026-11-21T17:40:32.350458+00:00", "status": "FINISHED:COMPLETED", "duration": "0:01"}
    connected("jobs", list_jobs=[[meta]])
    assert main(["jobs", "--kit", "."]) == 0
    assert job_id in capsys.readouterr().out


@pytest.mark.parametrize(("width", "shown"), [(None, 6), (80, 3), (110, 5), (40, 1)])
def test_a_job_is_one_line_also_on_a_narrow_terminal(width, shown, connected, capsys, monkeypatch):
    metas = [
        {"job_id": f"6aec829a-d28e-4e6b-ab7c-79e67268c69{n}", "name": name, "submitter_name": "coordinator@example.org",
         "submit_time_iso": f"2026-11-2{n}T17:40:32.350458+00:00", "status": status, "duration": "0:01:02.345"}
        for n, (name, status) in enumerate([("lgg_fedavg", "FINISHED:COMPLETED"), ("brats_fedbn_site_5", "RUNNING")])
    ]  # fmt: skip
    connected("jobs", list_jobs=[metas[::-1]])
    if width is not None:
        screen = Console(width=width, force_terminal=True, color_system=None, highlight=False)
        monkeypatch.setattr("fedseg.commands.jobs.out", lambda: screen)
    assert main(["jobs", "--kit", "."]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["id", "status", "job", "submitted", "took", "by"][:shown]
    assert first.startswith(metas[0]["job_id"])
    assert second.startswith(metas[1]["job_id"])
    assert ("completed" in first) is (shown > 1)
    assert width is None or max(map(len, (header, first, second))) <= width


@pytest.mark.parametrize(("status", "code"), [("FINISHED:COMPLETED", 0), ("FINISHED:ABORTED", 1)])
def test_submit_with_wait_ends_as_the_job_does(status, code, connected, capsys):
    connected("submit", get_connected_client_list=[[]], submit_job="7", get_job_meta={"status": status})
    assert main(["submit", str(JOB), "--kit", ".", "--wait"]) == code
    shown = capsys.readouterr()
    assert shown.out == "7\n"
    assert "connected sites: none" in shown.err
    assert ("ended with FINISHED:ABORTED" in " ".join(shown.err.split())) is bool(code)


def test_a_broken_job_is_not_submitted(connected, capsys):
    connected("submit")
    assert main(["submit", str(JOB), "--kit", ".", "--set", "training.local_epochs=0"]) == 1
    assert "local_epochs" in capsys.readouterr().err


def test_a_wait_outlives_a_restart_of_the_server():
    meta = [{"status": "RUNNING"}, api_spec.NoConnection("gone"), api_spec.NoConnection("gone"),
            {"status": "FINISHED:ABANDONED"}]  # fmt: skip
    sessions, seen = [], []

    def open_session():
        sessions.append(FakeSession(get_job_meta=meta, show_stats={}))
        return sessions[-1]

    status = Coordinator(open_session, "ada@example.org").wait("7", lambda now: seen.append(now["status"]), interval=0)
    assert status == "FINISHED:ABANDONED"
    assert seen == ["RUNNING", federation.SILENT, "FINISHED:ABANDONED"]
    assert [session.closed for session in sessions] == [True, True, False]


def test_a_server_that_stays_away_ends_the_wait():
    waiting = coordinator(get_job_meta=api_spec.NoConnection("gone"))
    with pytest.raises(federation.ConnectionLostError, match="Is the server running"):
        waiting.wait("7", interval=0.01, patience=0.05)


def test_a_fetched_run_begins_with_phantoms_and_with_who_was_missing(tmp_path, capsys):
    summary = make_summary(2) | {"phantoms": ["hospital-a"]}
    refused = "policy: The site's policy, rule min_cases: too few."
    summary["events"] = [{"round": -1, "site": "hospital-d", "what": refused}]
    finish_run(summary, tmp_path, probe=False)
    told = capsys.readouterr()
    first, second = told.err.splitlines()[:2]
    assert first.startswith("The images of hospital-a were drawn by a program")
    assert second.startswith(
        "Of 4 connected sites 1 took no part: hospital-d (policy: The site's policy, rule min_cases"
    )
    assert "Mean over sites" in told.out
