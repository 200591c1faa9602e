"""Who another site of a swarm is, and that calls to it and of it are encrypted: what a site refuses."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
from nvflare.apis.client import from_dict
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessageType
from nvflare.fuel.f3.endpoint import Endpoint
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import STREAM_CHANNEL, STREAM_DATA_TOPIC
from nvflare.private.defs import CellChannel

from fedseg.contract.protocol import REASON, TEXT
from fedseg.errors import RefusalError
from fedseg.executors.peers.post import PeerPost, places_of
from fedseg.messages.calls.gate import CallGate
from fedseg.messages.calls.peer_call import TOPIC, PeerAsk, PeerCall

CALL = PeerCall(PeerAsk.STATE, "run-1", 0)


def clients(*told):
    return [from_dict(each) for each in told]


def test_sites_under_their_own_names_have_their_places():
    told = clients({"name": "alpha"}, {"name": "beta", "fqcn": "beta"}, {"name": "gamma", "fqcn": "gamma.inner"})
    assert places_of(told) == {"alpha": "alpha", "beta": "beta", "gamma": "gamma.inner"}


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ([{"name": "alpha"}, {"name": "beta", "fqcn": "alpha"}], "puts the site beta at alpha"),
        ([{"name": "alpha"}, {"name": "beta", "fqcn": "server.beta"}], "puts the site beta at server.beta"),
        ([{"name": "alpha"}, {"name": "beta", "fqcn": "betah"}], "puts the site beta at betah"),
        ([{"name": "alpha"}, {"name": "alpha"}], "names the site alpha twice"),
    ],
)
def test_no_site_has_the_place_or_the_name_of_another(told, why):
    with pytest.raises(RefusalError, match=why) as found:
        places_of(clients(*told))
    assert found.value.reason == "privacy"


def engine(enforced, cipher, reply=None):
    """FLARE's engine with what it knows of certificates."""
    sent = []

    def send(targets, *told, **how):
        sent.append(how["secure"])
        return {} if reply is None else {targets[0]: reply}

    manager = SimpleNamespace(enforce_identity=enforced, cell_cipher=cipher)
    cell = SimpleNamespace(core_cell=SimpleNamespace(credential_manager=manager))
    return SimpleNamespace(get_cell=lambda: cell, new_context=nullcontext, send_aux_request=send, sent=sent)


@pytest.mark.parametrize(("enforced", "cipher"), [(False, object()), (True, None)])
def test_nobody_is_called_where_certificates_prove_no_names(enforced, cipher):
    found = engine(enforced, cipher)
    with pytest.raises(RefusalError, match="does not use mutual TLS") as refused:
        PeerPost(found, lambda: True).ask("beta", CALL, 1.0)
    assert (refused.value.reason, found.sent) == ("privacy", [])


def test_calls_are_encrypted_and_an_answer_with_another_number_counts_for_nothing():
    found = engine(True, object(), replace(CALL, nonce="0" * 32).to_shareable())
    with pytest.raises(RefusalError, match="no answer to this site's call"):
        PeerPost(found, lambda: True).ask("beta", CALL, 1.0)
    assert found.sent == [True]


def gate(sealed):
    found = CallGate("job-1", lambda caller, request: CALL.to_shareable(), TOPIC)
    found.only_sealed(lambda: sealed)
    found.admit({"beta": "beta"})
    return found


def message(origin="beta.job-1", **headers):
    names = {"secure": MessageHeaderKey.SECURE, "encrypted": MessageHeaderKey.ENCRYPTED}
    told = {names[name]: value for name, value in headers.items()}
    return Message({MessageHeaderKey.ORIGIN: origin, **told}, CALL.to_shareable())


@pytest.mark.parametrize(
    ("headers", "dropped"),
    [
        ({}, True),
        ({"secure": True}, True),
        ({"encrypted": True}, True),
        ({"secure": True, "encrypted": False}, True),
        ({"secure": True, "encrypted": True}, False),
        ({"origin": "server.job-1"}, False),
        ({"origin": "beta"}, False),
    ],
)
def test_a_frame_of_another_site_that_is_not_encrypted_is_dropped_whatever_it_says(headers, dropped):
    assert (gate(True).drop_plain(message(**headers)) is not None) == dropped
    assert gate(False).drop_plain(message(**headers)) is None


def test_flare_drops_what_a_site_sends_in_plain_before_it_opens_it():
    flare, opened = Cell(fqcn="alpha.job-1", root_url="tcp://localhost:1", secure=False, credentials={}), []
    flare.core_cell.decrypt_payload = opened.append
    found = gate(True)
    found.listen(SimpleNamespace(get_cell=lambda: flare))
    for channel, topic in ((STREAM_CHANNEL, STREAM_DATA_TOPIC), (CellChannel.AUX_COMMUNICATION, TOPIC)):
        for encrypted in (False, True):
            sent = message(secure=True, encrypted=encrypted)
            told = {MessageHeaderKey.CHANNEL: channel, MessageHeaderKey.TOPIC: topic}
            told |= {MessageHeaderKey.DESTINATION: "alpha.job-1", MessageHeaderKey.MSG_TYPE: MessageType.REQ}
            sent.add_headers({**told, MessageHeaderKey.TO_CELL: "alpha.job-1", MessageHeaderKey.REQ_ID: "1"})
            sent.payload = b""
            flare.core_cell.process_message(Endpoint("server"), None, 1, sent)
            assert len(opened) == encrypted
        opened.clear()


@pytest.mark.parametrize(("headers", "reason"), [({}, "privacy"), ({"secure": True}, None)])
def test_a_plain_call_is_refused(headers, reason):
    assert gate(True).receive(message(**headers)).payload.get_header(REASON) == reason


@pytest.mark.parametrize("origin", ["server.job-1", "server", "gamma.job-1", "beta", "beta.job-2", None])
def test_nobody_but_the_sites_of_the_job_may_call(origin):
    answer = gate(False).receive(message(origin)).payload
    assert answer.get_header(TEXT) == "Calls are taken from this job's sites only."
