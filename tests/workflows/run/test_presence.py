"""Silence is counted only while somebody could be heard; a task is given up when nobody is left to wait for."""

import threading
import time
from types import SimpleNamespace

import pytest

from fedseg.workflows.run import presence as module
from fedseg.workflows.run.call_secrets import CallSecrets
from fedseg.workflows.run.presence import Listening, Presence


def beating(limit):
    """Presence in a federation whose sites give heartbeats."""
    there = Presence(limit)
    there.heard("any", heartbeat=True)
    return there


def test_where_nobody_gives_heartbeats_silence_means_nothing():
    there = Presence(10)
    there.heard("a")
    there.pass_time(["a", "b"], 1e6)
    assert there.absence("a") is None
    there.heard("a", heartbeat=True)
    assert there.absence("b") is None, "it counts from now on"
    there.pass_time(["b"], 10)
    assert there.absence("b") == "it was not heard of for 10 s"


def test_a_site_is_absent_after_so_much_silence_and_there_again_when_it_is_heard():
    there = beating(10)
    there.pass_time(["a", "b"], 9.9)
    assert there.absence("a") is None
    there.heard("b")
    there.pass_time(["a", "b"], 0.1)
    assert there.absence("a") == "it was not heard of for 10 s"
    assert there.absence("b") is None
    there.heard("a")
    assert there.absence("a") is None


DOUBT = 25
"""Seconds that FLARE's word needs to be believed."""


def test_a_site_without_a_process_is_absent_soon_until_it_is_heard():
    there = beating(0)
    there.pass_time(["a"], 1e9)
    assert there.absence("a") is None, "0 seconds: silence never counts"
    there.ended("a")
    there.pass_time(["a"], DOUBT - 1)
    there.ended("a")
    assert there.absence("a") is None, "a process that lives would have been heard by then, or soon"
    there.pass_time(["a"], 1)
    assert "has no process of this job" in there.absence("a")
    there.heard("a")
    assert there.absence("a") is None
    there.pass_time(["a"], DOUBT)
    assert there.absence("a") is None


def test_a_server_that_wakes_up_and_drops_all_of_its_clients_gives_up_none_that_lives():
    """FLARE's server compares the time of day with the last sign of each client before it has read the waiting ones."""
    there = beating(120)
    for site in "abc":
        there.ended(site)
    there.pass_time("abc", 20)
    for site in "ab":
        there.heard(site, heartbeat=True)
    there.pass_time("abc", 10)
    assert [there.absence(site) is None for site in "abc"] == [True, True, False]


def gone(*sites):
    """Presence that believes that these have ended."""
    there = Presence(0)
    for site in sites:
        there.ended(site)
    there.pass_time(sites, DOUBT)
    return there


@pytest.fixture
def watch(monkeypatch):
    """Watch three sites until the body ends; returns whether the task was given up."""
    monkeypatch.setattr(module, "_STEP", 0.01)

    def run(there, body, busy=lambda: False, answered=()):
        given_up = threading.Event()
        with there.watch(["a", "b", "c"], answered, busy, given_up.set):
            body(given_up)
        return given_up.is_set()

    return run


def test_a_task_is_given_up_when_all_that_have_not_answered_are_absent(watch):
    assert watch(gone("a", "b"), lambda given_up: given_up.wait(30), answered={"c"}) is True


def test_a_task_goes_on_while_one_site_is_there(watch):
    assert watch(gone("a"), lambda given_up: given_up.wait(0.3), answered={"c"}) is False


def test_a_task_that_all_have_answered_is_not_given_up(watch):
    assert watch(gone(*"abc"), lambda given_up: given_up.wait(0.3), answered=set("abc")) is False


def test_silence_of_all_sites_is_noticed_after_the_limit(watch):
    start = time.monotonic()
    assert watch(beating(1), lambda given_up: given_up.wait(30)) is True
    assert 0.9 < time.monotonic() - start < 10


def test_time_in_which_nobody_can_be_heard_does_not_count(watch):
    there = beating(1)
    assert watch(there, lambda given_up: given_up.wait(1.5), busy=lambda: True) is False
    assert there.absence("a") is None


def test_a_standstill_of_this_process_counts_as_one_step(watch, monkeypatch):
    """A clock that jumps by an hour at every look: the silence grows by the longest step only."""
    clock = iter(range(0, 10**9, 3600))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    there, looks = beating(10), []

    def busy():
        looks.append(there.absence("a"))
        return False

    assert watch(there, lambda given_up: given_up.wait(30), busy=busy) is True
    # Five steps of 2 s make 10.
    assert looks == [None] * 5


def test_what_flare_hears_is_heard_and_handed_on():
    heard = []
    inner = SimpleNamespace(
        client_is_active=lambda *facts: heard.append(("active", facts)),
        process_dead_client_report=lambda *facts: heard.append(("dead", facts)),
        get_num_standing_tasks=lambda: 3,
    )
    there = Presence(0)
    listening = Listening(inner, there, CallSecrets())
    listening.process_dead_client_report("a", "context")
    there.pass_time(["a"], DOUBT)
    assert there.absence("a") is not None
    listening.client_is_active("a", "jobHeartbeat", "context")
    assert there.absence("a") is None
    assert heard == [("dead", ("a", "context")), ("active", ("a", "jobHeartbeat", "context"))]
    assert listening.get_num_standing_tasks() == 3
    there.limit = 5
    there.pass_time(["b"], 5)
    assert there.absence("b") is not None, "a heartbeat of a starts the count for all"


def test_what_is_no_heartbeat_starts_no_count():
    there = Presence(5)
    Listening(SimpleNamespace(client_is_active=lambda *facts: None), there, CallSecrets()).client_is_active(
        "a", "getTask", "context"
    )
    there.pass_time(["b"], 5)
    assert there.absence("b") is None
