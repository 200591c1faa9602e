"""``fedseg audit-log`` on the ledger of a swarm: whatever was done to a copy is found and named.

The certificates are those of kits that FLARE's provisioning made, in one federation of three sites; others are made
with the functions of that provisioning. Who changes a ledger here computes all hashes of its lines anew, so that only
blocks, signatures and other copies can show it.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.cli import main
from fedseg.deployment.kits.provisioning import provision
from fedseg.files.hash_chain_check import head_path
from fedseg.provenance.swarm.audit import audit_swarm
from fedseg.provenance.swarm.blocks import Block
from fedseg.provenance.swarm.errors import ForkError, SignatureError, SwarmLedgerError
from fedseg.provenance.swarm.ledger import SwarmLedger
from fedseg.provenance.swarm.signatures import Root, SignedBlock, Signer
from swarm_federation import RULE, START, Certifier, Swarm, blocks_of, days, of_text, rechain, rewrite_blocks

TEMPLATES = Path(__file__).parents[2] / "workspace_templates"
SITES = ("hospital-a", "hospital-b", "hospital-c")
A, B, C = SITES


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    """Kits as ``fedseg provision`` makes them."""
    project = yaml.safe_load((TEMPLATES / "three_hospitals" / "project.yml").read_text())
    people = [entry for entry in project["participants"] if entry.get("role", "project_admin") == "project_admin"]
    folder = tmp_path_factory.mktemp("federation") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder.parent))
        policy = TEMPLATES / "site_policy" / "local"
        provision({**project, "participants": people}, policy, folder, with_wheel=False)
    return folder / "kits"


@pytest.fixture(scope="module")
def root(kits):
    return kits / A / "startup" / "rootCA.pem"


@pytest.fixture(scope="module")
def signers(kits):
    return {site: Signer.of_kit(kits / site / "startup") for site in SITES}


@pytest.fixture(scope="module")
def made(tmp_path_factory, signers):
    """Five rounds that nobody touched."""
    return Swarm(tmp_path_factory.mktemp("made"), signers).rounds(5)


@pytest.fixture(scope="module")
def stranger():
    """Another federation."""
    return Certifier("another")


@pytest.fixture
def swarm(made, tmp_path, signers):
    """The same rounds, to be touched."""
    shutil.copytree(made.folder, tmp_path / "swarm")
    return Swarm(tmp_path / "swarm", signers)


def call(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    streams = capsys.readouterr()
    return code, " ".join(streams.out.split()), " ".join(streams.err.split())


@pytest.fixture
def verify(capsys, root):
    """Exit code and what is said of copies."""

    def run(*paths, more=("--root", root)):
        return call(capsys, "audit-log", "verify", *paths, *more)[:2]

    return run


# ------------------------------------------------------------------------------------------- what holds


def test_what_nobody_touched_holds(swarm, verify):
    code, said = verify(*map(swarm.path, SITES))
    assert code == 0, said
    assert said.count("all 15 signature(s) hold, by certificates of this federation") == 3
    assert said.count("agrees with") == 2
    assert said.count("every block has the quorum of 2 of 3 site(s); rounds led:") == 3
    assert said.count(f"head {swarm.ledgers[A].head}") == 3
    code, said = verify(swarm.folder)
    assert code == 0, said


def test_without_a_root_it_is_said_that_nobody_looked_who_issued(swarm, verify):
    code, said = verify(swarm.path(A), more=())
    assert code == 0
    assert "who issued these is checked with --root" in said


def test_a_higher_quorum_can_be_asked_for(signers, tmp_path, verify):
    swarm = Swarm(tmp_path, signers)
    proposal = swarm.propose(0)
    other = next(site for site in SITES if site != proposal.block.leader)
    swarm.ledgers[A].append(swarm.collect(proposal, [other]))
    assert verify(swarm.path(A))[0] == 0
    code, said = verify(swarm.path(A), more=("--quorum", 3))
    assert code == 1
    assert "has 2 signature(s)" in said
    assert "but the quorum is 3" in said


def test_a_simulation_says_plainly_that_nothing_is_signed(tmp_path, verify):
    swarm = Swarm(tmp_path, {}, sites=("site-1", "site-2")).rounds(2)
    code, said = verify(*map(swarm.path, swarm.opening.sites), more=())
    assert code == 0
    assert said.count("no block is signed, as in a simulation: anybody could have written this ledger") == 2
    code, said = verify(swarm.path("site-1"))
    assert code == 1, "who names a root certificate wants signatures"
    assert "WRONG" in said
    assert "no block is signed" in said


# ------------------------------------------------------------------------------------------- what is found


def expect(outcome, *words):
    code, said = outcome
    assert code == 1, said
    for word in words:
        assert word in said, f"{word!r} is not in: {said}"
    return said


def test_a_line_that_was_changed(swarm, verify):
    path = swarm.path(A)
    path.write_bytes(path.read_bytes().replace(b'"cases":5', b'"cases":9', 1))
    expect(verify(path), f"WRONG {path}: Line", "was changed: its hash does not fit its content")


def test_a_changed_block(swarm, verify):
    def change(bodies):
        blocks_of(bodies)[1]["signed"]["block"]["parts"][B]["cases"] = 500
        rewrite_blocks(bodies)

    rechain(swarm.path(A), change)
    said = expect(verify(swarm.path(A)), "In the block of round 2 led by", "is forged, or is one of another block")
    assert "was changed: its hash" not in said, "its lines are sound"
    expect(verify(*map(swarm.path, SITES)), f"{swarm.path(A)} was replaced or changed: it tells another story than")


def test_a_changed_block_whose_followers_were_left_alone(swarm, verify):
    rechain(swarm.path(A), lambda bodies: blocks_of(bodies)[1]["signed"]["block"].update(model=of_text("x")))
    expect(verify(swarm.path(A)), "The block of round 3", "does not follow the block of round 2")


def test_a_dropped_block(swarm, verify):
    rechain(swarm.path(A), lambda bodies: bodies.remove(blocks_of(bodies)[2]))
    words = ("The block of round 4", "does not follow the block of round 2", "a block is missing between them")
    expect(verify(swarm.path(A)), *words)


def test_the_first_block_dropped(swarm, verify):
    rechain(swarm.path(A), lambda bodies: bodies.remove(blocks_of(bodies)[0]))
    expect(verify(swarm.path(A)), "The block of round 2", "does not follow the opening of this ledger")


def test_a_cut_end(swarm, verify):
    def cut(bodies):
        del bodies[bodies.index(blocks_of(bodies)[3]) :]

    rechain(swarm.path(A), cut)
    assert verify(swarm.path(A))[0] == 0, "by itself nobody can tell"
    said = expect(
        verify(*map(swarm.path, SITES)), f"{swarm.path(A)} lacks the last 2 block(s), of round(s) 4, 5, which"
    )
    assert "agrees with" in said, "the two others still agree"


def test_a_cut_end_that_the_head_still_counts(swarm, verify):
    lines = swarm.path(A).read_bytes().splitlines(keepends=True)
    swarm.path(A).write_bytes(b"".join(lines[:-1]))
    expect(verify(swarm.path(A)), "is missing")


def test_a_forged_signature(swarm, verify, stranger):
    """A key of nobody, under the name and the certificate of hospital-b."""
    forger = stranger.signer(B)

    def change(bodies):
        signed = blocks_of(bodies)[3]["signed"]
        block = SignedBlock.from_json({"block": signed["block"], "signatures": []}).block
        (its,) = (each for each in signed["signatures"] if each["site"] == B)
        its["value"] = forger.sign(block).value

    rechain(swarm.path(A), change)
    words = ("In the block of round 4", f"the signature of {B} is forged, or is one of another block")
    expect(verify(swarm.path(A)), *words)
    expect(verify(swarm.path(A), more=()), *words)


def test_a_signature_of_another_block(swarm, verify):
    def change(bodies):
        one, other = (blocks_of(bodies)[number]["signed"]["signatures"] for number in (1, 2))
        one[:] = other

    rechain(swarm.path(A), change)
    expect(verify(swarm.path(A)), "In the block of round 2", "is one of another block")


def test_a_signature_taken_away(swarm, verify):
    """Below the quorum, or that of the leader."""

    def change(bodies):
        signed = blocks_of(bodies)[1]["signed"]
        signed["signatures"] = [each for each in signed["signatures"] if each["site"] != signed["block"]["leader"]]

    rechain(swarm.path(A), change)
    expect(verify(swarm.path(A)), "is not signed by its leader")

    def leave_the_leader(bodies):
        signed = blocks_of(bodies)[1]["signed"]
        signed["signatures"] = [each for each in signed["signatures"] if each["site"] == signed["block"]["leader"]]

    rechain(swarm.path(B), leave_the_leader)
    expect(verify(swarm.path(B)), "has 1 signature(s)", "but the quorum is 2")


def signed_by(swarm, signers, leader=A, **change):
    """The next block with the signatures of any signers, put into a copy that checks no issuer."""
    ledger = swarm.ledgers[leader]
    block = replace(ledger.last, round=ledger.last.round + 1, leader=leader, previous=ledger.head, **change)
    return SignedBlock(block, tuple(signer.sign(block) for signer in signers))


def put(swarm, site, signed):
    """Write a block into a copy, as somebody does who may write the file."""

    def change(bodies):
        for line in swarm.ledgers[site]._contents.lines_of("block", signed):
            bodies.append(line)

    rechain(swarm.path(site), change)


def test_a_certificate_of_another_federation(swarm, verify, stranger, signers):
    """All three names, with good signatures, but issued by somebody else's root certificate."""
    put(swarm, A, signed_by(swarm, [stranger.signer(site) for site in SITES]))
    words = ("In the block of round 6", f"signature of {A} has a certificate of another federation")
    expect(verify(swarm.path(A)), *words)
    assert verify(swarm.path(A), more=())[0] == 0, "only the root certificate tells"
    with pytest.raises(SignatureError, match="has a certificate of another federation"):
        swarm.open(A)


