"""A site of split training: from whom it takes calls, and what its record says of them."""

import logging
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.signal import Signal
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.message import Message

from executors.test_site_record import Recording
from fedseg.contract.protocol import REASON, TEXT
from fedseg.errors import RefusalError
from fedseg.executors.split.executor import SplitExecutor
from fedseg.messages.calls.call import GRADIENTS, PART, PATIENCE, PREDICTIONS, SECRET, TOPIC, Ask, Call, read_call
from fedseg.messages.calls.gate import CallGate
from fedseg.messages.sizes import message_size
from fedseg.training.split.halves import plan_parts, server_half
from fedseg.training.split.message import pack, unpack
from tiny import PLAN, make_sites

HERE = Call(Ask.READY, "s1", 0)


class Cell:
    """FLARE's connection: what a site listens for on it."""

    def __init__(self):
        self.listening = {}

    def register_request_cb(self, *, channel, topic, cb):
        self.listening[channel, topic] = cb


class SplitSite(Recording):
    """A site of split training, called over the envelope that FLARE's connection would bring."""

    def __init__(self, folder, monkeypatch, **split):
        training = {**PLAN["training"], "batch_dice": False}
        super().__init__(folder, monkeypatch, {**PLAN, "training": training, "split": split})
        self.executor, self.cell = SplitExecutor(), Cell()
        monkeypatch.setattr("fedseg.executors.site_executor.send_curves", lambda *a: None)
        engine = self.context.get_engine()
        engine.get_cell = lambda: self.cell
        self.executor.handle_event(EventType.START_RUN, self.context)
        (self.key,) = self.cell.listening

    secret = "abc"

    def ask(self, task, model, signal=None):
        shareable = FLModelUtils.to_shareable(model)
        if self.secret is not None:
            shareable.set_header(SECRET, self.secret)
        return self.executor.execute(task, shareable, self.context, signal or Signal())

    def call(self, call, origin="server.job-1"):
        """With the secret of this site, if the call does not bring another one."""
        call = call if call.secret else replace(call, secret="abc")
        message = Message({MessageHeaderKey.ORIGIN: origin}, call.to_shareable())
        return self.cell.listening[self.key](message).payload

    def round(self, calls):
        """The task ``train``, and calls within it; ends it in any case. Gives the answers and the result."""
        found = []
        thread = threading.Thread(target=lambda: found.append(self.task("train", self.message(**{PATIENCE: 30.0}))))
        thread.start()
        try:
            while self.call(HERE).get_return_code() != ReturnCode.OK:
                assert thread.is_alive()
            answers = [self.call(call) for call in calls]
        finally:
            self.call(Call(Ask.END, "s1", 0))
            thread.join(30)
        assert not thread.is_alive()
        return answers, found[0]


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEG_DATA", str(make_sites(tmp_path / "data", {"a": (3, 1)})))
    monkeypatch.setenv("FEDSEG_STATE", str(tmp_path / "state"))

    def make(**split):
        site = SplitSite(tmp_path / "site", monkeypatch, **split)
        site.state = tmp_path / "state" / "a"
        site.context.set_prop("__job_meta__", {"name": "tiny"}, private=True)
        return site

    return make


def one_iteration(site, **first):
    """The server's predictions for the first features of the site; ``first`` is what asks for them."""
    plan = site.plan
    server = server_half(plan, plan.split)
    shapes = {"encoder1": (4, 8, 8, 8)}
    start = site.call(Call(first.pop("ask", Ask.FEATURES), "s1", 0, next=0.0, **first))
    features = unpack(read_call(start).arrays["features"], shapes, plan.split.message)
    return server.forward({"a": features})["a"]


# ----------------------------------------------------------------------------------------- identity


def test_it_listens_for_this_topic_alone_before_flares_own_entry_for_all(make):
    assert make().key == ("aux_communication", TOPIC)


