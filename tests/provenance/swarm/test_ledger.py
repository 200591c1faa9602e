"""A site's ledger: proposals, signatures, take-over without a fork, catching up, and being killed at any point."""

import json
import pickle
import shutil
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.files.hash_chain_check import head_path
from fedseg.provenance.swarm.blocks import Part
from fedseg.provenance.swarm.errors import ForkError, SignatureError, SwarmLedgerError
from fedseg.provenance.swarm.leaders import leader_order
from fedseg.provenance.swarm.ledger import SwarmLedger
from fedseg.provenance.swarm.signatures import Signature, SignedBlock
from swarm_federation import RULE, START, Certifier, Swarm, of_text, rechain

SITES = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module")
def federation():
    return Certifier()


@pytest.fixture(scope="module")
def signers(federation):
    return {site: federation.signer(site) for site in SITES}


@pytest.fixture
def swarm(tmp_path, signers):
    return Swarm(tmp_path, signers)


def order(swarm, number):
    return leader_order(swarm.ledgers["alpha"].head, number, SITES)


def heads(swarm):
    return {ledger.head for ledger in swarm.ledgers.values()}


# -------------------------------------------------------------------------------------------- the way of a block


def test_every_site_holds_the_same_blocks(swarm):
    assert heads(swarm) == {swarm.opening.digest}
    swarm.rounds(3)
    (head,) = heads(swarm)
    for ledger in swarm.ledgers.values():
        assert [each.block.round for each in ledger.blocks] == [0, 1, 2]
        assert ledger.last.digest == head
        assert [each.sites for each in ledger.blocks] == [SITES] * 3
        assert ledger.pending is None
    assert swarm.open("beta").blocks == swarm.ledgers["beta"].blocks, "read back from the disk"


def test_blocks_name_what_took_part(swarm):
    block = swarm.round(0).block
    assert block.parts == swarm.parts(0)
    assert (block.model, block.rule, block.run_id, block.previous) == (
        of_text("model 0"),
        RULE,
        "run-1",
        swarm.opening.digest,
    )
    assert block.leader == order(Swarm(swarm.folder / "again", swarm.signers), 0)[0]


def test_a_block_is_taken_once(swarm):
    signed = swarm.round(0)
    before = swarm.path("alpha").read_bytes()
    assert swarm.ledgers["alpha"].append(signed) is False
    assert swarm.path("alpha").read_bytes() == before


def test_a_block_goes_over_the_wire_as_json(swarm):
    signed = swarm.collect(swarm.propose(0))
    again = SignedBlock.from_json(json.loads(json.dumps(signed.to_json())))
    assert again == signed
    assert swarm.ledgers["alpha"].append(again) is True


def test_too_few_signatures_are_no_block(swarm):
    proposal = swarm.propose(0)
    with pytest.raises(SwarmLedgerError, match=r"has 1 signature\(s\) .* but the quorum is 2"):
        swarm.ledgers["alpha"].append(proposal)
    other = next(site for site in SITES if site != proposal.block.leader)
    both = swarm.collect(proposal, [other])
    without = replace(both, signatures=tuple(each for each in both.signatures if each.site == other))
    with pytest.raises(SwarmLedgerError, match="is not signed by its leader"):
        swarm.ledgers["alpha"].append(without)
    assert swarm.ledgers["alpha"].append(both) is True


def test_a_block_that_does_not_follow_is_refused(swarm):
    first, leader = swarm.round(0, hand_to=["beta", "gamma"]), swarm.ledgers["beta"]
    leader.promise(1, 2, leader.head)
    second = swarm.collect(swarm.propose(1, leader, attempt=2), ["beta", "gamma"], attempt=2)
    with pytest.raises(SwarmLedgerError, match="a block is missing between them"):
        swarm.ledgers["alpha"].append(second)
    with pytest.raises(SwarmLedgerError, match="a block is missing between them"):
        swarm.ledgers["alpha"].sign(second, 1, 2)
    swarm.ledgers["alpha"].append(first)
    assert swarm.ledgers["alpha"].append(second) is True


