"""A site's copy of the ledger of a swarm: it signs proposals, takes blocks, and catches up with a peer.

Every function returns once what it did is on the disk; a process that is killed at any point leaves a ledger that can
be read and goes on. So that a leader that dies leaves no two blocks of one round, sites agree on a block by the rules
of Paxos (Lamport, "The part-time parliament", ACM TOCS 1998), where a ballot is a round and an attempt, the place of
the leader in the ``leader_order`` of all sites:

1. A site that takes over asks the present sites for a ``promise``. Each answers with what it signed already, and from
   then on signs nothing of an earlier ballot.
2. With answers of a quorum it finishes the proposal of the greatest ballot among them, whose digest, leader and model
   stay as they are; only if there is none it makes its own. The first leader of the round after the last block needs no
   promise.
3. Sites ``sign`` the proposal. With a quorum of signatures it is a block, which every site can ``append``.

A quorum of more than half of the sites makes this safe against sites that die or are cut off. A site that lies, and
signs two blocks of one round, can make a fork; it is found wherever the two meet, and named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from fedseg import allowed
from fedseg.contract.round_numbers import nth
from fedseg.files.hash_chain import ChainWriter, HashChain
from fedseg.files.hash_chain_check import ChainError, canonical
from fedseg.provenance.swarm.blocks import Block, Opening, Part, now
from fedseg.provenance.swarm.contents import BLOCK, FORK, OPENED, PROMISED, SIGNED, Ballot, Contents
from fedseg.provenance.swarm.errors import SwarmLedgerError
from fedseg.provenance.swarm.rules import check_place, check_quorum, check_signatures, fork, named
from fedseg.provenance.swarm.signatures import Signature, SignedBlock, Signer

LEDGER_FILE = "swarm_ledger.jsonl"
MOST_EXPORTED = 2**19
"""Bytes of blocks, with their signatures and certificates, that are given to a peer at once."""
CLOCKS_APART = timedelta(hours=1)
"""A site signs no block whose time is further from its own clock."""


class SwarmLedger:
    """The copy of one site. Threads and processes wait for each other.

    Attributes:
        opening: what all sites of the swarm know.
        site: whose copy it is.
    """

    def __init__(self, path: Path, opening: Opening, site: str, signer: Signer | None = None) -> None:
        """Open the ledger, or make it.

        Args:
            path: of the file.
            opening: with the fingerprint of the federation's root certificate if there is a signer, and without one if
                there is none.
            site: whose copy it is.
            signer: of the site; None in a simulation.

        Raises:
            SwarmLedgerError: the file is another ledger, was changed, or cannot be read or written; or the signer is
                not that of the site.
        """
        _check_signer(opening, site, signer)
        self.opening, self.site = opening, site
        self._signer, self._root = signer, signer.root if signer else None
        self._chain, self._contents = HashChain(path), Contents()
        with self._open():
            for number, signed in enumerate(self._contents.blocks):
                before = self._contents.blocks[number - 1].block if number else None
                self._check(before, signed)

    @property
    def head(self) -> str:
        """Digest of the last block, or of the opening: what ``leader_order`` takes."""
        return self._contents.head

    @property
    def blocks(self) -> tuple[SignedBlock, ...]:
        """All blocks, oldest first, as of the last call."""
        return tuple(self._contents.blocks)

    @property
    def last(self) -> Block | None:
        """The last block; None before the first."""
        return self._contents.blocks[-1].block if self._contents.blocks else None

    @property
    def first_ballot(self) -> Ballot:
        """Round and attempt with which a block can be proposed without promises: nothing is before it."""
        return (self.last.round + 1 if self.last else 0), 0

    @property
    def pending(self) -> tuple[Ballot, SignedBlock] | None:
        """What this site signed for the place after the last block, with the ballot; None if nothing."""
        return self._contents.signed

    def propose(
        self, start: str, round_number: int, parts: Mapping[str, Part], model: str, rule: str, attempt: int = 0
    ) -> SignedBlock:
        """Make the block of a round that this site led, and sign it.

        Args:
            start: id of the server's start that asked for the round.
            round_number: from 0, greater than that of the last block of the same start.
            parts: what each participant had.
            model: digest of the merged model.
            rule: of aggregation.
            attempt: this site's place in the order of leaders of the round.

        Raises:
            SwarmLedgerError: this site promised or signed a later ballot, made no promise where one is needed, or the
                block cannot follow the last one.
            ConfigurationError: a value is not allowed.
        """
        with self._open() as writer:
            self._check_turn(round_number, attempt)
            time = max(now(), self.last.time) if self.last else now()
            block = Block(self.opening.run_id, start, round_number, self.site, parts, model, rule, time, self.head)
            proposal = SignedBlock(block, (self._signature(block),))
            self._sign(writer, proposal, attempt, new=True)
        return proposal

    def promise(self, round_number: int, attempt: int, previous: str) -> tuple[Ballot, SignedBlock] | None:
        """Sign nothing of an earlier ballot any more, for the block after the last one.

        Args:
            round_number, attempt: the ballot of the site that takes over.
            previous: the head of its ledger.

        Returns:
            What this site signed last for the same place, with its ballot; None if nothing.

        Raises:
            SwarmLedgerError: a later ballot was promised, or one of the two ledgers must catch up first.
        """
        with self._open() as writer:
            if previous != self.head:
                raise SwarmLedgerError(self._behind(previous))
            self._check_ballot(round_number, attempt)
            if self._contents.promised != (round_number, attempt):
                self._write(writer, {"kind": PROMISED, "round": round_number, "attempt": attempt})
            return self._contents.signed

    def sign(self, proposal: SignedBlock, round_number: int, attempt: int) -> Signature:
        """Sign what a leader proposes, once this site has the merged model and found its own part in the block right.

        Args:
            proposal: with the signature of the leader that made it.
            round_number, attempt: the ballot of who asks; a leader that finishes another one's proposal asks under its
                own.

        Raises:
            SwarmLedgerError: the block cannot follow the last one, its leader did not sign it, its time is far from
                this site's clock, or a later ballot was promised or another block signed in this one.
        """
        with self._open() as writer:
            if self.site not in proposal.block.signers:
                raise SwarmLedgerError(f"The site {self.site} has no part in {named(proposal.block)}.")
            self._check_clock(proposal.block)
            check_quorum(self.opening, proposal, quorum=1)
            self._check(self.last, proposal, quorum=1)
            self._sign(writer, proposal, attempt, round_number=round_number)
            return self._signature(proposal.block)

    def check_signature(self, block: Block, signature: Signature) -> None:
        """Check one signature of a block.

        Raises:
            SignatureError: it does not hold.
        """
        check_signatures(self.opening, SignedBlock(block, (signature,)), self._root)

    def append(self, signed: SignedBlock) -> bool:
        """Take a block that has its signatures.

        Returns:
            False if it is here already.

        Raises:
            ForkError: another block stands in its place; the evidence is kept.
            SwarmLedgerError: it cannot follow the last block, a signature does not hold, or there are too few.
        """
        return self.take([signed]) == 1

    def export(self, after: int = 0) -> dict[str, Any]:
        """What a peer needs to catch up, as JSON values.

        Args:
            after: how many blocks it has.

        Returns:
            The next blocks, as many as a message should hold; at least one, if there is one.
        """
        certificates: dict[str, int] = {}
        blocks: list[dict[str, Any]] = []
        size = 0
        for signed in self._contents.blocks[after:]:
            size += len(canonical(signed.to_json()))
            if blocks and size > MOST_EXPORTED:
                break
            content = signed.to_json()
            for signature in content["signatures"]:
                place = certificates.setdefault(signature["certificate"], len(certificates))
                signature["certificate"] = place
            blocks.append(content)
        return {"certificates": list(certificates), "blocks": blocks}

    def catch_up(self, exported: Any) -> int:
        """Take the blocks of a peer that are missing here; all are verified before the first is taken.

        Args:
            exported: what the peer's ``export`` gave.

        Returns:
            How many blocks are new.

        Raises:
            ForkError, SwarmLedgerError: see ``append``; nothing is taken.
        """
        return self.take(_imported(exported))

    def take(self, blocks: Sequence[SignedBlock]) -> int:
        """As ``append`` for several blocks in their order, of which all or none are taken."""
        with self._open() as writer:
            known = {each.block.previous: each for each in self._contents.blocks}
            new: list[SignedBlock] = []
            for signed in blocks:
                here = known.get(signed.block.previous)
                if here and here.block.digest == signed.block.digest:
                    continue
                if here:
                    self._refuse_fork(writer, here, signed)
                self._check(new[-1].block if new else self.last, signed)
                new.append(signed)
                known[signed.block.previous] = signed
            for signed in new:
                for line in self._contents.lines_of(BLOCK, signed):
                    self._write(writer, line)
        return len(new)

    def _refuse_fork(self, writer: ChainWriter, here: SignedBlock, other: SignedBlock) -> None:
        place = [each.block.digest for each in self._contents.blocks].index(here.block.digest)
        self._check(self._contents.blocks[place - 1].block if place else None, other)
        if other.block.digest not in [each.block.digest for each in self._contents.forks]:
            for line in self._contents.lines_of(FORK, other):
                self._write(writer, line)
        raise fork(here, other)

    def _sign(
        self,
        writer: ChainWriter,
        proposal: SignedBlock,
        attempt: int,
        *,
        round_number: int | None = None,
        new: bool = False,
    ) -> None:
        """Note that this site signs, or refuse to."""
        ballot = (proposal.block.round if round_number is None else round_number, attempt)
        self._check_ballot(*ballot)
        if new:
            self._check(self.last, proposal, quorum=1)
        before = self._contents.signed
        if before and before[0] == ballot:
            if before[1].block.digest != proposal.block.digest:
                what = named(before[1].block)
                raise SwarmLedgerError(f"The site {self.site} signed {what} already, and signs no other in its place.")
            return
        for line in self._contents.lines_of(SIGNED, proposal, round=ballot[0], attempt=ballot[1]):
            self._write(writer, line)

    def _signature(self, block: Block) -> Signature:
        return self._signer.sign(block) if self._signer else Signature(self.site)

    def _check(self, before: Block | None, signed: SignedBlock, quorum: int | None = None) -> None:
        check_place(self.opening, before, signed.block)
        check_quorum(self.opening, signed, quorum)
        check_signatures(self.opening, signed, self._root)

    def _check_turn(self, round_number: int, attempt: int) -> None:
        if (round_number, attempt) not in (self.first_ballot, self._contents.promised):
            raise SwarmLedgerError(
                f"The site {self.site} cannot lead attempt {attempt} of round {nth(round_number)} before it asked the "
                "sites, itself too, for their promises: another proposal may have its signatures already."
            )

    def _check_ballot(self, round_number: int, attempt: int) -> None:
        allowed.whole("round", round_number, least=0)
        allowed.whole("attempt", attempt, least=0)
        promised = self._contents.promised
        if promised and (round_number, attempt) < promised:
            raise SwarmLedgerError(
                f"The site {self.site} promised attempt {promised[1]} of round {nth(promised[0])}, and takes part in "
                f"no earlier one, such as attempt {attempt} of round {nth(round_number)}."
            )

    def _check_clock(self, block: Block) -> None:
        here = now()
        apart = abs(datetime.fromisoformat(here) - block.moment)
        if apart > CLOCKS_APART:
            raise SwarmLedgerError(
                f"{named(block)} is of {block.time}, but the clock of the site {self.site} says {here}. "
                "Set both clocks."
            )

    def _behind(self, previous: str) -> str:
        known = previous == self.opening.digest or any(previous == each.block.digest for each in self._contents.blocks)
        who = "the site that asks" if known else f"the site {self.site}"
        return f"The two ledgers do not end in the same block; {who} must catch up first."

    def _write(self, writer: ChainWriter, line: Mapping[str, Any]) -> None:
        self._contents.take([writer.append(line)])

    @contextmanager
    def _open(self) -> Iterator[ChainWriter]:
        """Hold the file alone, with its contents as they are now."""
        try:
            with self._chain.exclusive() as writer:
                known = self._contents
                if known.lines and (
                    len(writer.entries) < known.lines or writer.entries[known.lines - 1]["hash"] != known.last
                ):
                    raise SwarmLedgerError("The swarm's ledger of this site was replaced while the run went on.")
                known.take(writer.entries[known.lines :])
                if not known.lines:
                    self._write(writer, {"kind": OPENED, "site": self.site, "opening": self.opening.to_json()})
                if (known.site, known.opening) != (self.site, self.opening):
                    raise SwarmLedgerError("The swarm's ledger at hand is of another site, run or federation.")
                yield writer
        except ChainError as error:
            raise SwarmLedgerError(f"The swarm's ledger of this site is not what was written. {error}") from None
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise SwarmLedgerError(f"The swarm's ledger of this site cannot be read or written ({why}).") from None


def _check_signer(opening: Opening, site: str, signer: Signer | None) -> None:
    if site not in opening.sites:
        raise SwarmLedgerError(f"The site {site} is none of the swarm: these are {', '.join(opening.sites)}.")
    if signer is None and opening.root:
        raise SwarmLedgerError(f"The sites of this swarm sign, but the site {site} has no kit with a key.")
    if signer and signer.site != site:
        raise SwarmLedgerError(f"The certificate of this kit is of {signer.site!r}, the site is {site}.")
    if signer and signer.root.fingerprint != opening.root:
        raise SwarmLedgerError(f"The kit of the site {site} is of another federation than this swarm.")


def _imported(exported: Any) -> list[SignedBlock]:
    try:
        certificates = [str(each) for each in exported["certificates"]]
        blocks = []
        for content in exported["blocks"]:
            listed = [{**each, "certificate": certificates[each["certificate"]]} for each in content["signatures"]]
            blocks.append(SignedBlock.from_json({**content, "signatures": listed}))
        return blocks
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise SwarmLedgerError("What a peer sent is no part of a swarm's ledger.") from None