@pytest.mark.parametrize(
    "origin", ["b.job-1", "b", "serverb", "server.job-2", "server.job-1.x", "a.server.job-1", "", None]
)
def test_calls_of_anybody_but_the_jobs_server_are_refused_and_change_nothing(make, origin):
    site = make(site_update="handed_on")
    refused = []
    part = {name: value.numpy() for name, value in plan_parts(site.plan, site.plan.split)[0].state_dict().items()}

    def intrude():
        for call in (
            HERE,
            Call(Ask.SEND, "s1", 0),
            Call(Ask.RECEIVE, "s1", 0, arrays={PART: part}),
            Call(Ask.END, "s1", 0),
        ):
            refused.append(site.call(call, origin))

    def intruding():
        yield Call(Ask.RECEIVE, "s1", 0, arrays={PART: part})
        intrude()
        yield Call(Ask.SEND, "s1", 0)

    answers, result = site.round(intruding())
    for reply in refused:
        assert reply.get_return_code() == ReturnCode.BAD_REQUEST_DATA
        assert (reply.get_header(REASON), reply.get_header(TEXT)) == (
            "state", "Calls are taken from this job's server only."
        )  # fmt: skip
    assert len(refused) == 4
    assert PART in read_call(answers[1]).arrays, "the server's own call is answered, also after an END of another"
    assert result.get_return_code() == ReturnCode.OK


def test_the_servers_name_alone_is_not_enough(make):
    """A call with the job's server as its origin, and without the secret of this site."""
    site = make()
    answers, result = site.round([Call(Ask.FEATURES, "s1", 0, next=0.0, secret="of another site")])
    assert (answers[0].get_header(REASON), answers[0].get_header(TEXT)) == (
        "state", "Calls must carry the secret that the server has given this site."
    )  # fmt: skip
    assert result.get_return_code() == ReturnCode.OK
    assert site.lines("called")[0]["left"] == []


def test_no_answer_repeats_the_secret(make):
    answers, _ = make().round([Call(Ask.FEATURES, "s1", 0, next=0.0)])
    assert read_call(answers[0]).secret == ""


@pytest.mark.parametrize("secret", [None, "", 5])
def test_a_round_without_a_secret_is_refused(make, secret):
    site = make()
    site.secret = secret
    result = site.task("train", site.message(**{PATIENCE: 30.0}))
    assert (result.get_header(REASON), result.get_header(TEXT)) == (
        "state", "The task brings no secret by which the server's calls are known."
    )  # fmt: skip


def test_the_simulators_server_is_the_jobs_server(make):
    answers, _ = (site := make()).round([])
    assert answers == []
    assert site.call(HERE, "server").get_header(TEXT) == "The site is not in this round.", "asked, and answered"


def test_what_is_no_message_of_flare_is_refused():
    gate = CallGate("job-1", lambda caller, request: pytest.fail("never asked"))
    reply = gate.receive(Message({MessageHeaderKey.ORIGIN: "server.job-1"}, {"ask": "send"})).payload
    assert reply.get_header(REASON) == "state"


def test_without_a_connection_nothing_is_answered(caplog):
    CallGate("job-1", lambda caller, request: pytest.fail("never asked")).listen(SimpleNamespace(get_cell=lambda: None))
    assert "no call of the server can be answered" in caplog.text


# ------------------------------------------------------------------------------------------- record


def test_the_record_counts_the_calls_of_a_round_and_names_what_left(make):
    site, sizes = make(labels="shared"), []

    def calls():
        yield Call(Ask.FEATURES, "s1", 0, next=0.0)

    before = site.call

    def counting(call, origin="server.job-1"):
        reply = before(call, origin)
        if reply.get_return_code() == ReturnCode.OK:
            sizes.append((message_size(replace(call, secret="abc").to_shareable()), message_size(reply)))
        return reply

    site.call = counting
    site.round(calls())
    lines = [entry for entry in site.lines() if entry["kind"] in ("received", "called", "sent")]
    assert [entry["kind"] for entry in lines] == ["received", "called", "sent"]
    line = lines[1]
    assert (line["round"], line["start"]) == (0, "s1")
    assert line["left"] == ["features", "labels"]
    # ready, features and end
    assert line["calls"] == len(sizes) == 3
    assert line["bytes_in"] == sum(size for size, _ in sizes)
    assert line["bytes_out"] == sum(size for _, size in sizes)