def test_strangers_have_no_part(swarm):
    leader = swarm.leader(0)
    with pytest.raises(SwarmLedgerError, match="names delta, which the swarm does not have"):
        leader.propose(START, 0, {**swarm.parts(0), "delta": Part(1, of_text("d"))}, of_text("m"), RULE)
    proposal = leader.propose(START, 0, swarm.parts(0, [leader.site]), of_text("m"), RULE)
    other = next(site for site in SITES if site != leader.site)
    with pytest.raises(SwarmLedgerError, match=f"The site {other} has no part in"):
        swarm.ledgers[other].sign(proposal, 0, 0)
    signature = swarm.signers[other].sign(proposal.block)
    with pytest.raises(
        SignatureError, match=f"signature of {other} does not count: the site neither took part nor led"
    ):
        swarm.ledgers[other].append(proposal.signed_by([signature]))


def test_rounds_and_times_only_go_up(swarm):
    swarm.rounds(2)
    leader = swarm.leader(2)
    leader.promise(1, 1, leader.head)
    with pytest.raises(SwarmLedgerError, match="follows round 2, but rounds only go up"):
        swarm.propose(1, leader, attempt=1)
    proposal = swarm.propose(2, swarm.leader(2))
    early = replace(proposal.block, time="2020-01-01T00:00:00Z")
    signed = SignedBlock(early, tuple(signer.sign(early) for signer in swarm.signers.values()))
    with pytest.raises(SwarmLedgerError, match="before the block that it follows"):
        swarm.ledgers["alpha"].append(signed)


def test_a_server_that_starts_anew_may_ask_for_a_round_again(swarm):
    swarm.rounds(3)
    leader = swarm.leader(1)
    for ledger in swarm.ledgers.values():
        ledger.promise(1, 0, leader.head)
    proposal = leader.propose("start-2", 1, swarm.parts(1), of_text("again"), RULE, 0)
    signed = swarm.collect(proposal)
    assert all(ledger.append(signed) for ledger in swarm.ledgers.values())
    assert [(each.block.start, each.block.round) for each in swarm.open("alpha").blocks][-2:] == [
        (START, 2),
        ("start-2", 1),
    ]


def test_a_site_signs_no_block_of_another_time(swarm):
    leader = swarm.leader(0)
    block = replace(swarm.propose(0, leader).block, time="2040-01-01T00:00:00Z")
    proposal = SignedBlock(block, (swarm.signers[leader.site].sign(block),))
    other = next(site for site in SITES if site != leader.site)
    with pytest.raises(SwarmLedgerError, match="Set both clocks"):
        swarm.ledgers[other].sign(proposal, 0, 0)


def test_a_lost_round_leaves_no_block_and_the_next_one_follows(swarm):
    swarm.round(0)
    leader = swarm.ledgers[order(swarm, 2)[0]]
    for ledger in swarm.ledgers.values():
        assert ledger.promise(2, 0, leader.head) is None
    signed = swarm.collect(swarm.propose(2, leader))
    assert all(ledger.append(signed) for ledger in swarm.ledgers.values())
    assert [each.block.round for each in leader.blocks] == [0, 2]


# -------------------------------------------------------------------------------------------- take-over


def test_who_takes_over_must_ask_first(swarm):
    second = swarm.ledgers[order(swarm, 0)[1]]
    with pytest.raises(SwarmLedgerError, match="before it asked the sites, itself too, for their promises"):
        swarm.propose(0, second, attempt=1)
    assert second.promise(0, 1, second.head) is None
    swarm.propose(0, second, attempt=1)


