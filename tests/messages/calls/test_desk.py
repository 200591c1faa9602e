"""The desk between FLARE's threads, which bring calls, and the thread of the task, which answers them."""

import threading
import time
from dataclasses import replace

import pytest
from nvflare.apis.fl_constant import ReturnCode

from fedseg.contract.protocol import REASON, TEXT
from fedseg.errors import AbortedError, RefusalError
from fedseg.messages.calls.call import Ask, Call, read_call
from fedseg.messages.calls.desk import CallDesk
from fedseg.messages.calls.roster import Roster

HERE = Call(Ask.FEATURES, "start", 2, secret="abc")


def never():
    return False


def echo(call):
    return replace(call, loss=call.step + 0.5)


class Serving:
    """A desk that is served in a thread of its own; ``asked`` are the calls in the order in which they came."""

    def __init__(self, answer=echo, patience=10.0, aborted=never):
        self.desk, self.asked, self.ended, self.error = CallDesk(), [], None, None
        self.answer, self.patience, self.aborted = answer, patience, aborted
        self.thread = threading.Thread(target=self.serve)

    def serve(self):
        def note(call):
            self.asked.append((threading.current_thread(), call.ask, call.step))
            return self.answer(call)

        try:
            self.ended = self.desk.serve("start", 2, Roster({"server": "abc"}), note, self.patience, self.aborted)
        except (AbortedError, RefusalError) as error:
            self.error = error

    def __enter__(self):
        self.thread.start()
        assert self.desk.receive(replace(HERE, ask=Ask.READY)).get_return_code() == ReturnCode.OK
        return self

    def __exit__(self, *failure):
        self.desk.receive(replace(HERE, ask=Ask.END))
        self.thread.join(20)
        assert not self.thread.is_alive()


def test_calls_are_answered_in_the_thread_of_the_task_until_the_end():
    with Serving() as site:
        answer = read_call(site.desk.receive(replace(HERE, step=4)))
    assert (answer.ask, answer.step, answer.loss) == (Ask.FEATURES, 4, 4.5)
    assert site.ended is True
    assert {thread for thread, _, _ in site.asked} == {site.thread}
    assert [ask for _, ask, _ in site.asked] == [Ask.READY, Ask.FEATURES, Ask.END]


@pytest.mark.parametrize("other", [{"start": "another"}, {"round": 3}])
def test_a_call_of_another_round_is_refused(other):
    with Serving() as site:
        answer = site.desk.receive(replace(HERE, **other))
    assert answer.get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert answer.get_header(REASON) == "state"
    assert [ask for _, ask, _ in site.asked] == [Ask.READY, Ask.END]


@pytest.mark.parametrize("secret", ["", "ab", "abd", "abc ", "äbc"])
@pytest.mark.parametrize("ask", list(Ask))
def test_a_call_without_the_secret_is_refused_and_changes_nothing(ask, secret):
    with Serving() as site:
        reply = site.desk.receive(replace(HERE, ask=ask, secret=secret))
        assert site.desk.receive(HERE).get_return_code() == ReturnCode.OK, "the round goes on"
    assert (reply.get_header(REASON), reply.get_header(TEXT)) == (
        "state", "Calls must carry the secret that the server has given this site."
    )  # fmt: skip
    assert [asked for _, asked, _ in site.asked] == [Ask.READY, Ask.FEATURES, Ask.END]


def test_the_empty_secret_is_none():
    desk = CallDesk()
    thread = threading.Thread(target=lambda: desk.serve("start", 2, Roster(), echo, 2.0, never))
    thread.start()
    assert desk.receive(replace(HERE, ask=Ask.READY, secret="")).get_header(REASON) == "state"
    thread.join(20)


def test_before_and_after_a_round_nobody_answers():
    site = Serving()
    assert site.desk.receive(HERE).get_header(REASON) == "state"
    with site:
        pass
    assert site.desk.receive(HERE).get_header(REASON) == "state"


def test_a_refusal_is_the_answer_and_ends_the_task():
    def refuse(call):
        if call.ask is Ask.FEATURES:
            raise RefusalError("loss", "Not finite.")
        return call

    with Serving(refuse) as site:
        answer = site.desk.receive(HERE)
    assert (answer.get_header(REASON), answer.get_header(TEXT)) == ("loss", "Not finite.")
    assert site.error.reason == "loss"


def test_a_site_that_is_not_called_any_more_leaves_the_round():
    begin = time.monotonic()
    with Serving(patience=0.2) as site:
        site.thread.join(5)
        assert time.monotonic() - begin < 3
    assert site.ended is False


@pytest.mark.parametrize(
    ("other", "stays"),
    [
        ({"round": 3}, False),
        ({"round": 1}, True),
        ({"round": 3, "secret": "abd"}, True),  # who knows whose call it is
        ({"start": "another", "secret": "def"}, True),  # a server that was started anew has other secrets
    ],
)
def test_a_site_that_has_missed_the_end_leaves_when_it_is_asked_for_a_later_round(other, stays):
    with Serving() as site:
        assert site.desk.receive(replace(HERE, ask=Ask.READY, **other)).get_header(REASON) == "state"
        site.thread.join(1.2 if stays else 5)
        assert site.thread.is_alive() is stays
    assert site.ended is stays


def test_an_aborted_job_ends_the_round():
    stop = threading.Event()
    with Serving(aborted=stop.is_set) as site:
        stop.set()
        site.thread.join(5)
    assert isinstance(site.error, AbortedError)


def test_what_still_waits_when_the_round_ends_is_told_so():
    go = threading.Event()

    def slow(call):
        if call.ask is Ask.FEATURES:
            go.wait(10)
            raise RefusalError("loss", "Not finite.")
        return call

    answers = []
    with Serving(slow) as site:
        waiting = [
            threading.Thread(target=lambda: answers.append(site.desk.receive(HERE).get_header(REASON)))
            for _ in range(3)
        ]
        for thread in waiting:
            thread.start()
        time.sleep(0.2)
        go.set()
        for thread in waiting:
            thread.join(5)
            assert not thread.is_alive()
    assert sorted(answers) == ["loss", "state", "state"]
