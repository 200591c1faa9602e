"""What a site answers to the calls of other sites: its update to whoever leads, and the model to whoever lacks it."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from fedseg.contract.report import parse_report
from fedseg.contract.round_numbers import nth
from fedseg.errors import RefusalError
from fedseg.executors.peers.blocks import SiteBlocks
from fedseg.executors.peers.held_models import PeerModels, another_model
from fedseg.executors.peers.post import SilenceError
from fedseg.files.digest import model_digest
from fedseg.messages.calls.peer_call import PeerAsk, PeerCall
from fedseg.networks.weights import Arrays
from fedseg.provenance.swarm.blocks import Part
from fedseg.site.peer_files import HeldUpdate, PeerFiles

WAITING, MERGING, FAILED, MERGED, GONE = "waiting", "merging", "failed", "merged", "gone"
# A leader that has been at it for this part of its time is given up by a site that somebody else asks: their clocks do
# not start at the same moment.
_GIVEN_UP = 0.5
# Of the time of a leader: how long a site waits when it asks whether another one works. Several are asked at once.
_STATE_SHARE = 1 / 24


class PeerAnswers(PeerModels):
    """Answers calls in FLARE's threads; what it needs lies in the site's files.

    The sites of a round have an order. A site gives its update to the first of it, and to a later one only when each
    of those before it does not answer this site itself, or says that it cannot merge. So no other site can put itself
    in the place of a leader that works. The server can: its task says who is in the round, and it passes the calls on
    and can drop them. A site takes a merged model only from whom it last gave its update to.
    """

    def __init__(self, blocks: SiteBlocks, files: PeerFiles, start: Arrays) -> None:
        """Prepare.

        Args:
            blocks: the ledger of the swarm at this site.
            files: of the run.
            start: weights from which the run starts, in the network's order.
        """
        super().__init__(blocks.ledger.site, blocks.run, blocks.post, files, start)
        self.blocks = blocks
        self._lock = threading.Lock()
        self._given: dict[int, tuple[str, str]] = {}
        self._merging: tuple[int, float] | None = None
        self._failed: int | None = None

    # ------------------------------------------------------------------ this site as a leader

    def begins(self, number: int) -> None:
        """This site begins to merge a round."""
        self._merging, self._failed = (number, time.monotonic()), None

    def ends(self, number: int, merged: bool) -> None:
        """This site has ended it."""
        self._merging, self._failed = None, None if merged else number

    # ------------------------------------------------------------------ models

    def fetch(self, site: str, digest: str, seconds: float, number: int | None = None) -> Arrays:
        """Take the model with a digest from another site, and keep it.

        Args:
            site: which has it.
            digest: of the weights.
            seconds: without progress after which the site counts as silent.
            number: the round under which it is kept; None: that which the site tells.

        Raises:
            RefusalError: the site does not give it, or gives another one.
        """
        call = PeerCall(PeerAsk.MODEL, self.run, -1 if number is None else number, {"digest": digest})
        weights, answer = self.asked(site, call, digest, seconds)
        facts, kept = answer.facts.get("facts"), answer.facts.get("round") if number is None else number
        if type(kept) is not int or not isinstance(facts, dict):
            raise another_model(site)
        self.files.save_model(kept, weights, facts)
        return weights

    # ------------------------------------------------------------------ calls

    def answer(self, caller: str, call: PeerCall) -> PeerCall:
        """Do what another site asks.

        Raises:
            RefusalError: it is not this site's to do; the text names no file.
        """
        if call.run != self.run:
            raise RefusalError("state", "The site is not in this run.")
        kinds = {PeerAsk.STATE: self._state, PeerAsk.UPDATE: self._update, PeerAsk.TAKE: self._take}
        kinds |= {PeerAsk.MODEL: self._model}
        if call.ask is PeerAsk.PROMISE and self._given.get(call.round, ("", ""))[0] != caller:
            raise RefusalError("state", f"This site has not given its update of round {nth(call.round)} to {caller}.")
        facts, arrays = kinds[call.ask](caller, call) if call.ask in kinds else (self.blocks.answer(call), {})
        return replace(call, facts=facts, arrays=arrays)

    def state(self, number: int) -> dict[str, object]:
        """How far this site is with merging a round."""
        try:
            held = self.files.update_of(number)
        except RefusalError:
            return {"state": GONE}
        if (block := self.blocks.block_of(number, held.start)) is not None:
            return {"state": MERGED, "digest": block.model}
        merging = self._merging
        if merging is not None and merging[0] == number:
            return {"state": MERGING, "seconds": time.monotonic() - merging[1]}
        return {"state": FAILED if self._failed == number else WAITING}

    def _state(self, caller: str, call: PeerCall) -> tuple[dict[str, object], Arrays]:
        return self.state(call.round), {}

    def _update(self, caller: str, call: PeerCall) -> tuple[dict[str, object], Arrays]:
        self.check()
        held = self.files.update_of(call.round)
        if caller not in held.sites:
            raise RefusalError("state", f"{caller} has no part in round {nth(call.round)}.")
        if not self.blocks.knows(str(call.facts.get("head"))):
            self.blocks.catch_up(caller, held.take_over * _STATE_SHARE)
        head = {"head": self.blocks.ledger.head}
        if (at := self._merged_at(caller, held)) is not None:
            return {**at, **head}, {}
        token = secrets.token_hex(16)
        with self._lock:
            self._given = {call.round: (caller, token)}
        self.handed(call.round, caller, "update")
        told = {"state": WAITING, "start": held.start, "meta": dict(held.meta), "token": token}
        return {**told, **head}, held.arrays

    def _merged_at(self, caller: str, held: HeldUpdate) -> dict[str, object] | None:
        """Where the merged model of the round is already; None where nowhere, and the caller's turn has come.

        Raises:
            RefusalError: somebody before the caller leads, and works (reason ``state``).
        """
        own = self.state(held.round)
        if own["state"] == MERGED:
            return {**own, "at": self.site}
        order = self.blocks.order(held.round, held.sites)
        before = order[: order.index(caller)] if caller in order else order
        states = {**self._states_of([site for site in before if site != self.site], held), self.site: own}
        for earlier in before:
            found = states[earlier]
            if found["state"] == MERGED:
                return {**found, "at": earlier}
            seconds = found.get("seconds", 0.0)
            slow = isinstance(seconds, float) and seconds >= _GIVEN_UP * held.take_over
            if found["state"] == WAITING or (found["state"] == MERGING and not slow):
                raise RefusalError("state", f"{earlier} leads round {nth(held.round)}, and answers this site.")
        return None

    def _states_of(self, sites: Sequence[str], held: HeldUpdate) -> dict[str, dict[str, object]]:
        """How far other sites are with merging a round; who does not answer is gone."""
        calls = {site: PeerCall(PeerAsk.STATE, self.run, held.round) for site in sites}
        seconds = max(1.0, held.take_over * _STATE_SHARE)
        found: dict[str, dict[str, object]] = {}
        for site, answer in self.post.ask_each(calls, seconds):
            silent = isinstance(answer, SilenceError)
            found[site] = {"state": GONE if silent else FAILED} if isinstance(answer, Exception) else dict(answer.facts)
        return found

    def _take(self, caller: str, call: PeerCall) -> tuple[dict[str, object], Arrays]:
        facts, digest = dict(call.facts), model_digest(call.arrays)
        token = str(facts.pop("token", ""))
        with self._lock:
            leader, given = self._given.get(call.round, ("", ""))
            if leader != caller or not hmac.compare_digest(given.encode(), token.encode()):
                text = f"This site has not given its update of round {nth(call.round)} to {caller}, or to others since."
                raise RefusalError("state", text)
            held = self.files.update_of(call.round)
            attempt, proposal, block = (facts.pop(name, None) for name in ("attempt", "proposal", "block"))
            if block is not None:
                self.blocks.answer(replace(call, ask=PeerAsk.BLOCK, facts={"block": block}))
            done = self.blocks.block_of(call.round, held.start)
            if done is not None and done.model != digest:
                raise RefusalError("state", f"This site has another model of round {nth(call.round)} already.")
            self.files.save_model(call.round, self.ordered(dict(call.arrays)), facts)
            signed = None if done else self.blocks.sign(proposal, call.round, attempt, digest, part_of(held))
        return {"digest": digest, "signature": signed}, {}

    def _model(self, caller: str, call: PeerCall) -> tuple[dict[str, object], Arrays]:
        self.check()
        found = self.files.model_with(str(call.facts.get("digest")))
        if found is None:
            raise RefusalError("state", "This site does not have that model.")
        self.handed(found.round, caller, "model")
        return {"round": found.round, "facts": dict(found.facts)}, found.weights


def part_of(held: HeldUpdate) -> Part:
    """What a site has in a round, as a block says it."""
    return Part(parse_report(held.meta).num_samples, held.digest)
