"""Processes of a real federation are killed, stopped and started again; jobs go on, and nothing finished is lost.

One federation for all: a job at whose sites processes die, then two jobs at once under which the server dies.
"""

import json
import time
from types import SimpleNamespace

import pytest
from fault_parts import SECONDS, SERVER, assert_equal_model, federation, said, simulated_weights, wait_until
from federation_parts import SITES, fedseg

# A site that is started anew has to be back before it counts as silent, on a busy machine too.
ROUNDS, SILENCE = 7, 45
KILLED, RESTARTED, STOPPED = 1, 2, 3
"""The rounds in which beta's job process is killed, all of alpha is killed, and gamma's processes are stopped."""


def faults_at_sites(faults, coordinator, seen):
    """Three faults in one job, each in its own round."""
    job = faults.job("hippocampus_fedavg", ROUNDS, epochs=20, site_silence=SILENCE, keep_checkpoints=0)
    job_id = coordinator.submit(job)
    seen.finished = {}

    def finish(number):
        start = time.monotonic()
        faults.wait_for_event(job_id, "round_done", round=number)
        seen.finished[number] = time.monotonic() - start

    faults.wait_for_training("beta", job_id, KILLED)
    process = faults.process("beta", job_id)
    process.kill()
    seen.replaced = faults.process("beta", job_id, [process.pid]).pid != process.pid
    finish(KILLED)

    faults.wait_for_training("alpha", job_id, RESTARTED)
    faults.kill("alpha")
    faults.restart("alpha")
    finish(RESTARTED)

    faults.wait_for_training("gamma", job_id, STOPPED)
    stopped = faults.processes("gamma")
    for process in stopped:
        process.suspend()
    finish(STOPPED)
    for process in stopped:
        process.resume()
    seen.status = coordinator.wait(job_id, timeout=SECONDS)
    seen.summary, seen.run = faults.fetch(coordinator, job_id)
    kept = faults.folder / "out" / "state" / "server" / job_id
    seen.checkpoints = sorted(int(path.stem.split("-")[1]) for path in kept.glob("checkpoint-*"))


def two_jobs_at_once(faults, coordinator, seen):
    """Begin two jobs, and wait until each has finished rounds."""
    seen.jobs = [
        faults.job("hippocampus_fedcostwavg", 5, epochs=15, title="first"),
        faults.job("hippocampus_fedavg", 5, epochs=15, title="second"),
    ]
    seen.ids = [coordinator.submit(job) for job in seen.jobs]
    for job_id in seen.ids:
        faults.wait_for_event(job_id, "round_done", round=1)
    seen.both = [coordinator.describe(job_id)["status"] for job_id in seen.ids]


def server_dies(faults, seen):
    """Kill the server and its jobs in the middle of a round, and start it again."""
    seen.before = {job_id: [e["round"] for e in faults.events(job_id, "round_done")] for job_id in seen.ids}
    faults.kill(SERVER)
    faults.restart(SERVER)


