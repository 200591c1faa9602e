"""The port over FLARE's own communicator and tasks, with threads in place of the sites' processes."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from nvflare.apis.client import Client
from nvflare.apis.fl_constant import ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fedseg.aggregators.fedavg import FedAvg
from fedseg.contract.protocol import BYTES_DOWN, BYTES_UP, REASON, RUN_ID, TEXT
from fedseg.contract.report import SiteReport
from fedseg.errors import AbortedError
from fedseg.messages.calls.call import SECRET, Ask, Call
from fedseg.workflows.buffered_training import BufferedTraining
from fedseg.workflows.federated_training import FederatedTraining
from fedseg.workflows.run.sites import Conversation
from scripted_sites import start, train


class Engine:
    """FLARE's engine of the server's job process, as far as a communicator and direct calls need it."""

    def __init__(self, names):
        self.clients = [Client(name, "token") for name in names]

    def get_clients(self):
        return self.clients

    def validate_targets(self, names):
        return [client for client in self.clients if client.name in names], []

    def fire_event(self, event_type, fl_ctx):
        pass

    def new_context(self):
        context = FLContext()
        context.set_prop(ReservedKey.ENGINE, self, private=True, sticky=False)
        return context

    def send_aux_request(self, targets, topic, request, timeout, fl_ctx, optional):
        return {targets[0]: request}


@pytest.fixture
def flare():
    """A workflow connected by FLARE's communicator, its port, and a way to start sites."""
    workflow, communicator, engine = FederatedTraining(1, FedAvg()), WFCommServer(), Engine("abc")
    context = engine.new_context()
    workflow.set_communicator(communicator)
    workflow.fl_ctx, workflow.engine, workflow.abort_signal = context, engine, Signal()
    communicator.task_check_period = communicator._task_check_period = 0.02
    communicator.initialize_run(context)
    workflow.sites.run_id, noted, over = "run", [], threading.Event()
    workflow.sites.note = lambda site, what: noted.append((site, what))

    def site(name, answer):
        client = Client(name, "token")
        while not over.wait(0.01):
            task, task_id, message = workflow.communicator.process_task_request(client, engine.new_context())
            if not task:
                continue
            reply = answer(task, message)
            if reply is None:
                return
            communicator.process_submission(client, task, task_id, reply, engine.new_context())

    def start(**answers):
        for name, answer in answers.items():
            threading.Thread(target=site, args=(name, answer), daemon=True).start()

    yield SimpleNamespace(sites=workflow.sites, noted=noted, start=start, abort=workflow.abort_signal)
    over.set()
    communicator._all_done = True


def scores(task, message):
    received = FLModelUtils.from_shareable(message)
    assert received.meta[RUN_ID] == "run"
    reply = FLModelUtils.to_shareable(FLModel(metrics={"got": received.metrics["sent"]}))
    reply.set_header(BYTES_UP, 3)
    reply.set_header(BYTES_DOWN, 4)
    return reply


def refuses(task, message):
    return make_reply(ReturnCode.BAD_REQUEST_DATA, {REASON: "data", TEXT: "No cases.", BYTES_UP: 1, BYTES_DOWN: 2})


def test_answers_refusals_and_silence_come_under_the_sites_names(flare):
    flare.start(a=scores, b=refuses)
    assert flare.sites.connected() == ["a", "b", "c"]
    answers = flare.sites.ask("prepare", FLModel(metrics={"sent": 7}), ["a", "b", "c"], timeout=1)
    assert {site: answer.metrics for site, answer in answers.items()} == {"a": {"got": 7}}
    assert flare.noted == [("b", "data: No cases."), ("c", "did not answer the task prepare within 1 s")]
    assert flare.sites.refusals == {"b": "data"}
    assert flare.sites.traffic == {"a": (3, 4), "b": (1, 2)}


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (make_reply(ReturnCode.EXECUTION_EXCEPTION), "failed: FLARE reports EXECUTION_EXCEPTION"),
        (Shareable(), "sent an answer to the task train that cannot be read"),
    ],
)
def test_what_is_no_answer_is_named(flare, reply, said):
    flare.start(a=lambda task, message: reply)
    assert flare.sites.ask("train", FLModel(metrics={"sent": 7}), ["a"]) == {}
    assert flare.noted == [("a", said)]


@pytest.mark.parametrize("size", ["x", -5, float("nan"), float("inf"), 10**400, [1], {}])
@pytest.mark.parametrize("refusal", [True, False])
def test_nonsense_in_the_headers_of_one_site_ends_the_task_for_nobody(flare, size, refusal):
    def nonsense(task, message):
        reply = (
            make_reply(ReturnCode.BAD_REQUEST_DATA, {REASON: ["x"], TEXT: {"x": 1}})
            if refusal
            else scores(task, message)
        )
        for header in (BYTES_UP, BYTES_DOWN):
            reply.set_header(header, size)
        return reply

    flare.start(a=nonsense, b=scores)
    answers = flare.sites.ask("train", FLModel(metrics={"sent": 7}), ["a", "b"], timeout=60)
    assert answers["b"].metrics == {"got": 7}
    assert ("a" in answers) is not refusal
    assert flare.noted == [("a", "list: dict")] * refusal
    assert flare.sites.traffic["a"] == (0, 0)


def test_a_message_of_its_own_reaches_each_site(flare):
    flare.start(a=scores, b=scores)
    messages = {site: FLModel(metrics={"sent": value}) for site, value in (("a", 1), ("b", 2))}
    answers = flare.sites.ask("train", messages, ["a", "b"])
    assert {site: answer.metrics["got"] for site, answer in answers.items()} == {"a": 1, "b": 2}