def test_a_federation_of_the_same_name_is_another_one(swarm, verify, root, signers):
    twin = Certifier(next(iter(signers.values())).root._certificate.subject.rfc4514_string().removeprefix("CN="))
    put(swarm, A, signed_by(swarm, [twin.signer(site) for site in SITES]))
    expect(verify(swarm.path(A)), "has a certificate of another federation")


def test_the_root_certificate_of_another_federation(swarm, verify, stranger, tmp_path):
    (tmp_path / "other.pem").write_bytes(stranger.pem)
    more = ("--root", tmp_path / "other.pem")
    expect(verify(swarm.path(A), more=more), "the ledger is of another federation than this root certificate")


def test_an_expired_certificate(tmp_path, capsys):
    """It was valid until yesterday, and signed a block today; one that was valid at the block's time still counts."""
    federation = Certifier("federation", **days(-20, 20))
    good = {site: federation.signer(site, **days(-10, 10)) for site in SITES}
    swarm = Swarm(tmp_path / "swarm", good).rounds(1)
    pem = tmp_path / "root.pem"
    pem.write_bytes(federation.pem)
    expired = {**good, B: federation.signer(B, **days(-10, -1))}
    put(swarm, A, signed_by(swarm, expired.values()))
    code, said, _ = call(capsys, "audit-log", "verify", swarm.path(A), "--root", pem)
    assert code == 1
    assert f"In the block of round 2 led by {A} the signature of {B} has a certificate that had expired at" in said
    early = {**good, B: federation.signer(B, **days(1, 10))}
    put(swarm, B, signed_by(swarm, early.values()))
    code, said, _ = call(capsys, "audit-log", "verify", swarm.path(B), "--root", pem)
    assert code == 1
    assert "has a certificate that was not valid yet at" in said
    assert call(capsys, "audit-log", "verify", swarm.path(C), "--root", pem)[0] == 0


