"""Who is ready at the beginning of a round, who is waited for, and for how long."""

import threading
import time
from dataclasses import replace

import pytest

from fedseg.messages.calls.call import Ask, Call, read_call
from fedseg.messages.calls.caller import DirectCalls, Failure
from fedseg.messages.calls.desk import CallDesk
from fedseg.messages.calls.roster import Roster
from fedseg.workflows.split.gathering import Gathering
from workflows.test_split_training import Engine

READY = Call(Ask.READY, "s1", 0)
ALIVE = Failure("state: The site is not in this round.", True)
SILENT = Failure("it did not answer within 1 s")


class Scripted:
    """Direct calls whose answers follow from the site and the seconds since the beginning.

    Attributes:
        asked: the sites of every exchange.
    """

    def __init__(self, answers, timeout=0.4):
        self.answers, self.timeout, self.over, self.asked = answers, timeout, threading.Event(), []
        self.begin = time.monotonic()

    def exchange(self, calls, timeout=None):
        self.asked.append(sorted(calls))
        found = {site: self.answers[site](time.monotonic() - self.begin) for site in calls}
        failures = {site: failure for site, failure in found.items() if failure is not None}
        return {site: calls[site] for site in calls if site not in failures}, failures


def gather(calls, start_timeout=1.5, out_before=(), gone=lambda site: False):
    """Who is ready, who was left out and why, and how long it took."""
    left, begin = {}, time.monotonic()
    ready = Gathering(calls, READY, start_timeout, gone).run(sorted(calls.answers), out_before, left.__setitem__)
    return ready, left, time.monotonic() - begin


def at_once(seconds):
    return None


def test_a_fast_site_is_still_there_when_the_slow_one_is_ready():
    """Its own patience is 2.5 s; the other one is ready after 4 s. Real desks."""
    desks = {site: CallDesk() for site in "ab"}
    engine = Engine({s: lambda request, s=s: desks[s].receive(read_call(request)) for s in desks})
    calls = DirectCalls(engine, 0.5, dict.fromkeys(desks, "abc"), threading.Event())
    ended = {}

    def site(name, seconds):
        time.sleep(seconds)
        ended[name] = desks[name].serve(
            "s1", 0, Roster({"server": "abc"}), lambda call: replace(call, secret=""), 2.5, lambda: False
        )

    threads = [threading.Thread(target=site, args=each) for each in (("a", 0), ("b", 4))]
    for thread in threads:
        thread.start()
    left = {}
    ready = Gathering(calls, READY, 60.0, lambda site: False).run("ab", (), left.__setitem__)
    answers, failures = calls.exchange(dict.fromkeys(ready, replace(READY, ask=Ask.END)))
    calls.close()
    for thread in threads:
        thread.join(20)
    assert (ready, left) == (["a", "b"], {})
    assert (sorted(answers), failures) == (["a", "b"], {})
    assert ended == {"a": True, "b": True}


def test_a_ready_site_that_falls_silent_is_found_out_while_the_others_are_waited_for():
    calls = Scripted({"a": lambda now: SILENT if now > 0.3 else None, "b": lambda now: ALIVE if now < 0.8 else None})
    ready, left, _ = gather(calls)
    assert (ready, left) == (["b"], {"a": SILENT.why})


def test_a_ready_site_whose_process_was_started_anew_is_waited_for():
    calls = Scripted(
        {"a": lambda now: ALIVE if 0.1 < now < 0.9 else None, "b": lambda now: ALIVE if now < 0.6 else None}
    )
    ready, left, seconds = gather(calls)
    assert (ready, left) == (["a", "b"], {})
    assert seconds >= 0.9


def test_ready_sites_are_asked_every_half_of_the_time_out():
    calls = Scripted({"a": at_once, "b": lambda now: ALIVE if now < 1.1 else None}, timeout=0.4)
    assert gather(calls)[0] == ["a", "b"]
    again = calls.asked.count(["a"])
    assert 3 <= again <= 5, "every 0.2 s and a pause, in 1.1 s"


@pytest.mark.parametrize(
    ("other", "out_before", "ready", "seconds"),
    [
        (lambda now: SILENT, (), False, 1.5),
        (lambda now: SILENT, "b", False, 0.4),
        (lambda now: ALIVE, (), False, 1.5),
        (lambda now: ALIVE, "b", False, 1.5),  # it lives, and may take as long as the others
        (lambda now: ALIVE if now < 1.0 else None, "b", True, 1.0),  # and so it comes back
        (lambda now: ALIVE if now < 0.6 else SILENT, "b", False, 1.0),  # 0.4 s from its last sign of life on
    ],
)
def test_silence_is_told_from_life(other, out_before, ready, seconds):
    calls = Scripted({"a": at_once, "b": other})
    found, left, took = gather(calls, out_before=out_before)
    assert found == (["a", "b"] if ready else ["a"])
    assert sorted(left) == ([] if ready else ["b"])
    assert seconds <= took < seconds + 0.4
    if not ready:
        short = seconds < 1.5
        assert left["b"] == ("it gave no sign of life within 0.4 s" if short else "it was not ready within 1.5 s")


def test_without_a_ready_site_nobodys_time_runs():
    calls = Scripted({"a": lambda now: ALIVE if now < 0.8 else None, "b": lambda now: SILENT if now < 0.9 else None})
    assert gather(calls, start_timeout=0.5, out_before="b")[:2] == (["a", "b"], {})


def test_a_site_that_is_gone_is_not_waited_for():
    calls = Scripted({"a": at_once, "b": lambda now: SILENT})
    assert gather(calls, gone=lambda site: site == "b")[:2] == (["a"], {})


def test_an_aborted_job_ends_it():
    calls = Scripted({"a": at_once, "b": lambda now: ALIVE})
    threading.Timer(0.2, calls.over.set).start()
    assert gather(calls, start_timeout=30.0)[2] < 5


def test_a_call_that_nobody_waits_for_any_more_is_left_at_once():
    """As where the job is aborted in the middle of an exchange; the late answer is dropped."""
    over, go = threading.Event(), threading.Event()

    def slow(request):
        go.wait(20)
        return request

    calls = DirectCalls(Engine({"a": slow, "b": lambda request: request}), 60, dict.fromkeys("ab", "abc"), over)
    threading.Timer(0.2, over.set).start()
    begin = time.monotonic()
    found = calls.exchange(dict.fromkeys("ab", READY))
    seconds = time.monotonic() - begin
    later = calls.exchange(dict.fromkeys("ab", READY))
    go.set()
    calls.close()
    assert (found, later) == (({}, {}), ({}, {}))
    assert seconds < 10


def test_each_site_is_called_with_its_own_secret():
    seen = {}

    def keep(site):
        return lambda request: seen.setdefault(site, []).append(read_call(request).secret) or request

    calls = DirectCalls(Engine({s: keep(s) for s in "ab"}), 5, {"a": "one", "b": "two"}, threading.Event())
    calls.exchange(dict.fromkeys("ab", READY))
    calls.tell(dict.fromkeys("ab", replace(READY, ask=Ask.END)))
    calls.close()
    assert seen == {"a": ["one", "one"], "b": ["two", "two"]}