def test_after_a_promise_the_first_leader_comes_too_late(swarm):
    first, second, third = (swarm.ledgers[site] for site in order(swarm, 0))
    for ledger in (second, third):
        assert ledger.promise(0, 1, second.head) is None
    late = swarm.propose(0, first)
    for ledger in (second, third):
        with pytest.raises(SwarmLedgerError, match="promised attempt 1 of round 1"):
            ledger.sign(late, 0, 0)
    signed = swarm.collect(swarm.propose(0, second, attempt=1), [third.site], attempt=1)
    assert [ledger.append(signed) for ledger in (first, second, third)] == [True] * 3
    assert signed.block.leader == second.site


def test_a_killed_leader_whose_block_had_its_signatures_makes_no_fork(swarm):
    """The leader took the block and died before it handed it out; who takes over finds it, and finishes it."""
    first, second, third = (swarm.ledgers[site] for site in order(swarm, 0))
    signed = swarm.collect(swarm.propose(0, first), [third.site])
    first.append(signed)
    answers = [ledger.promise(0, 1, second.head) for ledger in (second, third)]
    assert answers[0] is None
    ballot, found = answers[1]
    assert ballot == (0, 0)
    assert found.block == signed.block
    finished = found.signed_by([ledger.sign(found, 0, 1) for ledger in (second, third)])
    assert set(finished.sites) == set(SITES), "the leader's signature came with its proposal"
    assert [ledger.append(finished) for ledger in (second, third)] == [True, True]
    assert len(heads(swarm)) == 1
    assert second.last.leader == first.site


def test_a_site_signs_no_two_blocks_in_one_attempt_also_after_a_restart(swarm):
    first = swarm.ledgers[order(swarm, 0)[0]]
    one = swarm.propose(0, first)
    other_block = replace(one.block, model=of_text("another model"))
    other = SignedBlock(other_block, (swarm.signers[first.site].sign(other_block),))
    site = order(swarm, 0)[1]
    swarm.ledgers[site].sign(one, 0, 0)
    for ledger in (swarm.ledgers[site], swarm.open(site)):
        with pytest.raises(SwarmLedgerError, match="already, and signs no other in its place"):
            ledger.sign(other, 0, 0)
        assert ledger.sign(one, 0, 0).site == site, "the same block again, as after a lost answer"
    assert swarm.open(first.site).pending == ((0, 0), one), "a leader finds its own proposal after a restart"


def test_a_site_that_is_behind_promises_nothing(swarm):
    swarm.round(0, hand_to=["alpha", "beta"])
    alpha, gamma = swarm.ledgers["alpha"], swarm.ledgers["gamma"]
    with pytest.raises(SwarmLedgerError, match="the site gamma must catch up first"):
        gamma.promise(1, 1, alpha.head)
    with pytest.raises(SwarmLedgerError, match="the site that asks must catch up first"):
        alpha.promise(1, 1, gamma.head)


@settings(max_examples=30)
@given(st.data())
def test_no_order_of_deaths_makes_a_fork(tmp_path_factory, signers, data):
    """One place of the ledger; leaders take over in any order, each dies after any number of messages; blocks that
    count anywhere are one and the same. (Unsigned, for speed: what is agreed does not hang on keys.)"""
    names = ("a", "b", "c", "d", "e")
    swarm = Swarm(tmp_path_factory.mktemp("deaths"), {}, sites=names)
    counted = set()
    for attempt, leader in enumerate(data.draw(st.permutations(names))):
        own = swarm.ledgers[leader]
        reached = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=5))
        if any(swarm.ledgers[site].blocks for site in reached):
            continue  # a reached site has the block already, and would hand it to the leader
        answers = []
        for site in {leader, *reached}:
            if own.blocks:
                break
            answers.append(swarm.ledgers[site].promise(0, attempt, own.head))
        if own.blocks or len(answers) < swarm.opening.quorum:
            continue
        found = [answer for answer in answers if answer]
        if found:
            proposal = max(found, key=lambda answer: answer[0])[1]
        else:
            parts = swarm.parts(0)
            proposal = own.propose(START, 0, parts, of_text(f"merged by {leader}"), RULE, attempt)
        signing = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=5))
        signed = proposal
        for site in signing:
            if not swarm.ledgers[site].blocks:
                signed = signed.signed_by([swarm.ledgers[site].sign(proposal, 0, attempt)])
        if len(signed.signatures) >= swarm.opening.quorum:
            counted.add(signed.block.digest)
            for site in data.draw(st.lists(st.sampled_from(names), unique=True, max_size=5)):
                swarm.ledgers[site].append(signed)
    assert len(counted) <= 1