def test_certificates_that_expired_after_the_block_was_made_still_count(tmp_path, capsys):
    federation = Certifier("federation", **days(-400, -30))
    signers = {site: federation.signer(site, **days(-390, -40)) for site in SITES}
    swarm = Swarm(tmp_path / "swarm", signers)
    time = (days(-100, 0)["not_valid_before"]).strftime("%Y-%m-%dT%H:%M:%SZ")
    opening = swarm.opening
    block = Block(opening.run_id, START, 0, A, swarm.parts(0), of_text("m"), RULE, time, opening.digest)
    put(swarm, A, SignedBlock(block, tuple(signer.sign(block) for signer in signers.values())))
    (tmp_path / "root.pem").write_bytes(federation.pem)
    code, said, _ = call(capsys, "audit-log", "verify", swarm.path(A), "--root", tmp_path / "root.pem")
    assert code == 0, said


def test_a_certificate_with_another_name(swarm, verify, signers):
    """hospital-c signs, and says that it was hospital-b."""
    signed = signed_by(swarm, signers.values())
    its = replace(signers[C].sign(signed.block), site=B)
    signatures = tuple(its if each.site == B else each for each in signed.signatures)
    put(swarm, A, replace(signed, signatures=signatures))
    expect(verify(swarm.path(A)), f"the signature of {B} has a certificate of '{C}'")


