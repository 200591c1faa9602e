"""How a site of a swarm agrees with the others on what a round was: the calls around its copy of the ledger."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fedseg.contract.round_numbers import nth
from fedseg.errors import RefusalError
from fedseg.executors.peers.post import PeerPost
from fedseg.messages.calls.peer_call import PeerAsk, PeerCall
from fedseg.provenance.swarm.blocks import Block, Part
from fedseg.provenance.swarm.errors import SwarmLedgerError
from fedseg.provenance.swarm.leaders import leader_order
from fedseg.provenance.swarm.ledger import SwarmLedger
from fedseg.provenance.swarm.signatures import Signature, SignedBlock

_MOST_CALLS = 1000
_NOT_AGREED = "ledger"


class SiteBlocks:
    """The ledger of the swarm at one site, and the other sites' part in it.

    Attributes:
        ledger: the copy of this site.
    """

    def __init__(self, ledger: SwarmLedger, run: str, post: PeerPost) -> None:
        self.ledger, self.run, self.post = ledger, run, post

    # ------------------------------------------------------------------ what the ledger says

    def order(self, number: int, sites: Collection[str]) -> tuple[str, ...]:
        """The sites of a round in the order in which they lead it, as this site's ledger has it."""
        return tuple(site for site in self._whole_order(number) if site in sites)

    def attempt(self, site: str, number: int) -> int:
        """The place of a site in the order of all sites."""
        return self._whole_order(number).index(site)

    def before(self, number: int) -> Block | None:
        """The block from whose model a round starts; None where there is none."""
        found = (signed.block for signed in reversed(self.ledger.blocks) if signed.block.round < number)
        return next(found, None)

    def block_of(self, number: int, start: str) -> Block | None:
        """The block of a round of a start of the server; None where there is none."""
        last = self.ledger.last
        return last if last is not None and (last.round, last.start) == (number, start) else None

    def _whole_order(self, number: int) -> tuple[str, ...]:
        return leader_order(self.ledger.head, number, self.ledger.opening.sites)

    # ------------------------------------------------------------------ as a leader

    def promised(self, number: int, sites: Collection[str], seconds: float) -> SignedBlock | None:
        """What must be finished before this site proposes a block of its own; it has the promises of a quorum then.

        Args:
            number: of the round.
            sites: other sites that are asked.
            seconds: see ``PeerPost.ask``.

        Raises:
            RefusalError: too few promise (reason ``ledger``).
        """
        attempt = self.attempt(self.ledger.site, number)
        if (number, attempt) == self.ledger.first_ballot:
            return None
        head = self.ledger.head
        own = self._or_refuse(lambda: self.ledger.promise(number, attempt, head))
        known, count, said = [own] if own else [], 1, []
        facts = {"attempt": attempt, "head": head}
        calls = {site: PeerCall(PeerAsk.PROMISE, self.run, number, facts) for site in sites}
        for site, answer in self.post.ask_each(calls, seconds):
            if isinstance(answer, RefusalError):
                said.append(f"{site}: {answer}")
                continue
            count += 1
            if (told := answer.facts.get("signed")) is not None:
                known.append(self._read(told))
        if count < self.ledger.opening.quorum:
            text = f"{count} site(s) promised to sign, but {self.ledger.opening.quorum} must. {'; '.join(sorted(said))}"
            raise RefusalError(_NOT_AGREED, text.strip())
        return max(known, key=lambda each: each[0])[1] if known else None

    def propose(self, start: str, number: int, parts: Mapping[str, Part], model: str, rule: str) -> SignedBlock:
        """The block of a round that this site has merged, with its own signature."""
        attempt = self.attempt(self.ledger.site, number)
        return self._or_refuse(lambda: self.ledger.propose(start, number, parts, model, rule, attempt))

    def signed(self, proposal: SignedBlock, signatures: Sequence[Any]) -> SignedBlock:
        """A proposal with the signatures that hold; it stands in this site's ledger then.

        Raises:
            RefusalError: too few signed (reason ``ledger``).
        """
        held = []
        for content in signatures:
            try:
                signature = Signature.from_json(content)
                self.ledger.check_signature(proposal.block, signature)
                held.append(signature)
            except SwarmLedgerError:
                continue
        block = proposal.signed_by(held)
        self._or_refuse(lambda: self.ledger.append(block))
        return block

    def tell(self, block: SignedBlock, sites: Collection[str], seconds: float) -> None:
        """Give a block to other sites; who does not get it catches up later."""
        facts = {"block": block.to_json()}
        calls = {site: PeerCall(PeerAsk.BLOCK, self.run, block.block.round, facts) for site in sites}
        for _ in self.post.ask_each(calls, seconds):
            pass

    # ------------------------------------------------------------------ as one of the others

    def answer(self, call: PeerCall) -> dict[str, Any]:
        """Answer the calls ``promise``, ``block`` and ``ledger``."""
        facts = call.facts
        if call.ask is PeerAsk.LEDGER:
            after = facts.get("after")
            return {"ledger": self.ledger.export(after if type(after) is int and after >= 0 else 0)}
        if call.ask is PeerAsk.BLOCK:
            block = self._or_refuse(lambda: SignedBlock.from_json(facts.get("block")))
            return {"new": self._or_refuse(lambda: self.ledger.append(block))}
        attempt = facts.get("attempt")
        if type(attempt) is not int:
            raise RefusalError("data", "The call does not say whose turn it is.")
        found = self._or_refuse(lambda: self.ledger.promise(call.round, attempt, str(facts.get("head"))))
        return {"signed": None if found is None else {"ballot": list(found[0]), "block": found[1].to_json()}}

    def sign(self, content: Any, number: int, attempt: Any, model: str, part: Part | None) -> dict[str, Any] | None:
        """This site's signature under a proposal; None where it has no part in it.

        Args:
            content: of the proposal.
            number: of the round.
            attempt: of who asks.
            model: digest of the model that came with the proposal.
            part: what this site gave; None where it gave nothing.

        Raises:
            RefusalError: the proposal is not what this site knows (reason ``ledger``).
        """
        proposal = self._or_refuse(lambda: SignedBlock.from_json(content))
        own = proposal.block.parts.get(self.ledger.site)
        if proposal.block.model != model:
            raise RefusalError(_NOT_AGREED, "The proposed block is about another model than the one that came with it.")
        if own is None:
            return None
        if own != part:
            text = f"The proposed block of round {nth(number)} does not say what this site gave."
            raise RefusalError(_NOT_AGREED, text)
        if type(attempt) is not int:
            raise RefusalError("data", "The call does not say whose turn it is.")
        return self._or_refuse(lambda: self.ledger.sign(proposal, number, attempt)).to_json()

    # ------------------------------------------------------------------ catching up

    def knows(self, head: str) -> bool:
        """Whether a block, or the opening, is in this site's ledger."""
        digests = (signed.block.digest for signed in self.ledger.blocks)
        return head == self.ledger.opening.digest or head in digests

    def catch_up(self, site: str, seconds: float) -> None:
        """Take the blocks of another site that are missing here.

        Raises:
            RefusalError: it gives none, or they do not follow (reason ``ledger``).
        """
        for _ in range(_MOST_CALLS):
            call = PeerCall(PeerAsk.LEDGER, self.run, -1, {"after": len(self.ledger.blocks)})
            told = self.post.ask(site, call, seconds).facts.get("ledger")
            if not self._or_refuse(lambda told=told: self.ledger.catch_up(told)):
                return

    def _read(self, told: Any) -> tuple[tuple[int, int], SignedBlock]:
        try:
            first, second = told["ballot"]
            return (int(first), int(second)), SignedBlock.from_json(told["block"])
        except (KeyError, TypeError, ValueError, SwarmLedgerError):
            raise RefusalError("data", "What a site signed before cannot be read.") from None

    @staticmethod
    def _or_refuse(ask: Any) -> Any:
        try:
            return ask()
        except SwarmLedgerError as error:
            raise RefusalError(_NOT_AGREED, str(error)) from None
