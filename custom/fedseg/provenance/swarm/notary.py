"""How the sites of a swarm come to one block of a round: both ends of their messages, which are plain JSON values.

Who carries the messages, and tells who sent them, is not known here. ``Notary.certify`` is for the site that led a
round, ``Notary.answer`` for all others; ``ledger`` says by which rules they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedseg import allowed
from fedseg.contract.round_numbers import nth
from fedseg.errors import FedsegError
from fedseg.provenance.swarm.blocks import Block, Part
from fedseg.provenance.swarm.contents import Ballot
from fedseg.provenance.swarm.errors import ForkError, SwarmLedgerError
from fedseg.provenance.swarm.leaders import leader_order
from fedseg.provenance.swarm.ledger import SwarmLedger
from fedseg.provenance.swarm.signatures import Signature, SignedBlock

Facts = Mapping[str, Any]
Ask = Callable[[Mapping[str, Facts]], Iterable[tuple[str, "Facts | FedsegError"]]]
"""Sends a message to each site, and gives each answer, or why there is none, as it comes."""
_PROMISE, _SIGN, _GIVE, _TAKE = "promise", "sign", "give", "take"


@dataclass
class Certified:
    """How a round came into the ledger.

    Attributes:
        signed: its block; None where there is none.
        missing: why a site did not promise, sign or take, by name; under this site's own name, why there is no block.
    """

    signed: SignedBlock | None = None
    missing: dict[str, str] = field(default_factory=dict)


class Notary:
    """A site, its copy of the ledger, and its way to the others.

    Attributes:
        check: called with a block before this site signs it; raises a ``FedsegError`` where this site's part in it, or
            the digest of the model that it has, is another one.
    """

    def __init__(self, ledger: SwarmLedger, ask: Ask, check: Callable[[Block], None]) -> None:
        """Prepare.

        Args:
            ledger: of this site.
            ask: to other sites.
            check: see above.
        """
        self.ledger, self.check, self._ask = ledger, check, ask

    # ------------------------------------------------------------------ this site led

    def certify(self, start: str, round_number: int, parts: Mapping[str, Part], model: str, rule: str) -> Certified:
        """Bring a round that this site merged into the ledger of every site that can be reached.

        A proposal of another leader that may have its signatures already is finished first; if it is of this round, it
        is the block of the round.

        Args:
            start, round_number, parts, model, rule: see ``SwarmLedger.propose``.

        Raises:
            ForkError: a site has another accepted block in the place of one that is held here.
        """
        told = Certified()
        try:
            # Each pass adds a block, or takes those of another site; without either it ends.
            while self._block_of(start, round_number) is None:
                before = self.ledger.head
                ballot, proposal = self._proposal(start, round_number, parts, model, rule, told)
                if proposal is not None:
                    self._collect(proposal, ballot, told)
                if self.ledger.head == before:
                    raise SwarmLedgerError("The ledgers of the sites do not come together.")
            told.signed = self._block_of(start, round_number)
        except ForkError:
            raise
        except SwarmLedgerError as error:
            told.missing[self.ledger.site] = f"Round {nth(round_number)} has no block in the ledger: {error}"
        return told

    def _block_of(self, start: str, round_number: int) -> SignedBlock | None:
        place = start, round_number
        return next((each for each in self.ledger.blocks if (each.block.start, each.block.round) == place), None)

    def _proposal(
        self, start: str, round_number: int, parts: Mapping[str, Part], model: str, rule: str, told: Certified
    ) -> tuple[Ballot, SignedBlock | None]:
        """What is to be signed now, new or found; None where this ledger caught up instead."""
        ledger, head = self.ledger, self.ledger.head
        attempt = leader_order(head, round_number, ledger.opening.sites).index(ledger.site)
        ballot, pending = (round_number, attempt), ledger.pending
        if pending and pending[0] == ballot:
            # This site's own, from before a restart.
            return ballot, pending[1]
        if ballot != ledger.first_ballot:
            found = self._promised(ballot, told)
            if ledger.head != head:
                return ballot, None
            if found is not None:
                return ballot, found
        return ballot, ledger.propose(start, round_number, parts, model, rule, attempt)

    def _promised(self, ballot: Ballot, told: Certified) -> SignedBlock | None:
        """The proposal of the greatest ballot among the promises of a quorum; None if nobody signed one.

        Raises:
            SwarmLedgerError: too few sites promise.
        """
        ledger = self.ledger
        others = [site for site in ledger.opening.sites if site != ledger.site]
        message = {"what": _PROMISE, "round": ballot[0], "attempt": ballot[1], "previous": ledger.head}
        own, head = ledger.promise(*ballot, ledger.head), ledger.head
        answers = {ledger.site: own}
        for site, answer in self._in_step(others, message, told):
            if ledger.head != head:
                return None
            signed = answer.get("signed")
            answers[site] = None
            if signed is not None:
                place = (_count(signed, "round"), _count(signed, "attempt"))
                answers[site] = place, SignedBlock.from_json(signed.get("block"))
        if ledger.head != head:
            return None
        if len(answers) < ledger.opening.quorum:
            text = f"{len(answers)} site(s) promise, but the quorum is {ledger.opening.quorum}."
            raise SwarmLedgerError(text)
        found = [answer for answer in answers.values() if answer is not None]
        return max(found, key=lambda answer: answer[0])[1] if found else None

    def _collect(self, proposal: SignedBlock, ballot: Ballot, told: Certified) -> None:
        """Collect signatures, take the block, and hand it out.

        Raises:
            SwarmLedgerError: too few sites sign.
        """
        site, block = self.ledger.site, proposal.block
        message = {"what": _SIGN, "round": ballot[0], "attempt": ballot[1], "signed": proposal.to_json()}
        signatures = [self.ledger.sign(proposal, *ballot)] if site in block.signers - set(proposal.sites) else []
        others = sorted(block.signers - {site, *proposal.sites})
        for other, answer in self._in_step(others, message, told):
            try:
                signature = Signature.from_json(answer.get("signature"))
                if signature.site != other:
                    raise SwarmLedgerError(f"{other} answers with a signature of {signature.site}.")
                # One that does not hold would spoil those of all others.
                self.ledger.check_signature(block, signature)
                signatures.append(signature)
            except SwarmLedgerError as error:
                told.missing[other] = f"does not sign: {error}"
        self.ledger.append(proposal.signed_by(signatures))
        self._hand_out(told)

    def _hand_out(self, told: Certified) -> None:
        """Give the last block to all other sites, and to those that lack others these, too."""
        ledger = self.ledger
        message = {"what": _TAKE, "blocks": ledger.export(after=len(ledger.blocks) - 1)}
        others = [site for site in ledger.opening.sites if site != ledger.site]
        for site, answer in self._ask(dict.fromkeys(others, message)):
            try:
                if isinstance(answer, FedsegError):
                    raise answer
                if answer.get("head") != ledger.head:
                    self._bring_into_step(site, answer)
            except ForkError:
                raise
            except FedsegError as error:
                told.missing.setdefault(site, f"does not take the block: {error}")

    def _in_step(self, sites: Sequence[str], message: Facts, told: Certified) -> Iterator[tuple[str, Facts]]:
        """The answers of sites whose ledgers end as this one does; one that does not is brought into step, once."""
        behind = []
        for site, answer in self._ask(dict.fromkeys(sites, message)):
            if isinstance(answer, FedsegError):
                told.missing[site] = str(answer)
            elif "head" in answer:
                behind.append((site, answer))
            else:
                yield site, answer
        for site, answer in behind:
            head = self.ledger.head
            try:
                self._bring_into_step(site, answer)
                if self.ledger.head != head:
                    # What was asked is about a place of the ledger that has been taken meanwhile.
                    return
                again = self._one(site, message)
                if "head" in again:
                    raise SwarmLedgerError(f"The ledger of {site} does not come into step.")
                yield site, again
            except ForkError:
                raise
            except FedsegError as error:
                told.missing[site] = str(error)

    def _bring_into_step(self, site: str, answer: Facts) -> None:
        """Give a site the blocks that it lacks, or take those that are missing here."""
        ledger, ours = self.ledger, self._digests()
        count = _count(answer, "count")
        while count < len(ledger.blocks) and answer.get("head") == ours[count]:
            answer = self._one(site, {"what": _TAKE, "blocks": ledger.export(after=count)})
            if _count(answer, "count") <= count:
                raise SwarmLedgerError(f"{site} does not take the blocks that it lacks.")
            count = _count(answer, "count")
        while answer.get("head") not in ours:
            here = len(ledger.blocks)
            ledger.catch_up(self._one(site, {"what": _GIVE, "after": here}).get("blocks"))
            if len(ledger.blocks) == here:
                # Nothing follows: its ledger tells another story from somewhere before, or is none of this swarm.
                ledger.catch_up(self._one(site, {"what": _GIVE, "after": 0}).get("blocks"))
                raise SwarmLedgerError(f"The ledger of {site} does not go on from the one of {ledger.site}.")
            ours = self._digests()

    def _one(self, site: str, message: Facts) -> Facts:
        for _, answer in self._ask({site: message}):
            if isinstance(answer, FedsegError):
                raise answer
            return answer
        raise SwarmLedgerError(f"{site} does not answer.")

    # ------------------------------------------------------------------ another site asks

    def answer(self, message: Facts) -> dict[str, Any]:
        """Do what another site asks.

        Raises:
            FedsegError: it cannot be done; the text names no file.
        """
        ledger, what = self.ledger, message.get("what")
        if what == _PROMISE:
            if message.get("previous") != ledger.head:
                return self._place()
            ballot = _count(message, "round"), _count(message, "attempt")
            found = ledger.promise(*ballot, ledger.head)
            if found is None:
                return {"signed": None}
            return {"signed": {"round": found[0][0], "attempt": found[0][1], "block": found[1].to_json()}}
        if what == _SIGN:
            proposal = SignedBlock.from_json(message.get("signed"))
            if proposal.block.previous != ledger.head:
                return self._place()
            self.check(proposal.block)
            signature = ledger.sign(proposal, _count(message, "round"), _count(message, "attempt"))
            return {"signature": signature.to_json()}
        if what == _GIVE:
            return {"blocks": ledger.export(_count(message, "after"))}
        if what == _TAKE:
            if self._reaches(message.get("blocks")):
                ledger.catch_up(message.get("blocks"))
            return self._place()
        raise SwarmLedgerError("The message is none of those of a swarm's ledger.")

    def _reaches(self, exported: Any) -> bool:
        """Whether the first of some blocks follows one that is here; else others must come before."""
        try:
            first = exported["blocks"][0]["block"]["previous"]
        except (KeyError, IndexError, TypeError):
            return True
        return first in self._digests()

    def _digests(self) -> list[str]:
        return [self.ledger.opening.digest, *(each.block.digest for each in self.ledger.blocks)]

    def _place(self) -> dict[str, Any]:
        return {"head": self.ledger.head, "count": len(self.ledger.blocks)}


def _count(message: Any, name: str) -> int:
    value = message.get(name) if isinstance(message, Mapping) else None
    if not allowed.is_count(value):
        raise SwarmLedgerError(f"A message between ledgers has no {name}.")
    return value
