"""The server's part of BrainTorrent: it draws who takes the next turn, and knows models by digests and versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AppConstants

from fedseg.allowed import is_count
from fedseg.contract.plan import Plan
from fedseg.contract.protocol import HELD, OFFERS, PEER_TIMEOUT, PEERS, TURN
from fedseg.contract.round_numbers import nth
from fedseg.errors import ConfigurationError, FedsegError, RefusalError
from fedseg.files.digest import model_digest
from fedseg.models.model_file import initial_weights
from fedseg.randomness import generator
from fedseg.training.hooks import TrainingHook
from fedseg.workflows.peers.at_sites import ModelsAtSites, are_digests, missing_of, traffic_of
from fedseg.workflows.run.checkpoint import Checkpoints
from fedseg.workflows.run.record import RunRecord
from fedseg.workflows.run.round_protocol import UPDATE_REFUSED, JobParts, RoundProtocol
from fedseg.workflows.run.run_model import Keep, RunPlace, check_halves
from fedseg.workflows.run.run_state import RunState
from fedseg.workflows.run.selection_base import Selection
from fedseg.workflows.run.sites import Accept, Message, single_messages

EXECUTOR = "fedseg.executors.peers.torrent_executor.BrainTorrentExecutor"


@dataclass(frozen=True)
class Turn:
    """What an initiator told of its turn.

    Attributes:
        received: digest of the merged model from which it trained.
        digest, version: of its new own model.
        taken: version of each peer's model that it merged.
        missing: why nothing came of a peer.
        bytes: from and to each peer.
    """

    received: str
    digest: str
    version: int
    taken: Mapping[str, int]
    missing: Mapping[str, str]
    bytes: Mapping[str, Sequence[int]]


def parse_turn(told: Any) -> Turn:
    """What an initiator told, trusting nothing.

    Raises:
        RefusalError: it is something else (reason ``report``).
    """
    try:
        taken, digests = dict(told["taken"]), (told["received"], told["digest"])
        if not all(map(is_count, (told["version"], *taken.values()))) or not are_digests(*digests):
            raise ValueError
        return Turn(*digests, told["version"], taken, missing_of(told), traffic_of(told))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RefusalError("report", "The site's account of its turn cannot be read.") from None


class OwnModels(ModelsAtSites):
    """The sites' own models as the server of BrainTorrent knows them.

    Attributes:
        origin: digest of the model from which all sites start.
        models: after each finished round the digest and the version of the model of each site that has trained.
        turns: of the round at hand, by initiator.
    """

    keeps_former = False

    def __init__(self) -> None:
        super().__init__()
        self.origin = ""
        self.models: list[dict[str, list[Any]]] = []
        self.turns: dict[str, Turn] = {}
        self._told: dict[str, Turn] = {}

    def check_plan(self, plan: Plan) -> None:
        """Every plan will do."""

    def check_hooks(self, hooks: Sequence[TrainingHook]) -> None:
        check_halves(hooks, None)

    def load(self, plan: Plan, place: RunPlace, checkpoints: Checkpoints) -> None:
        """See ``RunModel``; what the run starts from is no secret, and is forgotten at once."""
        self.origin = model_digest(initial_weights(plan, place.initial))

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "start": self.origin}

    # ------------------------------------------------------------------ a round

    @property
    def now(self) -> dict[str, list[Any]]:
        """Digest and version of each site that has trained, the turns of the round at hand included."""
        last = self.models[-1] if self.models else {}
        return {**last, **{site: [turn.digest, turn.version] for site, turn in self.turns.items()}}

    def offers(self, sites: Sequence[str]) -> list[list[Any]]:
        """Name, digest and version of the own model of each of these sites."""
        return [[site, *self.now.get(site, [self.origin, 0])] for site in sites]

    def own_models(self) -> dict[str, str]:
        """See ``RunModel``."""
        return {site: digest for site, (digest, _) in sorted(self.models[-1].items())} if self.models else {}

    def training_message(self, sites: Sequence[str]) -> FLModel:
        return FLModel(metrics={"turn": 1.0}, meta={})

    def scoring_message(self, number: int, sites: Sequence[str]) -> Message:
        """Each site scores its own model."""
        own = self.own_models()
        return {site: model_message(own.get(site, self.origin), site) for site in sites}

    def begin_round(self, keep: Keep | None = None) -> None:
        super().begin_round(keep)
        self.turns = {}

    def check_turn(self, site: str, turn: Turn, peers: Sequence[str]) -> None:
        """Refuse an account that does not follow from what the server knows.

        Raises:
            RefusalError: the version does not go up by one, or what was taken is not there (reason ``report``).
        """
        known = self.now
        if turn.version != (before := known.get(site, ["", 0])[1]) + 1:
            raise RefusalError("report", f"The site has version {turn.version} of its model, after version {before}.")
        if any(peer == site or peer not in peers or known.get(peer) is None for peer in turn.taken):
            raise RefusalError("report", "The site merged models of sites that have none.")
        if any(version != known[peer][1] for peer, version in turn.taken.items()):
            raise RefusalError("report", "The site merged other versions of its peers' models than they have.")

    def finish_round(self) -> None:
        self.models.append(self.now)
        self._told, self.turns = self.turns, {}

    # ------------------------------------------------------------------ what is told and stored

    def describe(self) -> dict[str, Any]:
        return {"name": "BrainTorrent"}

    def describe_round(self) -> dict[str, Any]:
        """Also the turns of the round: who merged which versions, and the bytes between sites."""
        turns = [
            {
                "initiator": site,
                "version": turn.version,
                "taken": dict(turn.taken),
                "bytes": {peer: list(pair) for peer, pair in turn.bytes.items()},
            }
            for site, turn in sorted(self._told.items())
        ]
        versions = {site: version for site, (_, version) in sorted(self.models[-1].items())}
        return {**super().describe_round(), "carried": True, "turns": turns, "versions": versions}

    def digest_after(self, number: int) -> str:
        """Of the start, or one name for the own models of all sites after a round."""
        if number < 0:
            return self.origin
        text = json.dumps(self.models[number], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, record: RunRecord, plan: Plan, name: str, number: int, final: bool) -> dict[str, Any]:
        """Nothing: each site has its own model, under this name; gives their digests."""
        own = self.own_models()
        return {"model": None, "models": {site: f"last-{site}.safetensors" for site in own}, "own_models": own}

    def history(self) -> dict[str, Any]:
        return {"models": self.models}

    def restore(self, number: int, arrays: Mapping[str, np.ndarray], history: Mapping[str, Any]) -> None:
        self.models = list(history["models"])


def model_message(digest: str, holder: str) -> FLModel:
    """What has a site score the own model of a site, which it may have to fetch from there."""
    return FLModel(metrics={"score": 1.0}, meta={HELD: digest, PEERS: [holder]})


class InTurns(RoundProtocol):
    """A round of BrainTorrent is one turn of one site, drawn by the seed and the round.

    In the first round all sites train from the common start, at the same time. Later a site that has no model yet takes
    its turn before the one that is drawn. An initiator that dies or is silent has changed nothing; the next one that is
    drawn takes the turn in its place.
    """

    def __init__(self, model: OwnModels, peer_timeout: int) -> None:
        """Prepare.

        Args:
            model: of the run.
            peer_timeout: seconds without progress after which an initiator does not wait for a peer.
        """
        self.model, self.peer_timeout = model, peer_timeout

    def check_job(self, job: JobParts) -> None:
        """See ``RoundProtocol``.

        Raises:
            ConfigurationError: also where the sites' executor is another one.
        """
        super().check_job(job)
        if list(job.executors) != [EXECUTOR]:
            raise ConfigurationError("executors", list(job.executors), f"{EXECUTOR} in a job of BrainTorrent")

    def collect(self, run: RunState, asked: Sequence[str]) -> None:
        if not run.rounds:
            self.train(run, asked)
            return
        # Seeded, and the same for every number of sites that are there.
        drawn = sorted(asked, key=lambda site: generator(run.plan.seed, "turn", run.number, site).random())
        for site in [site for site in sorted(asked) if site not in self.model.now]:
            self.train(run, [site])
        for site in drawn:
            if site in self.model.turns:
                continue
            self.train(run, [site])
            if site in self.model.turns:
                return
        if not self.model.turns:
            raise FedsegError(f"None of {len(asked)} site(s) could take the turn of round {nth(run.number)}.")

    def asked(self, run: RunState, chosen: Selection) -> Selection:
        """Those that took their turn, or were to."""
        return chosen if not run.rounds else replace(chosen, sites=sorted(self.model.turns))

    def message(self, run: RunState, sites: Sequence[str]) -> Message:
        """See ``RoundProtocol``; also which models count."""
        message, offers = super().message(run, sites), self.model.offers(sorted(run.facts))
        for each in single_messages(message):
            each.meta |= {OFFERS: offers, **self._patience}
        return message

    def score(
        self, run: RunState, number: int, sites: Sequence[str], meta: Mapping[str, Any], accept: Accept
    ) -> dict[str, FLModel]:
        """See ``RoundProtocol``: every site scores its own model."""
        return super().score(run, number, sites, {**meta, **self._patience}, accept)

    def score_own(
        self, run: RunState, site: str, sites: Sequence[str], meta: Mapping[str, Any], accept: Accept
    ) -> dict[str, FLModel]:
        """Have sites score the own model of one of them, which the others fetch from there."""
        message = model_message(self.model.own_models()[site], site)
        message.meta |= {**meta, **self._patience}
        return run.sites.ask(AppConstants.TASK_VALIDATION, message, sites, run.settings.round_timeout, accept, "")

    @property
    def _patience(self) -> dict[str, float]:
        return {PEER_TIMEOUT: float(self.peer_timeout)}

    def train(self, run: RunState, sites: Sequence[str]) -> None:
        message, accept = self.message(run, sites), partial(self._accept_turn, run)
        run.sites.ask(AppConstants.TASK_TRAIN, message, sites, run.settings.round_timeout, accept, UPDATE_REFUSED)

    def _accept_turn(self, run: RunState, site: str, answer: FLModel) -> None:
        turn = parse_turn((answer.meta or {}).get(TURN))
        self.model.check_turn(site, turn, sorted(run.facts))
        self._accept(run, run.number, site, answer)
        self.model.turns[site] = turn
        named = {"round": run.number, "site": site, "start": run.start_id}
        run.record.append("turn", **named, received=turn.received, model=turn.digest, taken=dict(turn.taken))
        for peer, why in sorted(turn.missing.items()):
            run.note(peer, f"{why} (says {site})")
        for peer, (up, down) in turn.bytes.items():
            run.sites.count(peer, up, down)
