"""The executor of a site in a swarm: it trains as every site does, and merges the round when it leads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fedseg.contract.plan import Plan
from fedseg.contract.protocol import (
    HELD,
    KEEP,
    LEAST_PEERS,
    MERGE,
    MODEL_NAME,
    PEERS,
    RUN_ID,
    START,
    TAKE_OVER,
    WANTED,
)
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.evaluation.cross_site import BEST, LAST
from fedseg.executors.peers.answers import PeerAnswers
from fedseg.executors.peers.blocks import SiteBlocks
from fedseg.executors.peers.leading import Leading, MergeTask, parse_facts
from fedseg.executors.peers.peer_executor import PeerExecutor, initial_model
from fedseg.executors.site_executor import Answer
from fedseg.messages.job import job_plan, report_fields, server_arguments, server_rule
from fedseg.models.model_file import initial_weights
from fedseg.networks.weights import Arrays
from fedseg.provenance.swarm.blocks import Opening, majority
from fedseg.provenance.swarm.errors import SwarmLedgerError
from fedseg.provenance.swarm.ledger import LEDGER_FILE, SwarmLedger
from fedseg.provenance.swarm.signatures import Signer
from fedseg.site.peer_files import HeldUpdate, PeerFiles
from fedseg.site.round_files import DEFAULT_KEEP
from fedseg.workflows.run.checkpoint import Checkpoints
from fedseg.workflows.run.record import BEST_MODEL, LAST_MODEL
from fedseg.workflows.run.run_model import RunPlace
from fedseg.workflows.run.weighted_model import WeightedModel

logger = logging.getLogger(__name__)
_FILES = {LAST: LAST_MODEL, BEST: BEST_MODEL}
"""Where a site finds the models that a run leaves, in its folder of the run, by how the server calls them."""


_PATIENCE = 0.25
"""Of the time of a leader: how long one waits for another site that makes no progress. A leader waits twice, for
updates and for takers of the model, and must be done within its time."""


class SwarmExecutor(PeerExecutor):
    """Trains at one site of a swarm, whose server sees no model.

    The task ``train`` brings no weights: the site has the model of the round before, or fetches it from another site.
    The update goes through the filters of the result, the guard, the ledger and the record as in every job; then its
    arrays stay here, and the server gets its report alone. They leave when the site that leads the round asks for them,
    see ``PeerAnswers``. The task ``merge`` asks this site to lead, see ``Leading``.
    """

    def __init__(self, hooks: list[str] | None = None) -> None:
        """See ``SegmentationExecutor``."""
        super().__init__(hooks)
        self._rule: WeightedModel | None = None

    def tasks(self) -> Mapping[str, Answer]:
        return {**super().tasks(), MERGE: self._merge}

    def received(self, content: Any, meta: Mapping[str, Any], fl_ctx: FLContext) -> Arrays:
        """The model that the task names, from this site's own files or from another site."""
        self._task, peers, digest = meta, self._swarm, str(meta.get(HELD))
        others = [str(site) for site in meta.get(PEERS) or () if site != peers.site]
        self._check_named(digest, others)
        found = peers.model(digest)
        if found is None:
            found = self._fetch(digest, others)
        if (file := _FILES.get(str(meta.get(MODEL_NAME)))) is not None:
            kept = peers.files.model_with(digest)
            self.write_own(file, job_plan(fl_ctx), found, -1 if kept is None else kept.round, fl_ctx)
        return found

    # ------------------------------------------------------------------ a run

    def _open(self, plan: Plan, site: str, fl_ctx: FLContext) -> PeerAnswers:
        start = initial_weights(plan, initial_model(fl_ctx))
        blocks = SiteBlocks(self._ledger(site, fl_ctx), self.session.run_id, self.post)
        peers, self._rule = PeerAnswers(blocks, PeerFiles(self.session.folder), start), None
        self.watch(peers, fl_ctx)
        return peers

    def _ledger(self, site: str, fl_ctx: FLContext) -> SwarmLedger:
        """The ledger of the swarm at this site, of all sites of the job.

        Raises:
            RefusalError: it cannot be used (reason ``ledger``).
        """
        engine, least = fl_ctx.get_engine(), server_arguments(fl_ctx).get("min_peers")
        members = sorted(client.name for client in engine.get_clients())
        if least is not None and least > len(members):
            text = f"The job asks for {least} sites that sign (workflow.min_peers), but has {len(members)}."
            raise RefusalError("plan", text)
        try:
            signer = Signer.of_kit(Path(engine.get_workspace().get_startup_kit_dir()))
            root = "" if signer is None else signer.root.fingerprint
            opening = Opening(self.session.run_id, tuple(members), least or majority(members), root)
            return SwarmLedger(self.session.folder / LEDGER_FILE, opening, site, signer)
        except (SwarmLedgerError, ConfigurationError) as error:
            raise RefusalError("ledger", str(error)) from None

    def _check_named(self, digest: str, sites: list[str]) -> None:
        """Refuse a model that stands in no block; a site that was away takes the blocks of others first.

        Raises:
            RefusalError: nobody has such a block (reason ``ledger``).
        """
        peers = self._swarm
        for site in (None, *sites):
            if site is not None:
                try:
                    peers.blocks.catch_up(site, float(self._task[TAKE_OVER]) * _PATIENCE)
                except RefusalError:
                    continue
            if digest == peers.start_digest or any(each.block.model == digest for each in peers.blocks.ledger.blocks):
                return
        raise RefusalError("ledger", "The server names a model that stands in no block of the swarm's ledger.")

    # ------------------------------------------------------------------ the update stays

    def _keep(self, number: int, update: DXO) -> None:
        meta = self._task
        start, files = str(meta.get(START)), self._swarm.files
        files.go_back(number, start)
        keep = int(meta.get(KEEP, DEFAULT_KEEP))
        files.keep({str(each) for each in meta.get(WANTED) or ()} | {str(meta.get(HELD))}, keep + 1 if keep else 0)
        sites = tuple(str(site) for site in meta.get(PEERS) or ())
        files.save_update(
            HeldUpdate(number, start, sites, float(meta[TAKE_OVER]), dict(update.meta), dict(update.data))
        )

    # ------------------------------------------------------------------ calls of other sites

    def _fetch(self, digest: str, sites: list[str]) -> Arrays:
        """The model with a digest from the first site that has it.

        Raises:
            RefusalError: nobody gives it (reason ``state``).
        """
        peers, told = self._swarm, []
        for site in sites:
            try:
                return peers.fetch(site, digest, float(self._task[TAKE_OVER]) * _PATIENCE)
            except RefusalError as error:
                told.append(f"{site}: {error}")
        why = f" {'; '.join(told)}" if told else " No other site is in the round."
        raise RefusalError("state", f"This site does not have the model of the round, and no other site gave it.{why}")

    # ------------------------------------------------------------------ this site leads

    def _merge(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Merge the round at hand, and tell what went into it; no array leaves with the answer."""
        task = FLModelUtils.from_shareable(shareable)
        meta, plan = task.meta, job_plan(fl_ctx)
        self.load_run(plan, meta.get(RUN_ID), fl_ctx)
        number, start = int(task.current_round or 0), str(meta.get(START))
        if self._rule is None:
            self._rule = WeightedModel(server_rule(fl_ctx))
            folder = self.session.folder
            self._rule.load(plan, RunPlace(folder, folder, initial_model(fl_ctx)), Checkpoints(folder))
        leading = Leading(plan, self._rule, self._swarm, report_fields(fl_ctx))
        least, seconds = int(meta.get(LEAST_PEERS, 1)), float(meta[TAKE_OVER]) * _PATIENCE
        facts = leading.lead(MergeTask(number, start, str(meta.get(HELD)), parse_facts(meta), least, seconds))
        self.session.record.merged(number, meta, facts["digest"], facts["updates"])
        facts.pop("start")
        facts["missing"] = {site: self._tellable(text, plan) for site, text in facts["missing"].items()}
        return DXO(DataKind.METRICS, data=facts).to_shareable()

    @property
    def _swarm(self) -> PeerAnswers:
        assert isinstance(self.peers, PeerAnswers)
        return self.peers
