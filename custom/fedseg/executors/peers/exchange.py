"""BrainTorrent at one site: what it takes of its peers' models, and what it gives them of its own.

Roy, Siddiqui, Pölsterl, Navab and Wachinger, "BrainTorrent: a peer-to-peer environment for decentralized federated
learning" (2019), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedseg.allowed import is_count
from fedseg.errors import RefusalError
from fedseg.executors.peers.held_models import PeerModels
from fedseg.files.digest import model_digest
from fedseg.messages.calls.peer_call import PeerAsk, PeerCall
from fedseg.networks.weights import Arrays, is_averaged
from fedseg.site.peer_files import MergedModel
from fedseg.site.peer_versions import PeerVersions, shares

VERSIONS, CASES, START = "versions", "cases", "start"
"""What a site's file says beside its own model: its version vector, its training cases, and the server's start."""


class SumOfModels:
    """The mean of models by numbers of training cases, of which one at a time is in memory.

    >>> total = SumOfModels({"w": np.zeros(1, np.float32)})
    >>> total.add("a", 1, {"w": np.full(1, 2.0, np.float32)})
    >>> total.add("b", 3, {"w": np.full(1, 6.0, np.float32)})
    >>> total.mean()["w"], total.cases
    (array([5.], dtype=float32), {'a': 1, 'b': 3})
    """

    def __init__(self, start: Arrays) -> None:
        """Begin with nothing; counters of the mean are those of ``start``."""
        self.start, self.cases = start, dict[str, int]()
        self._sums = {name: np.zeros(value.shape) for name, value in start.items() if is_averaged(value)}

    def add(self, site: str, cases: int, weights: Mapping[str, np.ndarray]) -> None:
        """Add the model of a site."""
        shares({site: cases})
        self.cases[site] = cases
        for name, total in self._sums.items():
            total += cases * np.asarray(weights[name], np.float64)

    def mean(self) -> Arrays:
        """The mean; the start where nothing was added."""
        if not self.cases:
            return dict(self.start)
        total = sum(self.cases.values())
        return {
            name: np.asarray(self._sums[name] / total, value.dtype) if name in self._sums else value
            for name, value in self.start.items()
        }


@dataclass(frozen=True)
class Merge:
    """What a turn starts from.

    Attributes:
        weights: the mean of the site's own model and of the newer ones of its peers.
        versions: of the site, with what was merged.
        taken: version of each peer's model that was merged; ``updates`` its digest.
        missing: why nothing came of a peer.
        bytes: from and to each peer.
    """

    weights: Arrays
    versions: PeerVersions
    taken: Mapping[str, int]
    updates: Mapping[str, str]
    missing: Mapping[str, str]
    bytes: Mapping[str, list[int]]


class PeerExchange(PeerModels):
    """The own models of one site, and its calls for those of others.

    A site's own model, that others get, is the merged model from which it trained and the update as it left its filters
    and its guard. So nothing that these have not seen reaches another site, neither at once nor by a later version. The
    version vector lies in the file of the model: both are there, or neither. An initiator that dies writes nothing.
    """

    # ------------------------------------------------------------------ this site's own model

    def own(self, digest: str) -> tuple[MergedModel | None, PeerVersions]:
        """The site's own model with a digest, and its versions; no model and version 0 for the start of the run.

        Raises:
            RefusalError: it is not here (reason ``state``).
        """
        if digest == self.start_digest:
            return None, PeerVersions(self.site)
        found = self.files.model_with(digest)
        if found is None:
            raise RefusalError("state", "This site has lost its own model, or it is damaged.")
        return found, PeerVersions.from_json(found.facts.get(VERSIONS))

    def keep_own(self, number: int, start: str, weights: Arrays, versions: PeerVersions, cases: int) -> str:
        """Keep a new own model with its versions, in one file; gives its digest."""
        weights = self.ordered(weights)
        self.files.save_model(number, weights, {START: start, VERSIONS: versions.to_json(), CASES: cases})
        return model_digest(weights)

    # ------------------------------------------------------------------ as an initiator

    def merge(
        self, own: MergedModel | None, versions: PeerVersions, offers: Mapping[str, str], seconds: float
    ) -> Merge:
        """Ask all peers for their versions, take the newer models, and merge them with the site's own.

        A site that has no model of its own yet starts from those of its peers alone.

        Args:
            own: the site's own model; None where it has none yet.
            versions: of the site.
            offers: digest of the model of each peer that counts; who has that of the start has nothing newer.
            seconds: without progress after which a peer counts as silent.
        """
        self.post.reset()
        found, missing = self._versions_of(offers, seconds)
        newer, taken, updates = versions.newer({site: version for site, (version, _) in found.items()}), {}, {}
        total = SumOfModels(self.start)
        # In the order of names, one at a time: the sum is the same every time, and memory holds one model of a peer.
        for site in sorted({*newer, self.site}):
            if site == self.site:
                if own is not None:
                    total.add(site, int(own.facts[CASES]), own.weights)
                continue
            try:
                known = versions.known.get(site, 0)
                total.add(site, found[site][1], self.fetch(site, offers[site], seconds, known))
                taken[site], updates[site] = found[site][0], offers[site]
            except RefusalError as error:
                missing[site] = str(error)
        post = self.post
        traffic = {site: [post.received.get(site, 0), post.sent.get(site, 0)] for site in sorted(post.sent)}
        return Merge(total.mean(), versions.merged(taken), taken, updates, missing, traffic)

    def fetch(self, site: str, digest: str, seconds: float, known: int | None = None) -> Arrays:
        """The model of another site with a digest.

        Args:
            site: whose it is.
            digest: of the weights.
            seconds: without progress after which the site counts as silent.
            known: the version of it that was merged last, than which it must be newer; None to score it only.

        Raises:
            RefusalError: the site does not give it, or gives another one.
        """
        call = PeerCall(PeerAsk.MODEL, self.run, -1, {"digest": digest, "known": known})
        return self.asked(site, call, digest, seconds)[0]

    def _versions_of(
        self, offers: Mapping[str, str], seconds: float
    ) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
        """Version and training cases of the peers that answer, and why others do not."""
        calls = {
            site: PeerCall(PeerAsk.VERSION, self.run, -1, {"digest": digest})
            for site, digest in offers.items()
            if site != self.site and digest != self.start_digest
        }
        found, missing = dict[str, tuple[int, int]](), dict[str, str]()
        for site, answer in self.post.ask_each(calls, seconds):
            if isinstance(answer, RefusalError):
                missing[site] = str(answer)
                continue
            version, cases = (answer.facts.get(name) for name in ("version", CASES))
            if is_count(version) and is_count(cases) and bool(version) == bool(cases):
                found[site] = int(version), int(cases)
            else:
                missing[site] = "its version, or its number of cases, is no number that can be"
        return found, missing

    # ------------------------------------------------------------------ as a peer

    def answer(self, caller: str, call: PeerCall) -> PeerCall:
        """See ``PeerModels``: the calls ``version`` and ``model``."""
        if call.run != self.run:
            raise RefusalError("state", "The site is not in this run.")
        if call.ask not in (PeerAsk.VERSION, PeerAsk.MODEL):
            raise RefusalError("state", "A site of BrainTorrent gives its version and its own model, nothing else.")
        self.check()
        own, versions = self.own(str(call.facts.get("digest")))
        if call.ask is PeerAsk.VERSION:
            return replace(call, facts={"version": versions.own, CASES: 0 if own is None else own.facts[CASES]})
        known = call.facts.get("known")
        if own is None or (known is not None and not versions.is_newer_for(caller, known)):
            raise RefusalError("state", "This site has no newer model than the one that was merged.")
        self.handed(own.round, caller, "model")
        return replace(call, facts={}, arrays=own.weights)


def after_update(merged: Arrays, update: Mapping[str, np.ndarray]) -> Arrays:
    """The merged model and an update of it, added in float64; arrays without an update stay as they were merged."""
    moved: dict[str, Any] = {}
    for name, value in merged.items():
        if name in update:
            value = np.asarray(np.float64(value) + np.asarray(update[name], np.float64), value.dtype)
        moved[name] = value
    return moved