def test_an_administrator_cannot_sign_for_a_site(swarm, verify, signers, kits):
    person = Signer.of_kit(kits / "coordinator@example.org" / "startup")
    signed = signed_by(swarm, signers.values())
    other = replace(person.sign(signed.block), site=B)
    put(swarm, A, replace(signed, signatures=tuple(other if each.site == B else each for each in signed.signatures)))
    expect(verify(swarm.path(A)), f"the signature of {B} has a certificate of 'coordinator@example.org'")


def test_a_fork_by_two_leaders(swarm, verify, signers):
    """Both blocks have a quorum, since one hospital signed both; it is named."""
    for site, leader, two in ((A, A, (A, C)), (B, B, (B, C))):
        put(swarm, site, signed_by(swarm, [signers[s] for s in two], leader, model=of_text(f"of {leader}")))
    for site in (A, B):
        assert verify(swarm.path(site))[0] == 0, "each copy holds by itself"
    said = expect(verify(*map(swarm.path, SITES)), "The ledger forks:", f"{C} signed both")
    assert f"the block of round 6 led by {A}" in said
    assert f"the block of round 6 led by {B}" in said


def test_a_fork_that_a_site_kept_as_evidence(swarm, verify, signers):
    put(swarm, A, signed_by(swarm, [signers[A], signers[C]], A))
    other = signed_by(swarm, [signers[B], signers[C]], B)
    with pytest.raises(ForkError, match="The ledger forks"):
        swarm.open(A).append(other)
    expect(verify(swarm.path(A)), "The ledger forks", f"{C} signed both")


def test_one_sites_copy_replaced_by_an_invented_one(swarm, verify, stranger, tmp_path):
    """A whole ledger with the same run, sites and root in its opening, by somebody who has no key of a site."""
    forgers = {site: stranger.signer(site) for site in SITES}
    fake = Swarm(tmp_path / "fake", forgers, run=swarm.opening.run_id).rounds(5)
    shutil.copy(fake.path(B), swarm.path(B))
    shutil.copy(head_path(fake.path(B)), head_path(swarm.path(B)))

    def change(bodies):
        bodies[0]["opening"]["root"] = swarm.opening.root

    rechain(swarm.path(B), change)
    expect(verify(*map(swarm.path, SITES)), f"{swarm.path(B)}: ", "does not follow the opening of this ledger")

    def again(bodies):
        change(bodies)
        rewrite_blocks(bodies)

    rechain(swarm.path(B), again)
    said = expect(verify(*map(swarm.path, SITES)), f"{swarm.path(B)} was replaced or changed: it tells another story")
    assert "has a certificate of another federation" in said
    assert said.count("agrees with") == 1, "the two others agree"


