"""Calls between two sites of a job: a pair knows itself by a secret and by FLARE's envelope; nobody else is heard."""

import threading
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from nvflare.apis.fl_constant import ReturnCode
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.message import Message

from fedseg.contract.protocol import REASON, TEXT
from fedseg.errors import RefusalError
from fedseg.messages.calls.call import FEATURES, TOPIC, Ask, Call, read_call
from fedseg.messages.calls.caller import DirectCalls, Failure
from fedseg.messages.calls.desk import CallDesk
from fedseg.messages.calls.gate import CallGate
from fedseg.messages.calls.roster import SERVER, Roster, new_rosters, read_roster
from fedseg.messages.sizes import message_size

NAMES = (SERVER, "a", "b", "c")
HERE = Call(Ask.FEATURES, "s1", 0)


class Site:
    """Gate and desk of a site as its executor puts them together, and what it was asked by whom."""

    def __init__(self, roster, peers):
        self.desk, self.asked = CallDesk(), []
        self.gate = CallGate("job-1", self.hear)
        self.gate.admit(peers)
        self.thread = threading.Thread(
            target=lambda: self.desk.serve("s1", 0, roster, self.answer, 30.0, lambda: False), daemon=True
        )

    def hear(self, caller, request):
        return self.desk.receive(read_call(request, caller), message_size(request))

    def answer(self, call):
        self.asked.append((call.caller, call.ask))
        arrays = {name: 2 * value for name, value in call.arrays.get(FEATURES, {}).items()}
        return replace(call, secret="", arrays={FEATURES: arrays} if arrays else {})


class Engine:
    """FLARE's engine of one participant, whose messages carry its place in FLARE's network as their origin."""

    def __init__(self, origin, gates):
        self.origin, self.gates, self.sent = origin, gates, []

    def new_context(self):
        return nullcontext()

    def send_aux_request(self, targets, topic, request, timeout, fl_ctx, optional):
        assert topic == TOPIC
        (target,) = targets
        self.sent.append(request)
        return {target: self.gates[target].receive(Message({MessageHeaderKey.ORIGIN: self.origin}, request)).payload}


@pytest.fixture
def job():
    """Site b, which a and the server may call, but not c; and the rosters of all."""
    rosters = new_rosters(NAMES)
    heard = Roster({name: rosters["b"].secrets[name] for name in (SERVER, "a")})
    # FLARE reaches site a over a relay; its job process hangs below its client.
    site = Site(heard, {"a": "relay.a"})
    site.thread.start()
    ready = Call(Ask.READY, "s1", 0, secret=rosters["b"].secrets[SERVER])
    while site.desk.receive(ready).get_return_code() != ReturnCode.OK:
        assert site.thread.is_alive()
    site.asked.clear()
    yield site, rosters
    site.desk.receive(replace(ready, ask=Ask.END))
    site.thread.join(20)
    assert not site.thread.is_alive()


def call_b(site, origin, secret, call=HERE):
    calls = DirectCalls(Engine(origin, {"b": site.gate}), 10, {"b": secret}, threading.Event())
    found = calls.exchange({"b": call})
    calls.close()
    return found


def test_a_site_calls_another_one(job):
    site, rosters = job
    sent = np.arange(6, dtype=np.float32).reshape(2, 3)
    call = replace(HERE, arrays={FEATURES: {"x": sent}})
    answers, failures = call_b(site, "relay.a.job-1", rosters["a"].secrets["b"], call)
    assert failures == {}
    np.testing.assert_array_equal(answers["b"].group(FEATURES)["x"], 2 * sent)
    assert site.asked == [("a", Ask.FEATURES)]
    answers, failures = call_b(site, "server.job-1", rosters[SERVER].secrets["b"])
    assert (list(answers), failures) == (["b"], {})
    assert site.asked[1:] == [(SERVER, Ask.FEATURES)]


@pytest.mark.parametrize("origin", ["c.job-1", "a.job-1", "relay.a", "relay.a.job-2", "c.relay.a.job-1", "", None])
def test_a_stranger_is_refused_whatever_it_knows(job, origin):
    """Not admitted, or from a place that only looks like that of site a; with the secret of site a, too."""
    site, rosters = job
    for secret in (rosters["c"].secrets["b"], rosters["a"].secrets["b"]):
        answers, failures = call_b(site, origin, secret)
        assert answers == {}
        assert failures == {"b": Failure("state: Calls are taken from this job's server only.", True)}
    assert site.asked == []


@pytest.mark.parametrize(
    ("origin", "owner"), [("relay.a.job-1", SERVER), ("relay.a.job-1", "c"), ("server.job-1", "a")]
)
def test_nobody_calls_with_the_secret_of_another_pair(job, origin, owner):
    site, rosters = job
    answers, failures = call_b(site, origin, rosters[owner].secrets["b"])
    assert answers == {}
    assert failures["b"].why.startswith("state: Calls must carry the secret")
    assert site.asked == []


def test_each_pair_has_a_secret_of_its_own_and_no_print_shows_it():
    rosters = new_rosters(NAMES)
    pairs = {frozenset((one, other)): rosters[one].secrets[other] for one in NAMES for other in NAMES if one != other}
    assert len(set(pairs.values())) == len(pairs) == 6
    assert all(rosters[other].secrets[one] == secret for (one, other), secret in pairs.items())
    assert not any(secret in repr(rosters) for secret in pairs.values())
    assert all(len(secret) == 32 for secret in pairs.values())


def test_the_header_of_a_task_holds_the_servers_secret_or_those_of_all_pairs():
    assert read_roster("abc") == Roster({SERVER: "abc"})
    assert read_roster({SERVER: "abc", "b": "def"}) == Roster({SERVER: "abc", "b": "def"})
    for wrong in (None, "", 3, {}, {"b": ""}, {"b": None}):
        with pytest.raises(RefusalError, match="no secret") as error:
            read_roster(wrong)
        assert error.value.reason == "state"


def test_a_caller_is_not_what_the_call_says():
    """The name that a call was made with does not travel: it is that of the envelope."""
    message = replace(HERE, caller="a", secret="x").to_shareable()
    assert read_call(message, "c").caller == "c"
    reply = CallDesk().receive(read_call(message, "c"))
    assert (reply.get_header(REASON), reply.get_header(TEXT)) == ("state", "The site is not in this round.")