def resume_both(faults, coordinator, seen):
    seen.after_crash = [coordinator.describe(job_id)["status"] for job_id in seen.ids]
    kit = faults.coordinator_kit
    seen.resumed = [fedseg("resume", job_id, "--kit", kit) for job_id in seen.ids]
    new = [command.out.strip() for command in seen.resumed]
    seen.again = fedseg("resume", seen.ids[0], "--kit", kit)
    seen.end = [coordinator.wait(job_id, timeout=SECONDS) for job_id in new]
    seen.fetched = [faults.fetch(coordinator, job_id) for job_id in new]
    lines = [
        (run / "workspace" / "workspace" / "fedseg" / "progress.jsonl").read_text("utf-8") for _, run in seen.fetched
    ]
    seen.trained = [
        [event["round"] for event in map(json.loads, text.splitlines()) if event["event"] == "round"] for text in lines
    ]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Everything that happened, written down while it ran."""
    folder, seen = tmp_path_factory.mktemp("processes"), SimpleNamespace()
    with federation(folder) as faults:
        try:
            with faults.local.coordinator(SECONDS) as coordinator:
                faults_at_sites(faults, coordinator, seen)
                two_jobs_at_once(faults, coordinator, seen)
            server_dies(faults, seen)
            with faults.local.coordinator(SECONDS) as coordinator:
                resume_both(faults, coordinator, seen)
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\n{faults.local.tails()}")
        wait_until(lambda: len(faults.local.processes()) == 1 + len(SITES), 60, lambda: "processes of jobs are left")
    seen.data, seen.left = folder / "data", faults.local.processes()
    return seen


@pytest.fixture(scope="module")
def undisturbed(seen):
    """The models of the two jobs, each computed alone and without any fault."""
    return [simulated_weights(job, seen.data) for job in seen.jobs]


def took_part(summary):
    return [sorted(entry["sites"]) for entry in summary["rounds"]]


def test_a_killed_job_process_is_started_again_and_its_round_is_finished_with_its_site(seen):
    assert seen.replaced
    assert took_part(seen.summary)[KILLED] == sorted(SITES)
    assert seen.finished[KILLED] < 60
    ((number, what),) = said(seen.summary, "beta")
    assert number == KILLED
    assert what.startswith("asked for the task train again: its process was started anew")


def test_a_killed_client_that_is_started_again_takes_up_its_job_in_the_same_round(seen):
    assert took_part(seen.summary)[RESTARTED] == sorted(SITES)
    assert seen.finished[RESTARTED] < 90
    ((number, what),) = said(seen.summary, "alpha")
    assert number == RESTARTED
    assert what.startswith("asked for the task train again: its process was started anew")


def test_a_stopped_site_is_waited_for_no_longer_than_said_named_and_asked_again(seen):
    rounds = took_part(seen.summary)
    assert rounds[STOPPED] == ["alpha", "beta"]
    assert seen.summary["rounds"][STOPPED]["seconds"] >= SILENCE
    assert seen.finished[STOPPED] < SILENCE + 20, "from when it was stopped"
    lost, *_, back = said(seen.summary, "gamma")
    assert lost[0] == STOPPED
    assert lost[1].startswith(f"did not answer the task train: it was not heard of for {SILENCE} s; it is left out")
    assert back[1] == "is heard of again, and is asked again"
    assert all("gamma" in sites for sites in rounds[back[0] :])
    assert back[0] <= ROUNDS - 1
    assert "gamma" in seen.summary["final"]["sites"]


def test_the_job_of_these_faults_ends_well_with_every_round_once(seen):
    assert seen.status == "FINISHED:COMPLETED"
    assert [entry["round"] for entry in seen.summary["rounds"]] == seen.checkpoints == list(range(ROUNDS))


def test_two_jobs_run_at_once_and_disturb_each_other_in_nothing(seen, undisturbed):
    assert seen.both == ["RUNNING", "RUNNING"]
    for weights, (_, run) in zip(undisturbed, seen.fetched, strict=True):
        assert_equal_model(run, weights)


def test_after_a_crash_of_the_server_a_job_is_not_said_to_run(seen):
    assert seen.after_crash == ["FINISHED:ABANDONED"] * 2


def test_a_killed_server_loses_no_finished_round_and_the_resumed_job_ends_in_the_same_model(seen, undisturbed):
    assert [command.code for command in seen.resumed] == [0, 0], [command.err for command in seen.resumed]
    assert seen.again.code == 2
    second = seen.resumed[0].out.strip()
    assert f"The job {seen.ids[0]} is being resumed already, as job {second} (" in seen.again.err
    assert seen.end == ["FINISHED:COMPLETED"] * 2
    for job_id, trained in zip(seen.ids, seen.trained, strict=True):
        # A round may have ended between the look and the kill.
        assert trained[0] >= len(seen.before[job_id]) >= 2
        assert trained == list(range(trained[0], 5))
    for weights, (summary, run) in zip(undisturbed, seen.fetched, strict=True):
        assert [entry["round"] for entry in summary["rounds"]] == list(range(5))
        assert took_part(summary) == [sorted(SITES)] * 5
        assert_equal_model(run, weights)


def test_nothing_is_left_running(seen):
    assert seen.left == []