def test_one_sites_copy_replaced_by_that_of_another_run(swarm, verify, signers, tmp_path):
    other = Swarm(tmp_path / "other", signers, run="run-2").rounds(5)
    for name in (swarm.path(B), head_path(swarm.path(B))):
        shutil.copy(other.path(B).with_name(name.name), name)
    words = (
        f"{swarm.path(B)} is of the run run-2, ",
        "of the run run-1: verify each run by itself, or a copy was replaced",
    )
    expect(verify(*map(swarm.path, SITES)), *words)


def test_one_sites_copy_replaced_by_one_with_a_smaller_quorum(swarm, verify, signers, tmp_path):
    other = Swarm(tmp_path / "other", signers, quorum=1).rounds(5)
    shutil.copy(other.path(B), swarm.path(B))
    shutil.copy(head_path(other.path(B)), head_path(swarm.path(B)))
    expect(
        verify(*map(swarm.path, SITES)), f"{swarm.path(B)} has other sites, another quorum or another federation than"
    )


def test_a_site_that_was_not_in_the_swarm(swarm, verify, signers):
    def change(bodies):
        bodies[0]["opening"]["sites"] = [A, B]
        rewrite_blocks(bodies)

    rechain(swarm.path(A), change)
    expect(verify(swarm.path(A)), f"names {C}, which the swarm does not have")


# ------------------------------------------------------------------------------------------- hostile


@settings(max_examples=50)
@given(st.data())
def test_every_change_of_a_byte_is_found(made, tmp_path_factory, data):
    content = made.path(A).read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("changed") / "ledger.jsonl"
    changed = bytearray(content)
    changed[place] ^= byte
    path.write_bytes(changed)
    shutil.copy(head_path(made.path(A)), head_path(path))
    assert not all(finding.good for finding in audit_swarm([path]))


@settings(max_examples=50)
@given(st.data())
def test_every_change_of_a_block_is_found_though_all_hashes_are_made_anew(made, tmp_path_factory, root, data):
    """Any value of any block or signature, by somebody who has no key: with the root certificate it is found."""
    path = tmp_path_factory.mktemp("changed") / "ledger.jsonl"
    shutil.copy(made.path(A), path)

    def change(bodies):
        signed = data.draw(st.sampled_from(blocks_of(bodies)))["signed"]
        places = list(_leaves(signed))
        holder, key = data.draw(st.sampled_from(places))
        old = holder[key]
        if isinstance(old, int):
            holder[key] = data.draw(st.integers(0, 10**6).filter(lambda value: value != old))
        else:
            place = data.draw(st.integers(0, len(old) - 1))
            letter = data.draw(st.sampled_from("0123456789abcdefABCDEF-_ =/+Z:").filter(lambda c: c != old[place]))
            holder[key] = old[:place] + letter + old[place + 1 :]
        if data.draw(st.booleans()):
            rewrite_blocks(bodies)

    before = json.dumps(_blocks(made.path(A)))
    rechain(path, change)
    found = not all(finding.good for finding in audit_swarm([path], Root.read(root)))
    assert found or json.dumps(_blocks(path)) == before


def _blocks(path):
    return [line["signed"] for line in map(json.loads, path.read_text().splitlines()) if line["kind"] == "block"]


def _leaves(value):
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, dict | list):
            yield from _leaves(inner)
        else:
            yield value, key