# -------------------------------------------------------------------------------------------- catching up


def test_a_site_that_was_away_catches_up_with_any_peer(swarm):
    swarm.round(0)
    for number in (1, 2, 3):
        leader = next(site for site in order(swarm, number) if site != "gamma")
        attempt = order(swarm, number).index(leader)
        for site in ("alpha", "beta"):
            swarm.ledgers[site].promise(number, attempt, swarm.ledgers[leader].head)
        proposal = swarm.propose(number, swarm.ledgers[leader], attempt=attempt)
        signed = swarm.collect(proposal, ["alpha", "beta"], attempt)
        for site in ("alpha", "beta"):
            swarm.ledgers[site].append(signed)
    gamma, beta = swarm.ledgers["gamma"], swarm.ledgers["beta"]
    sent = json.loads(json.dumps(beta.export(after=len(gamma.blocks))))
    assert len(sent["blocks"]) == 3
    assert len(sent["certificates"]) == 2, "each certificate travels once"
    assert gamma.catch_up(sent) == 3
    assert gamma.catch_up(beta.export()) == 0
    assert len(heads(swarm)) == 1
    assert swarm.open("gamma").blocks == beta.blocks


def test_nothing_is_taken_from_a_peer_whose_last_block_does_not_hold(swarm):
    swarm.round(0)
    rest = Swarm(swarm.folder / "rest", swarm.signers).rounds(3)
    late = SwarmLedger(swarm.folder / "late" / "ledger.jsonl", swarm.opening, "gamma", swarm.signers["gamma"])
    sent = rest.ledgers["alpha"].export()
    sent["blocks"][2]["block"]["model"] = of_text("another")
    before = (swarm.folder / "late" / "ledger.jsonl").read_bytes()
    with pytest.raises(SignatureError, match=r"round 3 .* is forged, or is one of another block"):
        late.catch_up(sent)
    assert late.blocks == ()
    assert (swarm.folder / "late" / "ledger.jsonl").read_bytes() == before


def test_two_blocks_of_one_round_are_a_fork_that_is_named_and_kept(swarm):
    """Two leaders, and one site that signs for both against the rules."""
    first, second, third = order(swarm, 0)
    one = swarm.collect(swarm.propose(0, swarm.ledgers[first]), [third])
    block = replace(one.block, leader=second, model=of_text("another"))
    other = SignedBlock(block, tuple(swarm.signers[site].sign(block) for site in (second, third)))
    ledger = swarm.ledgers[first]
    ledger.append(one)
    for _ in range(2):
        with pytest.raises(
            ForkError, match=f"The ledger forks: .* led by {first} .* led by {second} .*{third} signed both"
        ) as error:
            ledger.append(other)
        assert error.value.leaders == (first, second)
        assert error.value.signed_both == (third,)
    assert [each.block for each in ledger.blocks] == [one.block]
    assert swarm.path(first).read_text().count('"kind":"fork"') == 1
    swarm.ledgers[second].append(other)
    with pytest.raises(ForkError, match="The ledger forks"):
        ledger.catch_up(swarm.ledgers[second].export())


def test_a_forged_block_in_the_place_of_another_is_no_fork(swarm):
    signed = swarm.round(0)
    block = replace(signed.block, model=of_text("another"))
    forged = replace(signed, block=block)
    with pytest.raises(SignatureError, match="is forged"):
        swarm.ledgers["alpha"].append(forged)
    assert '"kind":"fork"' not in swarm.path("alpha").read_text()


