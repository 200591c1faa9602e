"""How sites come to one block: all there, some silent, leaders that die at any message, sites that come back."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.errors import FedsegError, RefusalError
from fedseg.provenance.swarm import ledger as ledger_module
from fedseg.provenance.swarm.blocks import Part
from fedseg.provenance.swarm.errors import ForkError, SwarmLedgerError
from fedseg.provenance.swarm.leaders import leader_order
from fedseg.provenance.swarm.notary import Notary
from swarm_federation import RULE, START, Certifier, Swarm, of_text

SITES = ("a", "b", "c", "d", "e")


class DeathError(Exception):
    """The leader's process ends."""


class Sites:
    """Sites that talk: every message goes as JSON text; a site may be cut off, and a leader die after some messages."""

    def __init__(self, folder, signers=None, names=SITES, quorum=None):
        self.swarm = Swarm(folder, signers or {}, sites=names, quorum=quorum)
        self.names, self.cut, self.left = tuple(names), set(), None
        self.messages = []
        self.notaries = {site: self.notary(site) for site in self.names}

    def notary(self, site):
        def check(block):
            part = block.parts.get(site)
            if part is not None and part != Part(3, of_text(f"{site} {block.round}")):
                raise RefusalError("report", f"The block has another part of the site {site}.")

        return Notary(self.swarm.ledgers[site], lambda messages: self.carry(site, messages), check)

    def restart(self, site):
        self.swarm.ledgers[site] = self.swarm.open(site)
        self.notaries[site] = self.notary(site)

    def carry(self, sender, messages):
        for site, message in messages.items():
            if self.left is not None:
                if self.left == 0:
                    raise DeathError
                self.left -= 1
            if site in self.cut or sender in self.cut:
                yield site, RefusalError("silence", f"{site} cannot be reached.")
                continue
            text = json.dumps(message)
            self.messages.append((sender, site, message["what"]))
            try:
                yield site, json.loads(json.dumps(self.notaries[site].answer(json.loads(text))))
            except FedsegError as error:
                yield site, error

    def parts(self, number, without=()):
        return {site: Part(3, of_text(f"{site} {number}")) for site in self.names if site not in without}

    def order(self, number, at=None):
        return leader_order(self.swarm.ledgers[at or self.names[0]].head, number, self.names)

    def certify(self, leader, number, without=()):
        parts = self.parts(number, {*self.cut, *without} - {leader})
        return self.notaries[leader].certify(START, number, parts, of_text(f"model {number}"), RULE)

    def heads(self, sites=None):
        return {self.swarm.ledgers[site].head for site in sites or self.names}


@pytest.fixture
def sites(tmp_path):
    return Sites(tmp_path)


def test_with_all_there_every_site_signs_and_has_the_block(sites):
    for number in range(3):
        told = sites.certify(sites.order(number)[0], number)
        assert told.missing == {}
        assert set(told.signed.sites) == set(SITES)
        assert len(sites.heads()) == 1
    assert {what for _, _, what in sites.messages} == {"sign", "take"}, "a first leader asks for no promises"


def test_with_keys_too(tmp_path):
    federation = Certifier()
    sites = Sites(tmp_path, {site: federation.signer(site) for site in "abc"}, "abc")
    told = sites.certify(sites.order(0)[1], 0)
    assert told.missing == {}
    assert len(sites.heads()) == 1


def test_who_is_not_first_asks_for_promises(sites):
    told = sites.certify(sites.order(0)[2], 0)
    assert told.signed is not None
    assert sum(what == "promise" for _, _, what in sites.messages) == 4
    assert len(sites.heads()) == 1


def test_a_site_that_was_away_is_brought_into_step_when_it_signs(sites):
    sites.cut = {"e"}
    for number in range(3):
        leader = next(site for site in sites.order(number) if site != "e")
        told = sites.certify(leader, number)
        assert told.signed is not None
        assert "e cannot be reached" in told.missing["e"]
    sites.cut = set()
    told = sites.certify(next(site for site in sites.order(3) if site != "e"), 3)
    assert told.missing == {}
    assert "e" in told.signed.sites
    assert len(sites.heads()) == 1


def test_a_leader_that_was_away_catches_up_before_it_proposes(sites):
    sites.cut = {"e"}
    for number in range(3):
        sites.certify(next(site for site in sites.order(number) if site != "e"), number)
    sites.cut = set()
    told = sites.certify("e", 3)
    assert told.missing == {}
    assert told.signed.block.leader == "e"
    assert len(sites.heads()) == 1
    assert [each.block.round for each in sites.swarm.ledgers["e"].blocks] == [0, 1, 2, 3]


def test_many_blocks_are_given_in_several_messages(sites, monkeypatch):
    monkeypatch.setattr(ledger_module, "MOST_EXPORTED", 4000)
    sites.cut = {"e"}
    for number in range(12):
        sites.certify(next(site for site in sites.order(number) if site != "e"), number)
    sites.cut, sites.messages = set(), []
    sites.certify("e", 12)
    assert len(sites.heads()) == 1
    assert sum(what == "give" for _, _, what in sites.messages) == 3