@settings(max_examples=30)
@given(st.data())
def test_lines_that_are_moved_repeated_or_lost_are_found_or_tell_the_same(made, tmp_path_factory, root, data):
    """With all hashes made anew. Promises and signatures of the site itself may go: they are for itself only."""
    path = tmp_path_factory.mktemp("changed") / "ledger.jsonl"
    shutil.copy(made.path(A), path)

    def change(bodies):
        one, other = (data.draw(st.integers(0, len(bodies) - 1)) for _ in range(2))
        what = data.draw(st.sampled_from(["moved", "repeated", "lost"]))
        line = bodies[one]
        if what != "repeated":
            del bodies[one]
        if what != "lost":
            bodies.insert(other, line)

    rechain(path, change)
    findings = list(audit_swarm([path, made.path(B)], Root.read(root)))
    assert not all(finding.good for finding in findings) or _blocks(path) == _blocks(made.path(A))


@pytest.mark.parametrize("content", [b"", b"{}\n", b"hello\n", b'{"schema":"fedseg-swarm-1"}\n', b"\xff" * 100])
def test_a_file_that_is_no_ledger_ends_in_a_sentence(tmp_path, verify, content):
    path = tmp_path / "swarm_ledger.jsonl"
    path.write_bytes(content)
    code, said = verify(path, more=())
    assert code == 1
    assert f"WRONG {path}" in said


def test_what_root_and_quorum_are_for(tmp_path, capsys, swarm, root):
    path = tmp_path / "record.jsonl"
    path.write_text("{}\n")
    code, _, said = call(capsys, "audit-log", "verify", path, "--root", root)
    assert code == 2
    assert "--root and --quorum are for the ledger of a swarm" in said
    code, _, said = call(capsys, "audit-log", "verify", swarm.path(A), "--root", path)
    assert code == 1
    assert "cannot be read as the root certificate of a federation" in said
    code, _, said = call(capsys, "audit-log", "verify", swarm.path(A), "--quorum", 0)
    assert code == 1
    assert "--quorum is 0, but must be a whole number of at least 1" in said


def test_a_kit_that_is_not_whole_signs_nothing(kits, tmp_path):
    startup = tmp_path / "startup"
    assert Signer.of_kit(startup) is None
    shutil.copytree(kits / A / "startup", startup)
    for name in ("client.key", "client.crt", "rootCA.pem"):
        content = (startup / name).read_bytes()
        for broken in (None, b"", b"hello", content[:-40]):
            (startup / name).unlink() if broken is None else (startup / name).write_bytes(broken)
            with pytest.raises(SwarmLedgerError, match="The site cannot sign: its kit lacks a readable") as error:
                Signer.of_kit(startup)
            assert str(tmp_path) not in str(error.value)
            (startup / name).write_bytes(content)
    shutil.copy(kits / B / "startup" / "client.key", startup)
    with pytest.raises(SwarmLedgerError, match="does not belong to its certificate"):
        Signer.of_kit(startup)


# ------------------------------------------------------------------------------------------- show


def test_a_ledger_is_shown_with_its_head(swarm, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    code, said, _ = call(capsys, "audit-log", "show", swarm.path(A))
    assert code == 0
    assert f"{A} 5, {B} 15, {C} 25" in said
    assert RULE in said
    assert "5 block(s), signed, lines intact" in said
    assert f"head {swarm.ledgers[A].head}" in said
    swarm.path(A).write_bytes(swarm.path(A).read_bytes().replace(b'"round":1', b'"round":7', 1))
    code, _, said = call(capsys, "audit-log", "show", swarm.path(A))
    assert code == 1
    assert "was changed. Line" in said


def test_a_ledger_of_kits_goes_on_after_a_restart(swarm, signers):
    swarm.rounds(2, first=5)
    again = SwarmLedger(swarm.path(C), swarm.opening, C, signers[C])
    assert [each.block.round for each in again.blocks] == list(range(7))
