"""What tests of a swarm's ledger share: certificates that FLARE made, ledgers of three sites, and rounds on them."""

from __future__ import annotations

import datetime
import hashlib
import json

from nvflare.lighter.utils import Identity, generate_cert, generate_keys, serialize_cert

from fedseg.files.hash_chain_check import ORIGIN, canonical, digest, head_path
from fedseg.provenance.swarm.blocks import Opening, Part, majority
from fedseg.provenance.swarm.leaders import leader_order
from fedseg.provenance.swarm.ledger import LEDGER_FILE, SwarmLedger
from fedseg.provenance.swarm.signatures import Root, Signer

RUN, START = "run-1", "start-1"
RULE = "GeometricMedian"


def of_text(text):
    """A digest."""
    return hashlib.sha256(text.encode()).hexdigest()


class Certifier:
    """A federation's root key, and certificates from it with the functions of FLARE's provisioning."""

    def __init__(self, name="federation", **validity):
        self.name = name
        self.key, public = generate_keys()
        identity = Identity(name)
        self.certificate = generate_cert(identity, identity, self.key, public, ca=True, **validity)
        self.root = Root(self.certificate)
        self.pem = serialize_cert(self.certificate)

    def signer(self, site, root=None, **validity):
        key, public = generate_keys()
        certificate = generate_cert(Identity(site, f"org_{site}"), Identity(self.name), self.key, public, **validity)
        return Signer(key, certificate, root or self.root)


def days(first, last):
    """Validity from ``first`` to ``last`` days from now."""
    today = datetime.datetime.now(datetime.UTC)
    return {
        "not_valid_before": today + datetime.timedelta(days=first),
        "not_valid_after": today + datetime.timedelta(days=last),
    }


class Swarm:
    """The ledgers of sites in a folder."""

    def __init__(self, folder, signers, run=RUN, sites=(), quorum=None):
        self.folder, self.signers = folder, signers
        names = tuple(signers) or sites
        root = next(iter(signers.values())).root.fingerprint if signers else ""
        self.opening = Opening(run, names, quorum or majority(names), root)
        self.ledgers = {site: self.open(site) for site in names}

    def path(self, site):
        return self.folder / site / LEDGER_FILE

    def open(self, site):
        return SwarmLedger(self.path(site), self.opening, site, self.signers.get(site))

    def parts(self, number, sites=None):
        names = sites or self.opening.sites
        return {site: Part(10 * place + 5, of_text(f"{site} {number}")) for place, site in enumerate(names)}

    def leader(self, number):
        site = self.opening.sites[0]
        return self.ledgers[leader_order(self.ledgers[site].head, number, self.opening.sites)[0]]

    def propose(self, number, leader=None, **more):
        leader = leader or self.leader(number)
        return leader.propose(START, number, self.parts(number), of_text(f"model {number}"), RULE, **more)

    def collect(self, proposal, sites=None, attempt=0):
        signatures = [
            self.ledgers[s].sign(proposal, proposal.block.round, attempt) for s in sites or self.opening.sites
        ]
        return proposal.signed_by(signatures)

    def round(self, number, sites=None, hand_to=None):
        """One round: proposed, signed and handed out."""
        signed = self.collect(self.propose(number), sites)
        for site in hand_to or self.opening.sites:
            self.ledgers[site].append(signed)
        return signed

    def rounds(self, count, first=0):
        for number in range(first, first + count):
            self.round(number)
        return self


def rechain(path, change):
    """What somebody does who may write the file: change its lines and compute all hashes of lines anew.

    Args:
        path: of a ledger.
        change: gets the list of lines without the chain's own names, and changes it.
    """
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    times = [line["time"] for line in lines]
    bodies = [{k: v for k, v in line.items() if k not in ("number", "previous", "hash", "time")} for line in lines]
    change(bodies)
    last, out = ORIGIN, []
    for number, body in enumerate(bodies, 1):
        line = {**body, "number": number, "previous": last, "time": times[min(number, len(times)) - 1]}
        last = line["hash"] = digest(line)
        out.append(canonical(line) + b"\n")
    path.write_bytes(b"".join(out))
    head_path(path).write_bytes(canonical({"count": len(out), "hash": last}) + b"\n")


def blocks_of(bodies):
    """The lines that are blocks, of those that ``rechain`` gives."""
    return [body for body in bodies if body["kind"] == "block"]


def rewrite_blocks(bodies, run_digests=None):
    """Let every block name the digest of the block before it, as it now is."""
    opening = bodies[0]["opening"]
    previous = run_digests or digest(opening)
    for body in blocks_of(bodies):
        body["signed"]["block"]["previous"] = previous
        previous = digest(body["signed"]["block"])
