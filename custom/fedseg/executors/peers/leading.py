"""How a site leads a round: it fetches the updates of the others, merges them as a server would, and hands out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.allowed import is_count
from fedseg.contract.plan import Plan
from fedseg.contract.protocol import PEER_FACTS
from fedseg.contract.report import ReportField
from fedseg.contract.round_numbers import nth
from fedseg.contract.shapes import update_shapes
from fedseg.errors import FedsegError, RefusalError
from fedseg.executors.peers.answers import MERGED, PeerAnswers
from fedseg.files.digest import model_digest
from fedseg.filters.restore import restore
from fedseg.messages.calls.peer_call import PeerAsk, PeerCall
from fedseg.messages.updates import read_update
from fedseg.networks.weights import Arrays
from fedseg.provenance.swarm.blocks import Part
from fedseg.workflows.run.acceptance import check_report
from fedseg.workflows.run.acceptance import read_update as accepted_update
from fedseg.workflows.run.selection_base import SiteFacts
from fedseg.workflows.run.weighted_model import WeightedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MergeTask:
    """What a site is asked to merge.

    Attributes:
        round: from 0.
        start: of the server that asked for the round.
        held: digest of the model that the updates start from.
        facts: of each site whose update is merged what it said of itself, and its steps of the round (None: unknown).
        least: fewest updates that are merged.
        seconds: without progress after which another site counts as silent.
    """

    round: int
    start: str
    held: str
    facts: Mapping[str, tuple[SiteFacts, int | None]]
    least: int
    seconds: float


def parse_facts(meta: Mapping[str, Any]) -> dict[str, tuple[SiteFacts, int | None]]:
    """What the server says of the sites of a round, trusting nothing.

    Raises:
        RefusalError: it is something else (reason ``plan``).
    """
    found: dict[str, tuple[SiteFacts, int | None]] = {}
    for entry in meta.get(PEER_FACTS) or ():
        if not isinstance(entry, list | tuple) or len(entry) != 4 or not isinstance(entry[0], str):
            raise RefusalError("plan", "The task does not say whose updates are merged.")
        site, cases, scored, steps = entry
        if not is_count(cases) or not is_count(scored) or not (steps is None or is_count(steps)):
            raise RefusalError("plan", "The task's numbers of cases or steps are no counts.")
        found[site] = SiteFacts(cases, val_cases=scored), steps
    return found


@dataclass
class _Gathered:
    """What has come of the sites: tokens, parts and digests of updates, and why one is missing."""

    tokens: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    updates: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


class Leading:
    """Merges one round at this site.

    Attributes:
        model: the rule, and what the updates start from.
    """

    def __init__(
        self, plan: Plan, model: WeightedModel, answers: PeerAnswers, declared: Mapping[str, ReportField]
    ) -> None:
        """Prepare.

        Args:
            plan: of the job.
            model: with the rule of the job; it is loaded.
            answers: of this site.
            declared: what components of the job report beside the fixed fields.
        """
        self.plan, self.model, self.answers, self.declared = plan, model, answers, declared

    def lead(self, task: MergeTask) -> dict[str, Any]:
        """Merge, keep the model here, and hand it to those whose updates are in it.

        Returns:
            Plain JSON: ``digest``, ``updates`` (digest of each), ``weights``, ``scales``, ``notes``, ``takers``,
            ``missing`` (why), and ``bytes`` from and to each other site.

        Raises:
            RefusalError: too few updates are there (reason ``peers``), or this site has no part in the round.
        """
        site, post = self.answers.site, self.answers.post
        post.reset()
        self.answers.begins(task.round)
        agreed = False
        try:
            gathered = self._gather(task)
            facts, takers = self._agree(task, gathered)
            agreed = True
        finally:
            self.answers.ends(task.round, agreed)
        traffic = {other: [post.received.get(other, 0), post.sent.get(other, 0)] for other in sorted(post.sent)}
        return {**facts, "takers": sorted({*takers, site}), "missing": gathered.missing, "bytes": traffic}

    def _agree(self, task: MergeTask, gathered: _Gathered) -> tuple[dict[str, Any], list[str]]:
        """Have the sites sign the block of the round, and take its model; gives what is told, and who has taken it."""
        blocks, others = self.answers.blocks, sorted(set(task.facts) - {self.answers.site})
        if (done := blocks.block_of(task.round, task.start)) is not None:
            facts, weights = self._finished(done.model, list(done.parts), task)
            block = blocks.ledger.blocks[-1]
            takers, _ = self._hand_out(task, gathered, {**facts, "block": block.to_json()}, weights)
        else:
            _check_enough(task, gathered)
            proposal = blocks.promised(task.round, others, task.seconds)
            if proposal is None:
                facts, weights = self._merge(task, gathered)
                self.answers.files.save_model(task.round, weights, facts)
                rule, digest = str(self.model.describe()["name"]), facts["digest"]
                proposal = blocks.propose(task.start, task.round, gathered.parts, digest, rule)
            else:
                facts, weights = self._finished(proposal.block.model, list(proposal.block.parts), task)
            attempt = blocks.attempt(self.answers.site, task.round)
            own = blocks.sign(
                proposal.to_json(), task.round, attempt, facts["digest"], gathered.parts.get(self.answers.site)
            )
            asked = {**facts, "proposal": proposal.to_json(), "attempt": attempt}
            takers, signatures = self._hand_out(task, gathered, asked, weights)
            block = blocks.signed(proposal, [each for each in (own, *signatures) if each])
        blocks.tell(block, others, task.seconds)
        return {**facts, "block": block.block.digest}, takers

    def _finished(self, digest: str, sites: list[str], task: MergeTask) -> tuple[dict[str, Any], Arrays]:
        """Facts and weights of a model that was merged already, from here or from a site that has it.

        Raises:
            RefusalError: nobody has it (reason ``state``).
        """
        files, told = self.answers.files, []
        for site in [each for each in sites if each != self.answers.site] if files.model_with(digest) is None else []:
            try:
                self.answers.fetch(site, digest, task.seconds, task.round)
                break
            except RefusalError as error:
                told.append(f"{site}: {error}")
        found = files.model_with(digest)
        if found is None:
            raise RefusalError("state", f"No site gives the model that was merged before. {'; '.join(told)}".strip())
        return dict(found.facts), self.answers.ordered(found.weights)

    # ------------------------------------------------------------------ updates in

    def _gather(self, task: MergeTask) -> _Gathered:
        gathered, site = _Gathered(), self.answers.site
        held = self.answers.model(task.held)
        if held is None:
            raise RefusalError("state", "This site does not have the model from which the round starts.")
        self.model.weights, self.model.finished = held, task.round - 1
        self.model.begin_round()
        own = self.answers.files.update_of(task.round)
        self._accept(site, own.start, dict(own.meta), own.arrays, task, gathered)
        others = sorted(set(task.facts) - {site})
        blocks = self.answers.blocks
        head = {"head": blocks.ledger.head}
        calls = {other: PeerCall(PeerAsk.UPDATE, self.answers.run, task.round, head) for other in others}
        for other, answer in self.answers.post.ask_each(calls, task.seconds):
            if isinstance(answer, RefusalError):
                gathered.missing[other] = str(answer)
                continue
            if not blocks.knows(str(answer.facts.get("head"))):
                blocks.catch_up(other, task.seconds)
            if answer.facts.get("state") == MERGED:
                if not blocks.block_of(task.round, task.start):
                    blocks.catch_up(str(answer.facts.get("at")), task.seconds)
            else:
                gathered.tokens[other] = str(answer.facts.get("token"))
                start, meta = str(answer.facts.get("start")), answer.facts.get("meta")
                self._accept(other, start, meta, dict(answer.arrays), task, gathered)
        return gathered

    def _accept(self, site: str, start: str, meta: Any, arrays: Arrays, task: MergeTask, gathered: _Gathered) -> None:
        """Check an update as a server does, and let it count; else note why it does not."""
        try:
            if site not in task.facts or start != task.start or not isinstance(meta, dict):
                raise RefusalError("state", "The update is of another round, or of a site that has no part in it.")
            digest, (facts, steps) = model_digest(arrays), task.facts[site]
            sent = read_update(DXO(DataKind.WEIGHT_DIFF, data=arrays, meta=meta).to_shareable(), self.declared)
            dense = restore(sent, update_shapes(self.plan))
            told = {key: value for key, value in meta.items() if key != MetaKey.PROCESSED_ALGORITHM}
            answer = FLModel(params_type=ParamsType.DIFF, params=dense.arrays, meta=told)
            update = accepted_update(site, answer, self.declared)
            check_report(update.report, facts, steps, self.plan)
            self.model.accept_update(site, update)
            gathered.updates[site] = digest
            gathered.parts[site] = Part(update.report.num_samples, digest)
        except FedsegError as error:
            gathered.missing[site] = f"update left out: {error}"
        except Exception:
            logger.exception("The update of %s cannot be used", site)
            gathered.missing[site] = "update left out: it cannot be used"

    # ------------------------------------------------------------------ the model out

    def _merge(self, task: MergeTask, gathered: _Gathered) -> tuple[dict[str, Any], Arrays]:
        self.model.finish_round()
        described = self.model.describe_round()
        facts = {
            "leader": self.answers.site,
            "start": task.start,
            "digest": model_digest(self.model.weights),
            "updates": dict(sorted(gathered.updates.items())),
            **{name: described[name] for name in ("weights", "scales", "notes")},
        }
        return facts, self.model.weights

    def _hand_out(
        self, task: MergeTask, gathered: _Gathered, facts: Mapping[str, Any], weights: Arrays
    ) -> tuple[list[str], list[Any]]:
        """The sites that have taken the model, and their signatures."""
        run, takers, signatures = self.answers.run, [], []
        calls = {
            site: PeerCall(PeerAsk.TAKE, run, task.round, {**facts, "token": token}, weights)
            for site, token in gathered.tokens.items()
        }
        for site, answer in self.answers.post.ask_each(calls, task.seconds):
            if isinstance(answer, PeerCall):
                takers.append(site)
                signatures.append(answer.facts.get("signature"))
            else:
                gathered.missing.setdefault(site, f"did not take the model: {answer}")
        return takers, signatures


def _check_enough(task: MergeTask, gathered: _Gathered) -> None:
    """Refuse to merge too few updates (RefusalError, reason ``peers``)."""
    count = len(gathered.updates)
    if count < task.least:
        why = "; ".join(f"{site}: {text}" for site, text in sorted(gathered.missing.items()))
        text = f"{count} update(s) of round {nth(task.round)} came together, but {task.least} must. {why}"
        raise RefusalError("peers", text.strip())
