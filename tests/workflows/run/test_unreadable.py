"""Messages as FLARE's server gets them from sites, of which some cannot be read, with a scripted server behind."""

from types import SimpleNamespace

import pytest
from nvflare.apis.client import Client
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.fuel.f3.cellnet.defs import CellChannel, MessageHeaderKey
from nvflare.fuel.f3.cellnet.utils import encode_payload, make_reply
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey
from nvflare.private.defs import CellMessageHeaderKeys

from fedseg.errors import RefusalError
from fedseg.messages.replies import read_refusal
from fedseg.workflows.run.unreadable import ATTEMPTS, AnswerIntake


class Cell:
    """FLARE's end of the network, as far as an adapter needs it."""

    core_cell = SimpleNamespace(my_info=SimpleNamespace(fqcn="server.job"))
    decode_pass_through_channels = decode_pass_through_topics = ()

    def __init__(self):
        self.callbacks = {}

    def get_fobs_context(self, props=None):
        return dict(props or {})

    def register_blob_cb(self, channel, topic, callback):
        self.callbacks[channel, topic] = callback


@pytest.fixture
def server():
    """Takes messages in; what got through to FLARE's commands stands in ``got``."""
    cell, got = Cell(), []
    clients = {"token a": Client("a", "token a"), "token b": Client("b", "token b")}

    def execute(request):
        got.append(request.payload)
        return make_reply(ReturnCode.OK)

    engine = SimpleNamespace(server=SimpleNamespace(client_manager=SimpleNamespace(clients=clients)))
    given = {"a": ("train", "task 1")}
    AnswerIntake(SimpleNamespace(execute_command=execute, cell=cell, engine=engine), "job", given.get).begin()
    callback = cell.callbacks[CellChannel.SERVER_COMMAND, "submit_update"]

    def take(payload, token="token a", spoil=False):
        headers = {
            StreamHeaderKey.CHANNEL: CellChannel.SERVER_COMMAND,
            StreamHeaderKey.TOPIC: "submit_update",
            CellMessageHeaderKeys.TOKEN: token,
            MessageHeaderKey.ORIGIN: "a.job",
        }
        message = Message(headers, payload)
        encode_payload(message, StreamHeaderKey.PAYLOAD_ENCODING, fobs_ctx={})
        sent = bytes(b"".join(message.payload)) if isinstance(message.payload, list) else message.payload
        callback(SimpleNamespace(headers=message.headers, result=lambda: sent[: len(sent) // 2] if spoil else sent))

    return SimpleNamespace(take=take, got=got, given=given)


def answer(code=ReturnCode.OK):
    made, site = Shareable({"x": 1}), FLContext()
    site.set_prop(ReservedKey.IDENTITY_NAME, "a", private=False)
    made.set_return_code(code)
    made.set_peer_context(site)
    made.add_cookie(FLContextKey.TASK_ID, "task 1")
    return made


def test_an_answer_that_can_be_read_goes_on_as_it_came(server):
    server.take(answer())
    (got,) = server.got
    assert (got["x"], got.get_cookie(FLContextKey.TASK_ID), read_refusal(got)) == (1, "task 1", None)


def test_the_last_attempt_that_cannot_be_read_gives_a_refusal_that_concludes_the_sites_task(server):
    for _ in range(ATTEMPTS - 1):
        with pytest.raises(Exception, match=r"."):
            server.take(answer(), spoil=True)
    assert server.got == []
    server.take(answer(), spoil=True)
    (got,) = server.got
    assert str(read_refusal(got)).startswith("The answer to the task train could not be read in 3 attempts (")
    assert (got.get_cookie(FLContextKey.TASK_ID), got.get_header(FLContextKey.TASK_NAME)) == ("task 1", "train")
    assert (got.get_peer_context().get_job_id(), got.get_peer_context().get_identity_name()) == ("job", "a")


def test_the_attempts_of_each_task_count_for_themselves(server):
    for task in ("task 1", "task 2", "task 3"):
        server.given["a"] = "train", task
        for _ in range(ATTEMPTS - 1):
            with pytest.raises(Exception, match=r"."):
                server.take(answer(), spoil=True)
    server.take(answer())
    assert [got["x"] for got in server.got] == [1]


@pytest.mark.parametrize("token", ["token b", "a stranger's", None])
def test_nobody_uses_up_the_attempts_of_others(server, token):
    """b was given no task, and the others are no sites."""
    for _ in range(2 * ATTEMPTS):
        with pytest.raises(Exception, match=r"."):
            server.take(answer(), token, spoil=True)
    assert server.got == []


@pytest.mark.parametrize("payload", ["text", {"x": 1}, Shareable(), b"bytes", None])
def test_what_is_no_answer_of_a_client_counts_as_unreadable(server, payload):
    with pytest.raises(RefusalError, match="no answer of a FLARE client"):
        server.take(payload)
    with pytest.raises(RefusalError):
        server.take(payload)
    server.take(payload)
    assert str(read_refusal(server.got[0])).endswith("(RefusalError).")


@pytest.mark.parametrize("code", [ReturnCode.UNSAFE_JOB, ReturnCode.TASK_UNKNOWN, ReturnCode.RUN_MISMATCH])
def test_no_return_code_of_a_site_ends_the_job(server, code):
    """FLARE's server ends a job for these codes."""
    server.take(answer(code))
    (got,) = server.got
    assert got.get_return_code() != code
    assert str(read_refusal(got)) == f"FLARE reports {code}"
    assert got.get_cookie(FLContextKey.TASK_ID) == "task 1"
    assert got.get_peer_context().get_identity_name() == "a"