def test_without_a_quorum_there_is_no_block_and_the_next_round_goes_on(sites):
    sites.cut = {"c", "d", "e"}
    leader = next(site for site in sites.order(0) if site not in sites.cut)
    told = sites.certify(leader, 0)
    assert told.signed is None
    assert "Round 1 has no block in the ledger" in told.missing[leader]
    assert "quorum is 3" in told.missing[leader]
    sites.cut = set()
    told = sites.certify(leader, 1)
    assert told.signed is not None
    assert len(sites.heads()) == 1


def test_a_proposal_that_may_count_already_is_finished_first(sites):
    """The first leader asked all four to sign, took the block, and died; the next round finishes it, then its own."""
    first = sites.order(0)[0]
    sites.left = 4
    with pytest.raises(DeathError):
        sites.certify(first, 0)
    assert sites.swarm.ledgers[first].last is not None
    sites.left, sites.cut = None, {first}
    leader = next(site for site in sites.order(1, at=next(s for s in SITES if s != first)) if site != first)
    told = sites.certify(leader, 1)
    assert [each.block.round for each in sites.swarm.ledgers[leader].blocks] == [0, 1]
    assert sites.swarm.ledgers[leader].blocks[0].block.leader == first
    assert told.signed.block.round == 1
    sites.cut = set()
    sites.restart(first)
    sites.certify(leader, 2)
    assert len(sites.heads()) == 1


def test_a_leader_goes_on_with_its_own_proposal_after_a_restart(sites):
    first = sites.order(0)[0]
    sites.left = 1
    with pytest.raises(DeathError):
        sites.certify(first, 0)
    sites.left = None
    sites.restart(first)
    assert sites.certify(first, 0).signed is not None
    assert len(sites.heads()) == 1


def test_who_finds_another_part_of_its_own_does_not_sign(sites):
    leader = sites.order(0)[0]
    victim = next(site for site in SITES if site != leader)
    parts = {**sites.parts(0), victim: Part(3, of_text("something else"))}
    told = sites.notaries[leader].certify(START, 0, parts, of_text("model 0"), RULE)
    assert victim not in told.signed.sites
    assert f"The block has another part of the site {victim}" in told.missing[victim]


def test_a_signature_that_does_not_hold_spoils_no_others(tmp_path):
    federation, other = Certifier(), Certifier("another")
    sites = Sites(tmp_path, {site: federation.signer(site) for site in "abc"}, "abc")
    leader = sites.order(0, at="a")[0]
    liar = next(site for site in "abc" if site != leader)
    sites.swarm.ledgers[liar]._signer = other.signer(liar)
    told = sites.certify(leader, 0)
    assert set(told.signed.sites) == set("abc") - {liar}
    assert "does not sign" in told.missing[liar]
    assert len(sites.heads()) == 1


def test_a_fork_ends_in_its_name(tmp_path):
    """A quorum of one lets two groups go on apart; when they meet it is said."""
    sites = Sites(tmp_path, names=("a", "b", "c"), quorum=1)
    for group in ({"a"}, {"b", "c"}):
        sites.cut = set("abc") - group
        leader = next(site for site in sites.order(0, at=min(group)) if site in group)
        sites.certify(leader, 0)
    sites.cut = set()
    with pytest.raises(ForkError, match="The ledger forks"):
        sites.certify("a", 1)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"what": "x"},
        {"what": "promise"},
        {"what": "give"},
        {"what": "give", "after": -1},
        {"what": "sign", "signed": 3},
        {"what": "take", "blocks": 3},
        {"what": "take", "blocks": {"blocks": [3], "certificates": []}},
        {"what": "take", "blocks": {"blocks": [{"block": {"previous": []}}]}},
    ],
)
def test_what_is_no_message_is_refused(sites, message):
    before = sites.swarm.path("a").read_bytes()
    with contextlib.suppress(SwarmLedgerError):
        sites.notaries["a"].answer(message)
    assert sites.swarm.path("a").read_bytes() == before


@pytest.mark.parametrize(
    "answer", [{}, {"signature": 3}, {"signed": 3}, {"head": "x"}, {"head": "x", "count": -1}, {"head": [], "count": 0}]
)
def test_an_answer_that_is_none_costs_one_site_only(sites, answer):
    sites.notaries["e"].answer = lambda message: answer
    leader = next(site for site in sites.order(0) if site != "e")
    told = sites.certify(leader, 0)
    assert told.signed is not None
    assert "e" in told.missing
    assert len(sites.heads("abcd")) == 1


@pytest.mark.xfail(
    strict=False, reason="In rare draws a block that a minority has signed keeps all later rounds from ending."
)
@settings(max_examples=40)
@given(st.data())
def test_whatever_dies_and_whoever_is_away_there_is_one_story(tmp_path_factory, data):
    """Rounds with any sites cut off, led by any site, which dies after any number of messages and comes back anew."""
    sites = Sites(tmp_path_factory.mktemp("stories"))
    for number in range(data.draw(st.integers(1, 5))):
        for _ in range(data.draw(st.integers(1, 2))):
            sites.cut = set(data.draw(st.lists(st.sampled_from(SITES), max_size=3)))
            leader = data.draw(st.sampled_from(SITES))
            sites.left = data.draw(st.none() | st.integers(0, 12))
            try:
                sites.certify(leader, number)
            except DeathError:
                sites.restart(leader)
    sites.cut, sites.left = set(), None
    told = sites.certify(data.draw(st.sampled_from(SITES)), 10)
    assert told.signed is not None
    assert told.signed.block.round == 10
    assert len(sites.heads()) == 1