def test_with_private_labels_gradients_at_predictions_leave_and_with_turns_the_part(make):
    site = make(labels="private", site_update="handed_on")
    part = {name: value.numpy() for name, value in plan_parts(site.plan, site.plan.split)[0].state_dict().items()}

    def turn():
        predictions = one_iteration(site, ask=Ask.RECEIVE, arrays={PART: part})
        yield Call(Ask.ANSWER, "s1", 0, arrays={PREDICTIONS: pack({PREDICTIONS: predictions}, "float32")})
        zeros = {"encoder1": np.zeros((2, 4, 8, 8, 8), np.float32)}
        yield Call(Ask.BACKWARD, "s1", 0, arrays={GRADIENTS: zeros})
        yield Call(Ask.SEND, "s1", 0, 1)

    answers, _ = site.round(turn())
    assert [reply.get_return_code() for reply in answers] == [ReturnCode.OK] * 3
    (line,) = site.lines("called")
    assert line["left"] == ["at_predictions", "features", "part"]
    assert line["calls"] == 6


def test_with_summed_gradients_those_of_the_part_leave(make):
    site = make(site_update="summed")

    def step():
        one_iteration(site)
        zeros = {"encoder1": np.zeros((2, 4, 8, 8, 8), np.float32)}
        yield Call(Ask.BACKWARD, "s1", 0, arrays={GRADIENTS: zeros})

    site.message = with_memory(site)
    site.round(step())
    assert site.lines("called")[0]["left"] == ["features", "labels", "parameters"]


def with_memory(site):
    honest = site.message

    def message(weights=None, number=0, **meta):
        return honest({**site.weights(), "shared:steps": np.array(0)}, number, **meta)

    return message


def test_a_round_that_breaks_off_has_its_line_too(make):
    """The third call cannot be answered: what left before it is told all the same."""
    site = make()

    def broken():
        yield Call(Ask.FEATURES, "s1", 0, next=0.0)
        yield Call(Ask.BACKWARD, "s1", 0, arrays={GRADIENTS: {"encoder1": np.zeros((9, 4, 8, 8, 8), np.float32)}})

    answers, result = site.round(broken())
    assert answers[1].get_header(REASON) == "state"
    assert result.get_return_code() != ReturnCode.OK
    kinds = [entry["kind"] for entry in site.lines()]
    assert kinds[-3:] == ["received", "called", "refused"]
    (line,) = site.lines("called")
    assert (line["calls"], line["left"]) == (3, ["features", "labels"])


def test_what_broke_a_round_off_is_logged_also_where_the_record_cannot_be_written(make, monkeypatch, caplog):
    site = make()

    def full(*_, **__):
        raise RefusalError("state", "The record cannot be written.")

    def broken():
        monkeypatch.setattr(site.executor.session.record, "called", full)
        yield Call(Ask.BACKWARD, "s1", 0, arrays={GRADIENTS: {"encoder1": np.zeros((2, 4, 8, 8, 8), np.float32)}})

    with caplog.at_level(logging.ERROR, "fedseg.executors.split.executor"):
        _, result = site.round(broken())
    assert result.get_header(TEXT) == "The record cannot be written."
    assert "The round has broken off: The gradients are not those of the features" in caplog.text


def test_counts_are_those_of_one_round(make):
    site = make()

    def features():
        yield Call(Ask.FEATURES, "s1", 0, next=0.0)

    site.round(features())
    site.round([])
    assert [(line["calls"], line["left"]) for line in site.lines("called")] == [(3, ["features", "labels"]), (2, [])]