@pytest.mark.parametrize("sent", [None, [], {}, {"blocks": [], "certificates": 3}, {"blocks": [1], "certificates": []}])
def test_what_is_no_ledger_is_not_taken(swarm, sent):
    with pytest.raises(SwarmLedgerError, match="no part of a swarm's ledger"):
        swarm.ledgers["alpha"].catch_up(sent)


# -------------------------------------------------------------------------------------------- files


def test_killed_at_any_byte_it_can_be_read_and_goes_on(swarm, tmp_path):
    """The file as a process leaves it that is killed in the middle of the last write."""
    swarm.round(0)
    before = swarm.path("alpha").read_bytes()
    signed = swarm.collect(swarm.propose(1), ["beta", "gamma"])
    swarm.ledgers["alpha"].append(signed)
    whole = swarm.path("alpha").read_bytes()
    ends = [number for number, byte in enumerate(whole) if byte == 10 and number >= len(before)]
    last = ends[-2] + 1 if len(ends) > 1 else len(before)
    for end in range(last, len(whole), 97):
        folder = tmp_path / f"killed-{end}"
        folder.mkdir()
        path = folder / "ledger.jsonl"
        path.write_bytes(whole[:end])
        lines = whole[:last].splitlines()
        content = {"count": len(lines), "hash": json.loads(lines[-1])["hash"]}
        head_path(path).write_text(json.dumps(content))
        ledger = SwarmLedger(path, swarm.opening, "alpha", swarm.signers["alpha"])
        assert [each.block.round for each in ledger.blocks] == [0]
        assert ledger.append(signed) is True
        assert SwarmLedger(path, swarm.opening, "alpha", swarm.signers["alpha"]).blocks == swarm.ledgers["alpha"].blocks


def test_killed_between_the_lines_of_one_block(swarm, tmp_path, monkeypatch):
    """A block brings certificates with it, which are lines of their own; any number of them may have been written."""
    signed = swarm.collect(swarm.propose(0))
    total = len(list(swarm.ledgers["alpha"]._contents.lines_of("block", signed)))
    assert total > 1
    for written in range(total):
        path = tmp_path / f"after-{written}" / "ledger.jsonl"
        ledger = SwarmLedger(path, swarm.opening, "gamma", swarm.signers["gamma"])
        write, count = SwarmLedger._write, [0]

        def dying(self, writer, line, write=write, count=count, written=written):
            if count[0] == written:
                raise KeyboardInterrupt
            count[0] += 1
            write(self, writer, line)

        monkeypatch.setattr(SwarmLedger, "_write", dying)
        with pytest.raises(KeyboardInterrupt):
            ledger.append(signed)
        monkeypatch.undo()
        again = SwarmLedger(path, swarm.opening, "gamma", swarm.signers["gamma"])
        assert again.blocks == ()
        assert again.append(signed) is True


def test_a_full_disk_takes_nothing_and_names_no_file(swarm, monkeypatch):
    signed = swarm.collect(swarm.propose(0))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedseg.files.hash_chain.os.write", full)
    with pytest.raises(SwarmLedgerError, match="cannot be read or written") as error:
        swarm.ledgers["beta"].append(signed)
    assert str(swarm.folder) not in str(error.value)
    monkeypatch.undo()
    assert swarm.ledgers["beta"].append(signed) is True


def test_another_process_may_write_the_same_ledger(swarm):
    other = swarm.open("alpha")
    swarm.rounds(2)
    assert other.append(swarm.ledgers["alpha"].blocks[-1]) is False
    assert other.blocks == swarm.ledgers["alpha"].blocks


def test_a_ledger_that_is_replaced_while_it_is_used_is_found(swarm, tmp_path):
    swarm.rounds(2)
    other = Swarm(tmp_path / "other", swarm.signers).rounds(3)
    for name in (swarm.path("alpha"), head_path(swarm.path("alpha"))):
        shutil.copy(other.path("alpha").with_name(name.name), name)
    with pytest.raises(SwarmLedgerError, match="was replaced while the run went on"):
        swarm.ledgers["alpha"].append(swarm.ledgers["beta"].blocks[-1])


