"""How a round of a swarm goes: sites train, and one of them merges; if it fails, the next one in their order does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.allowed import is_number
from fedseg.contract.protocol import HELD, LEAST_PEERS, MERGE, PEER_FACTS, PEERS, TAKE_OVER, WANTED
from fedseg.contract.round_numbers import nth
from fedseg.contract.round_settings import RoundSettings, round_steps
from fedseg.errors import ConfigurationError, FedsegError, RefusalError
from fedseg.provenance.swarm.blocks import Opening, majority
from fedseg.provenance.swarm.leaders import leader_order
from fedseg.workflows.peers.at_sites import are_digests, missing_of, traffic_of
from fedseg.workflows.peers.model import Merged, SwarmModel
from fedseg.workflows.run.round_protocol import JobParts, RoundProtocol
from fedseg.workflows.run.run_state import RunState
from fedseg.workflows.run.sites import Accept, Message, single_messages

_PASSES = 3
"""How often each site is asked to merge: one whose process was started anew answers the others again, which therefore
give their updates to nobody else, but it needs another task."""
EXECUTOR = "fedseg.executors.peers.executor.SwarmExecutor"


class SwarmRounds(RoundProtocol):
    """A round of a swarm.

    1. The sites train (task ``train``, without weights in either direction); the server takes their reports.
    2. The first site of the round's order merges (task ``merge``): it fetches the updates from the other sites, and
       hands the model out to them. A site that fails, or does not answer in time, is noted, and the next one is asked;
       after the last one the first is asked again.

    The order follows from the digest of the last block and the round, see ``leader_order``; sites compute it
    themselves, and give their updates to no other leader as long as one before it answers them.
    """

    def __init__(self, model: SwarmModel, min_peers: int | None, take_over: int) -> None:
        """Prepare.

        Args:
            model: of the run.
            min_peers: fewest updates that are merged, and fewest sites that sign; None for more than half.
            take_over: seconds that a leader may take before the next one is asked.
        """
        self.model, self.min_peers, self.take_over = model, min_peers, take_over

    def check_job(self, job: JobParts) -> None:
        """See ``RoundProtocol``.

        Raises:
            ConfigurationError: also where the sites' executor is none of a swarm, or does not take the task ``merge``.
        """
        super().check_job(job)
        if list(job.executors) != [EXECUTOR]:
            raise ConfigurationError("executors", list(job.executors), f"{EXECUTOR} in a job without a server's model")
        if MERGE not in job.tasks:
            raise ConfigurationError("executors: tasks", list(job.tasks), f"a list with {MERGE!r}")

    def message(self, run: RunState, sites: Sequence[str]) -> Message:
        """See ``RoundProtocol``; also who is in the round."""
        message = super().message(run, sites)
        for each in single_messages(message):
            each.meta |= self._meta(run, run.number, sorted(sites))
        return message

    def score(
        self, run: RunState, number: int, sites: Sequence[str], meta: Mapping[str, Any], accept: Accept
    ) -> dict[str, FLModel]:
        """See ``RoundProtocol``; who lacks the model fetches it from the other sites."""
        holders = {PEERS: sorted(run.facts), TAKE_OVER: float(self.take_over)}
        return super().score(run, number, sites, {**meta, **holders}, accept)

    def begin(self, run: RunState) -> None:
        """See ``RoundProtocol``; the order of the first round's leaders follows from the ledger's opening."""
        members = run.sites.connected()
        least = min(self._least(run), len(members))
        if not self.model.heads:
            self.model.heads = [Opening(run.sites.run_id, tuple(members), least, self.model.root).digest]

    def _least(self, run: RunState) -> int:
        return self.min_peers or majority(run.sites.connected())

    def collect(self, run: RunState, asked: Sequence[str]) -> None:
        self.train(run, asked)
        trained = sorted(self.model.reports)
        if len(trained) < (least := self._least(run)):
            raise FedsegError(_not_merged(run, f"{len(trained)} site(s) trained, but {least} must"))
        for leader in [*leader_order(self._leads_after(run), run.number, asked)] * _PASSES:
            if leader not in trained or self.model.merged is not None:
                continue
            message = self._merge_message(run, trained, sorted(asked))
            run.record.append("leads", round=run.number, site=leader, start=run.start_id)
            run.sites.ask(MERGE, message, [leader], self.take_over, partial(self._accept_merged, run), "merging failed")
        if self.model.merged is None:
            raise FedsegError(_not_merged(run, f"none of the {len(trained)} site(s) that trained could merge"))

    def _merge_message(self, run: RunState, trained: Sequence[str], asked: Sequence[str]) -> FLModel:
        meta = {**run.round_meta(), **self._meta(run, run.number, asked), LEAST_PEERS: self._least(run)}
        meta |= {PEER_FACTS: [self._facts(run, site) for site in trained], HELD: run.model.digest_after(run.number - 1)}
        return FLModel(
            metrics={"round": float(run.number)},
            meta=meta,
            current_round=run.number,
            total_rounds=run.settings.num_rounds,
        )

    def _facts(self, run: RunState, site: str) -> list[Any]:
        """What the leader holds a site's report against: its name, cases, validation cases and steps of the round."""
        given = self.round_settings(run.number).joined(run.site_settings.get(site, RoundSettings()))
        facts, settings = run.facts[site], given.applied(run.plan.training)
        return [site, facts.num_samples, facts.val_cases, round_steps(settings, facts.num_samples, given.epoch_cases)]

    def _meta(self, run: RunState, number: int, asked: Sequence[str]) -> dict[str, Any]:
        wanted = [] if run.best_round is None else [self.model.digest_after(run.best_round)]
        return {PEERS: list(asked), TAKE_OVER: float(self.take_over), WANTED: wanted}

    def _leads_after(self, run: RunState) -> str:
        return self.model.heads[run.number]

    def _accept_merged(self, run: RunState, site: str, answer: FLModel) -> None:
        told = answer.metrics or {}
        merged, missing = parse_merged(told)
        self.model.accept_merged(merged)
        for other, why in sorted(missing.items()):
            run.note(other, f"{why} (says {site})")
        for leader, (up, down) in merged.traffic.items():
            run.sites.count(leader, up, down)


def _not_merged(run: RunState, what: str) -> str:
    told = "; ".join(f"{event['site']}: {event['what']}" for event in run.events if event["round"] == run.number)
    why = f" {told.rstrip('.')}." if told else ""
    return f"Round {nth(run.number)} was not merged: {what}.{why} The model of the round before is kept at the sites."


def parse_merged(told: Mapping[str, Any]) -> tuple[Merged, dict[str, str]]:
    """What a leader told of its round, trusting nothing.

    Returns:
        The facts, and why updates of other sites are not in the model, or they have not taken it.

    Raises:
        RefusalError: it is something else (reason ``report``).
    """
    try:
        if not are_digests(told["digest"], told["block"], *told["updates"].values()):
            raise ValueError
        numbers = (*told["weights"].values(), *told["scales"].values())
        if not all(is_number(each) for each in numbers):
            raise ValueError
        traffic, missing = traffic_of(told), missing_of(told)
        texts = {str(site): str(digest) for site, digest in told["updates"].items()}
        merged = Merged(
            leader=str(told["leader"]),
            digest=str(told["digest"]),
            block=str(told["block"]),
            updates=texts,
            weights=dict(told["weights"]),
            scales=dict(told["scales"]),
            notes=cast("dict[str, Any]", told["notes"]),
            takers=[str(site) for site in told["takers"]],
            traffic=traffic,
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RefusalError("report", "The leader's account of the round cannot be read.") from None
    return merged, missing
