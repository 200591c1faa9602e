"""The executor of a site in a swarm: it trains as every site does, and merges the round when it leads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fedseg.contract.allowed_job_files import INITIAL_FILE
from fedseg.contract.plan import Plan
from fedseg.contract.protocol import (
    BYTES_UP,
    HELD,
    KEEP,
    LEAST_PEERS,
    MERGE,
    MODEL_NAME,
    PEERS,
    PREPARE,
    RUN_ID,
    START,
    TAKE_OVER,
    WANTED,
)
from fedseg.contract.shapes import private_arrays
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.evaluation.cross_site import BEST, LAST
from fedseg.executors.peers.answers import PeerAnswers
from fedseg.executors.peers.blocks import SiteBlocks
from fedseg.executors.peers.leading import Leading, MergeTask, parse_facts
from fedseg.executors.peers.post import PeerPost, check_identities, places_of
from fedseg.executors.refusals import check_peers
from fedseg.executors.site_executor import Answer
from fedseg.executors.training import SegmentationExecutor
from fedseg.filters.guard.text import check_text
from fedseg.filters.layers import layers_of_sites
from fedseg.messages.calls.gate import CallGate
from fedseg.messages.calls.peer_call import TOPIC, read_peer_call
from fedseg.messages.job import job_plan, report_fields, server_arguments, server_rule, site_profile, sites_part
from fedseg.messages.replies import refusal
from fedseg.messages.sizes import message_size
from fedseg.models.model_file import initial_weights, write_model
from fedseg.networks.weights import Arrays
from fedseg.provenance.swarm.blocks import Opening, majority
from fedseg.provenance.swarm.errors import SwarmLedgerError
from fedseg.provenance.swarm.ledger import LEDGER_FILE, SwarmLedger
from fedseg.provenance.swarm.signatures import Signer
from fedseg.site.peer_files import HeldUpdate, PeerFiles
from fedseg.site.round_files import DEFAULT_KEEP
from fedseg.training.trainer import SiteTrainer
from fedseg.workflows.run.checkpoint import Checkpoints
from fedseg.workflows.run.run_model import RunPlace
from fedseg.workflows.run.weighted_model import WeightedModel

logger = logging.getLogger(__name__)
_UNTOLD = "gave no update, or did not take the model, and said why in words that this site does not pass on"
_FILES = {LAST: "last.safetensors", BEST: "best.safetensors"}
"""Where a site finds the models that a run leaves, in its folder of the run, by how the server calls them."""


_PATIENCE = 0.25
"""Of the time of a leader: how long one waits for another site that makes no progress. A leader waits twice, for
updates and for takers of the model, and must be done within its time."""


class SwarmExecutor(SegmentationExecutor):
    """Trains at one site of a swarm, whose server sees no model.

    The task ``train`` brings no weights: the site has the model of the round before, or fetches it from another site.
    The update goes through the filters of the result, the guard, the ledger and the record as in every job; then its
    arrays stay here, and the server gets its report alone. They leave when the site that leads the round asks for them,
    see ``PeerAnswers``. The task ``merge`` asks this site to lead, see ``Leading``.
    """

    def __init__(self, hooks: list[str] | None = None) -> None:
        """See ``SegmentationExecutor``."""
        super().__init__(hooks)
        self._peers: PeerAnswers | None = None
        self._rule: WeightedModel | None = None
        self._post: PeerPost | None = None
        self._task: Mapping[str, Any] = {}
        self._misplaced: RefusalError | None = None

    def tasks(self) -> Mapping[str, Answer]:
        known = super().tasks()
        kept = (PREPARE, AppConstants.TASK_TRAIN, AppConstants.TASK_VALIDATION)
        return {**{task: known[task] for task in kept}, MERGE: self._merge}

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Listen for calls of other sites, and keep an update's arrays here once everybody has looked at them."""
        if event_type == EventType.START_RUN:
            self._listen(fl_ctx)
        try:
            super().handle_event(event_type, fl_ctx)
        finally:
            # Also after an error, which FLARE swallows: it sends what is left in the result.
            trains = str(fl_ctx.get_prop(FLContextKey.TASK_NAME)) == AppConstants.TASK_TRAIN
            if event_type == EventType.BEFORE_SEND_TASK_RESULT and trains:
                with self.session.record.or_nothing("update"):
                    self._keep_here()

    def load_run(self, plan: Plan, run_id: str | None, fl_ctx: FLContext) -> SiteTrainer:
        """See ``SiteSession.load_run``.

        Raises:
            RefusalError: also where the policy lets no update go to other sites (``policy``), or FLARE does not prove
                who another site is (``privacy``).
        """
        if self._misplaced is not None:
            raise self._misplaced
        trainer = super().load_run(plan, run_id, fl_ctx)
        self._check_proved(fl_ctx.get_engine())
        profile = self.session.profile
        if profile is not None and not self.session.evaluates:
            check_peers(profile)
        if self._peers is None or self._peers.run != self.session.run_id:
            self._peers, self._rule = self._open(plan, trainer.site, fl_ctx), None
        return trainer

    def received(self, content: Any, meta: Mapping[str, Any], fl_ctx: FLContext) -> Arrays:
        """The model that the task names, from this site's own files or from another site."""
        self._task, peers, digest = meta, self._swarm, str(meta.get(HELD))
        others = [str(site) for site in meta.get(PEERS) or () if site != peers.site]
        self._check_named(digest, others)
        found = peers.model(digest)
        if found is None:
            found = self._fetch(digest, others)
        if (file := _FILES.get(str(meta.get(MODEL_NAME)))) is not None:
            kept, plan = peers.files.model_with(digest), job_plan(fl_ctx)
            own = private_arrays(plan) | layers_of_sites(sites_part(fl_ctx), plan)
            write_model(self.session.folder / file, plan, found, -1 if kept is None else kept.round, own)
        return found

    def held(self, digest: str) -> Arrays | None:
        """The model with a digest, if this site has it."""
        return self._swarm.model(digest)

    # ------------------------------------------------------------------ a run

    def _listen(self, fl_ctx: FLContext) -> None:
        """Answer the other sites of the job from now on."""
        engine, own = fl_ctx.get_engine(), fl_ctx.get_identity_name()
        gate = CallGate(str(fl_ctx.get_job_id()), partial(self._answer_call, engine), TOPIC)
        gate.only_sealed(self._sealed)
        try:
            places = places_of(engine.get_clients())
            gate.admit({site: place for site, place in places.items() if site != own})
        except RefusalError as error:
            # An event's handler cannot refuse a job: the first task does, and until then nobody's call is taken.
            self._misplaced = error
        self._post = PeerPost(engine, self._sealed)
        gate.listen(engine)

    def _sealed(self) -> bool:
        """Whether calls must be encrypted from site to site: everywhere but in a simulation without kits."""
        profile = self.session.profile
        return profile is None or not profile.simulated

    def _check_proved(self, engine: Any) -> None:
        if self._sealed():
            check_identities(engine)

    def _open(self, plan: Plan, site: str, fl_ctx: FLContext) -> PeerAnswers:
        if self._post is None:
            raise RefusalError("state", "This site has no connection to the other sites of the job.")
        engine, record, start = fl_ctx.get_engine(), self.session.record, initial_weights(plan, _initial(fl_ctx))
        blocks = SiteBlocks(self._ledger(site, fl_ctx), self.session.run_id, self._post)
        peers = PeerAnswers(blocks, PeerFiles(self.session.folder), start)

        def check() -> None:
            with engine.new_context() as context:
                check_peers(site_profile(context))

        peers.check, peers.handed = check, lambda number, to, what: record.handed(what, number, to)
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

    def _keep_here(self) -> None:
        """Keep the arrays of the update that is about to leave, and let its report leave alone."""
        result = self.session.record.result
        if result is None:
            return
        dxo, meta = from_shareable(result), self._task
        if not dxo.data:
            raise RefusalError("state", "The update has no arrays.")
        number = int(result.get_header(AppConstants.CURRENT_ROUND, -1))
        start, files = str(meta.get(START)), self._swarm.files
        files.go_back(number, start)
        keep = int(meta.get(KEEP, DEFAULT_KEEP))
        files.keep({str(each) for each in meta.get(WANTED) or ()} | {str(meta.get(HELD))}, keep + 1 if keep else 0)
        sites = tuple(str(site) for site in meta.get(PEERS) or ())
        files.save_update(HeldUpdate(number, start, sites, float(meta[TAKE_OVER]), dict(dxo.meta), dict(dxo.data)))
        dxo.data = {}
        dxo.meta.pop(MetaKey.PROCESSED_ALGORITHM, None)
        dxo.update_shareable(result)
        result.set_header(BYTES_UP, message_size(result))

    # ------------------------------------------------------------------ calls of other sites

    def _answer_call(self, engine: Any, caller: str, request: Shareable) -> Shareable:
        try:
            self._check_proved(engine)
            if self._peers is None:
                raise RefusalError("state", "This site has not opened the run yet.")
            return self._peers.answer(caller, read_peer_call(request)).to_shareable()
        except RefusalError as error:
            return refusal(error.reason, str(error))
        except Exception:
            logger.exception("A call of %s could not be answered", caller)
            return refusal("state", "The site could not answer the call. Its log says why.")

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
            self._rule.load(plan, RunPlace(folder, folder, _initial(fl_ctx)), Checkpoints(folder))
        leading = Leading(plan, self._rule, self._swarm, report_fields(fl_ctx))
        least, seconds = int(meta.get(LEAST_PEERS, 1)), float(meta[TAKE_OVER]) * _PATIENCE
        facts = leading.lead(MergeTask(number, start, str(meta.get(HELD)), parse_facts(meta), least, seconds))
        self.session.record.merged(number, meta, facts["digest"], facts["updates"])
        facts.pop("start")
        facts["missing"] = {site: self._tellable(text, plan) for site, text in facts["missing"].items()}
        return DXO(DataKind.METRICS, data=facts).to_shareable()

    def _tellable(self, text: str, plan: Plan) -> str:
        """What another site said, or that it cannot be told: the guard would else withhold the whole account for it."""
        if self.session.profile is None:
            return _UNTOLD
        try:
            check_text(text, self.session.profile, plan)
        except RefusalError:
            return _UNTOLD
        return text

    @property
    def _swarm(self) -> PeerAnswers:
        if self._peers is None:
            raise RefusalError("state", "The task came before the run was opened at this site.")
        return self._peers


def _initial(fl_ctx: FLContext) -> Path | None:
    """The model file that the job brings to start from, as this site has it."""
    folder = Path(fl_ctx.get_engine().get_workspace().get_app_config_dir(fl_ctx.get_job_id()))
    return folder / INITIAL_FILE if (folder / INITIAL_FILE).is_file() else None
