"""What the executors have in common whose updates go from site to site: calls of others, and updates that stay here."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import DXO, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

from fedseg.contract.allowed_job_files import INITIAL_FILE
from fedseg.contract.plan import Plan
from fedseg.contract.protocol import BYTES_UP, PREPARE
from fedseg.contract.shapes import private_arrays
from fedseg.errors import RefusalError
from fedseg.executors.peers.held_models import PeerModels
from fedseg.executors.peers.post import PeerPost, check_identities, places_of
from fedseg.executors.refusals import check_peers
from fedseg.executors.site_executor import Answer
from fedseg.executors.training import SegmentationExecutor
from fedseg.filters.guard.text import check_text
from fedseg.filters.layers import layers_of_sites
from fedseg.messages.calls.gate import CallGate
from fedseg.messages.calls.peer_call import TOPIC, read_peer_call
from fedseg.messages.job import site_profile, sites_part
from fedseg.messages.replies import refusal
from fedseg.messages.sizes import message_size
from fedseg.models.model_file import write_model
from fedseg.networks.weights import Arrays
from fedseg.training.trainer import SiteTrainer

logger = logging.getLogger(__name__)
_UNTOLD = "gave no update, or did not take the model, and said why in words that this site does not pass on"


class PeerExecutor(SegmentationExecutor):
    """Trains at one site of a job whose server sees no model.

    The update goes through the filters of the result, the guard, the ledger and the record as in every job; then its
    arrays stay here, and the server gets its report alone. What other sites get of them says a subclass.
    """

    def __init__(self, hooks: list[str] | None = None) -> None:
        """See ``SegmentationExecutor``."""
        super().__init__(hooks)
        self._peers: PeerModels | None = None
        self._post: PeerPost | None = None
        self._task: Mapping[str, Any] = {}
        self._misplaced: RefusalError | None = None

    @abstractmethod
    def _open(self, plan: Plan, site: str, fl_ctx: FLContext) -> PeerModels:
        """Open what this site has of the run."""

    @abstractmethod
    def _keep(self, number: int, update: DXO) -> None:
        """Keep the arrays of an update of a round, as they came out of the filters; its meta may be added to."""

    def tasks(self) -> Mapping[str, Answer]:
        known = super().tasks()
        return {task: known[task] for task in (PREPARE, AppConstants.TASK_TRAIN, AppConstants.TASK_VALIDATION)}

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
            self._peers = self._open(plan, trainer.site, fl_ctx)
        return trainer

    def held(self, digest: str) -> Arrays | None:
        """The model with a digest, if this site has it."""
        return self.peers.model(digest)

    @property
    def peers(self) -> PeerModels:
        """What this site has of the run, and answers to others.

        Raises:
            RefusalError: the run is not open (reason ``state``).
        """
        if self._peers is None:
            raise RefusalError("state", "The task came before the run was opened at this site.")
        return self._peers

    @property
    def post(self) -> PeerPost:
        """Carries calls to other sites.

        Raises:
            RefusalError: there is no connection (reason ``state``).
        """
        if self._post is None:
            raise RefusalError("state", "This site has no connection to the other sites of the job.")
        return self._post

    def watch(self, peers: PeerModels, fl_ctx: FLContext) -> None:
        """Have the policy asked before anything leaves for another site, and the record say that it does."""
        engine, record = fl_ctx.get_engine(), self.session.record

        def check() -> None:
            with engine.new_context() as context:
                check_peers(site_profile(context))

        peers.check, peers.handed = check, lambda number, to, what: record.handed(what, number, to)

    def write_own(self, file: str, plan: Plan, weights: Arrays, number: int, fl_ctx: FLContext) -> None:
        """Write a model that the run leaves at this site.

        Args:
            file: its name in the site's folder of the run.
            plan: of the job.
            weights: all parameters and buffers.
            number: of the round after which it was made; -1 for the start.
            fl_ctx: of the task.
        """
        own = private_arrays(plan) | layers_of_sites(sites_part(fl_ctx), plan)
        write_model(self.session.folder / file, plan, weights, number, own)

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

    def _keep_here(self) -> None:
        """Keep the arrays of the update that is about to leave, and let its report leave alone."""
        result = self.session.record.result
        if result is None:
            return
        dxo = from_shareable(result)
        if not dxo.data:
            raise RefusalError("state", "The update has no arrays.")
        self._keep(int(result.get_header(AppConstants.CURRENT_ROUND, -1)), dxo)
        dxo.data = {}
        dxo.meta.pop(MetaKey.PROCESSED_ALGORITHM, None)
        dxo.update_shareable(result)
        result.set_header(BYTES_UP, message_size(result))

    def _tellable(self, text: str, plan: Plan) -> str:
        """What another site said, or that it cannot be told: the guard would else withhold the whole account for it."""
        if self.session.profile is None:
            return _UNTOLD
        try:
            check_text(text, self.session.profile, plan)
        except RefusalError:
            return _UNTOLD
        return text


def initial_model(fl_ctx: FLContext) -> Path | None:
    """The model file that the job brings to start from, as this site has it."""
    folder = Path(fl_ctx.get_engine().get_workspace().get_app_config_dir(fl_ctx.get_job_id()))
    return folder / INITIAL_FILE if (folder / INITIAL_FILE).is_file() else None