def test_a_task_that_is_sent_is_answered_whenever_the_site_can(flare):
    got = {}
    flare.sites.send("train", FLModel(metrics={"sent": 5}), "a", lambda site, answer: got.update({site: answer}))
    assert got == {}
    flare.start(a=scores)
    flare.sites.wait(lambda: bool(got), timeout=60)
    assert got["a"].metrics == {"got": 5}


def test_a_wait_ends_although_an_invited_site_has_not_answered(flare):
    got = {}
    flare.start(a=scores)
    flare.sites.send("prepare", FLModel(metrics={"sent": 1}), "c", lambda site, answer: None)
    flare.sites.send("train", FLModel(metrics={"sent": 5}), "a", lambda site, answer: got.update({site: answer}))
    flare.sites.wait(lambda: False)
    assert list(got) == ["a"]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (refuses(None, None), "data: No cases."),
        (Shareable(), "failed: The answer to the task train cannot be read."),
    ],
)
def test_a_task_that_is_sent_is_answered_also_by_what_does_not_count(flare, reply, said):
    accepted = []
    sent = flare.sites.send("train", FLModel(metrics={"sent": 5}), "a", lambda *answer: accepted.append(answer))
    assert not sent.answered
    flare.start(a=lambda task, message: reply)
    flare.sites.wait(lambda: sent.answered, timeout=60)
    assert sent.answered
    assert (accepted, flare.noted) == ([], [("a", said)])


def test_buffered_rounds_over_flare_wait_for_no_site_that_is_silent(flare, tmp_path):
    def trains(task, message):
        received = FLModelUtils.from_shareable(message)
        if task == "prepare":
            return FLModelUtils.to_shareable(FLModel(metrics={"training": 2, "validation": 0, "test": 0}))
        arrays = {name: np.ones_like(value) for name, value in received.params.items()}
        meta = SiteReport(2, 1, 0.9, None).to_meta()
        return FLModelUtils.to_shareable(FLModel(params_type=ParamsType.DIFF, params=arrays, meta=meta))

    def silent(task, message):
        return trains(task, message) if task == "prepare" else None

    workflow = BufferedTraining(4, FedAvg(), buffer=2, run_id="run")
    flare.start(a=trains, b=trains, c=silent)
    run = train(start(workflow, flare.sites, tmp_path))
    assert [sorted(entry["sites"]) for entry in run.state.rounds] == [["a", "b"]] * 4
    assert run.state.rounds[-1]["notes"]["in_flight"] == {"c": 0}
    assert run.state.events == []
    run.protocol.finish(run.state)


def test_direct_calls_reach_sites_while_they_work_and_end_the_task(flare):
    secrets, ready, accepted = {}, threading.Event(), []

    def works(name):
        def answer(task, message):
            secrets[name] = message.get_header(SECRET)
            ready.wait(60)
            return scores(task, message) if name == "a" else None

        return answer

    def talk(calls):
        answers, failures = calls.exchange({site: Call(Ask.READY, "s", 0) for site in "ab"})
        assert (sorted(answers), failures) == (["a", "b"], {})
        ready.set()
        return ["a"]

    flare.start(a=works("a"), b=works("b"))
    message = FLModel(metrics={"sent": 7})
    accept = lambda site, answer: accepted.append(site)  # noqa: E731
    flare.sites.converse(Conversation("train", message, ["a", "b"], 0, accept, "left out", talk, 5))
    assert accepted == ["a"]
    assert flare.noted == [("b", "did not answer the task train")]
    assert secrets["a"] == flare.sites.secrets.of("a") != secrets["b"]
    up, down = flare.sites.traffic["a"]
    assert (up > 3, down > 4) == (True, True), "of the answer and of the call"


def test_an_error_among_the_calls_ends_the_round(flare):
    def talk(calls):
        raise KeyError("x")

    flare.start(a=lambda task, message: None)
    message = FLModel(metrics={"sent": 7})
    with pytest.raises(KeyError):
        flare.sites.converse(Conversation("train", message, ["a"], 0, lambda *answer: None, "left out", talk, 5))


def test_an_abort_ends_the_wait(flare):
    def asked(task, message):
        flare.abort.trigger(True)

    flare.start(a=asked)
    with pytest.raises(AbortedError):
        flare.sites.ask("train", FLModel(metrics={"sent": 7}), ["a"])


def test_the_return_of_an_absent_site_ends_the_wait_for_it(flare):
    presence = flare.sites.presence
    presence.limit = 1
    presence._silence |= {"a": 2.0, "b": 2.0}
    flare.sites.await_return(["a", "b"], 1)
    assert all(flare.sites.absence(site) for site in "ab"), "it ends also without"
    threading.Timer(0.2, lambda: presence.heard("b", heartbeat=True)).start()
    flare.sites.await_return(["a", "b"], 600)
    assert flare.sites.absence("a")
    assert flare.sites.absence("b") is None


def test_an_abort_ends_the_wait_for_an_absent_site(flare):
    flare.sites.presence.limit = 1
    flare.sites.presence._silence["a"] = 2.0
    flare.abort.trigger(True)
    with pytest.raises(AbortedError):
        flare.sites.await_return(["a"], 600)


def test_a_task_that_is_withdrawn_reaches_nobody(flare):
    withdraw = flare.sites.post("train", FLModel(metrics={"sent": 7}), "a", lambda *answer: True)
    withdraw()
    asked = []
    flare.start(a=lambda task, message: asked.append(task))
    time.sleep(0.1)
    assert asked == []