def test_a_ledger_of_something_else_is_not_gone_on_with(swarm, federation):
    path = swarm.path("alpha")
    for opening in (replace(swarm.opening, run_id="run-2"), replace(swarm.opening, quorum=3)):
        with pytest.raises(SwarmLedgerError, match="is of another site, run or federation"):
            SwarmLedger(path, opening, "alpha", swarm.signers["alpha"])
    with pytest.raises(SwarmLedgerError, match="is of another site, run or federation"):
        SwarmLedger(path, swarm.opening, "beta", swarm.signers["beta"])


def test_a_changed_ledger_is_not_gone_on_with(swarm):
    swarm.rounds(1)
    rechain(swarm.path("alpha"), lambda bodies: bodies[-1]["signed"]["block"].update(model=of_text("x")))
    with pytest.raises(SignatureError, match="is forged"):
        swarm.open("alpha")
    path = swarm.path("beta")
    path.write_bytes(path.read_bytes().replace(b'"round":0', b'"round":1'))
    with pytest.raises(SwarmLedgerError, match=r"is not what was written\. Line") as error:
        swarm.open("beta")
    assert str(swarm.folder) not in str(error.value)


def test_who_signs_must_be_who_it_says(swarm, tmp_path, signers):
    opening, path = swarm.opening, tmp_path / "new.jsonl"
    other = Certifier("another")
    for arguments, words in (
        ((opening, "alpha", None), "has no kit with a key"),
        ((opening, "alpha", signers["beta"]), "The certificate of this kit is of 'beta'"),
        ((opening, "delta", None), "The site delta is none of the swarm"),
        ((opening, "alpha", other.signer("alpha")), "is of another federation than this swarm"),
        ((replace(opening, root=""), "alpha", signers["alpha"]), "is of another federation than this swarm"),
    ):
        with pytest.raises(SwarmLedgerError, match=words):
            SwarmLedger(path, *arguments)
    assert not path.exists()


def test_without_kits_sites_give_their_word(tmp_path):
    swarm = Swarm(tmp_path, {}, sites=("a", "b", "c")).rounds(2)
    assert all(each.signatures == tuple(map(Signature, "abc")) for each in swarm.ledgers["a"].blocks)
    signed = swarm.collect(swarm.propose(2))
    with pytest.raises(SignatureError, match="the sites of this swarm do not sign"):
        swarm.ledgers["a"].append(replace(signed, signatures=(Signature("a", "x", "y"), *signed.signatures[1:])))


def test_a_word_is_no_signature_where_sites_sign(swarm):
    signed = swarm.collect(swarm.propose(0))
    words = replace(signed, signatures=tuple(Signature(site) for site in signed.sites))
    with pytest.raises(SignatureError, match="is missing: there is only its name"):
        swarm.ledgers["alpha"].append(words)


def test_metadata_only_and_small(swarm):
    """No line of the file holds a list or a map of numbers, and a round takes less than 8 kB with three sites."""
    swarm.rounds(4)
    size = swarm.path("alpha").stat().st_size
    swarm.round(4)
    assert swarm.path("alpha").stat().st_size - size < 8_000

    def numbers_in_lists(value):
        if isinstance(value, list):
            return any(isinstance(each, int | float) for each in value) or any(map(numbers_in_lists, value))
        return isinstance(value, dict) and any(map(numbers_in_lists, value.values()))

    assert not any(numbers_in_lists(json.loads(line)) for line in swarm.path("alpha").read_text().splitlines())
    texts = [text for line in swarm.path("alpha").read_text().splitlines() for text in _texts(json.loads(line))]
    assert max(map(len, texts)) <= 8192


def _texts(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def test_errors_travel_between_processes():
    error = ForkError("text", ("a", "b"), ("c",))
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.leaders, copy.signed_both) == ("text", ("a", "b"), ("c",))
