"""The executor of a site in split training: features of its patches out, gradients at them in."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fedseg.contract.plan import Plan
from fedseg.contract.protocol import RUN_ID, START
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.executors.disclosures import FEATURES
from fedseg.executors.refusals import check_features
from fedseg.executors.site_executor import SiteExecutor
from fedseg.executors.split.answers import SplitAnswers
from fedseg.messages.calls.call import PATIENCE, SECRET, read_call
from fedseg.messages.calls.desk import CallDesk
from fedseg.messages.calls.gate import CallGate
from fedseg.messages.calls.roster import Roster, read_roster
from fedseg.messages.job import job_plan
from fedseg.messages.replies import refusal
from fedseg.messages.sizes import message_size
from fedseg.messages.task_data import follow_server, received_arrays
from fedseg.networks.weights import Arrays
from fedseg.training.site_round import report_round
from fedseg.training.split.site_round import SplitSite
from fedseg.training.trainer import SiteTrainer

logger = logging.getLogger(__name__)
_NO_CALL = 600.0


class SplitExecutor(SiteExecutor):
    """Trains the first part of a network at one site; the rest is at the server.

    The task ``train`` starts a round: the site scores what it received, and then answers the server's direct calls
    until the server ends the round. What leaves in these calls (features; labels or gradients that tell them; gradients
    of the site's part with ``summed``, the part with ``handed_on``) passes no filter and no guard, so this executor is
    the gate: where the site has a policy, its rule ``features`` must be true, and a job whose updates are filtered is
    refused, since the filters would not see what leaves here. The site's record counts the calls of each round.
    """

    def __init__(self, hooks: list[str] | None = None) -> None:
        """Refuse hooks of a job.

        Args:
            hooks: without a meaning here; must be left out.

        Raises:
            ConfigurationError: there are some.
        """
        super().__init__()
        if hooks:
            why = "Local objectives change the training of a whole network."
            raise ConfigurationError("executor.hooks", hooks, "left out in split training", why)
        self._desk = CallDesk()
        self._answers: SplitAnswers | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Listen for direct calls from the start of the job's process."""
        if event_type == EventType.START_RUN:
            CallGate(str(fl_ctx.get_job_id()), self._answer_call).listen(fl_ctx.get_engine())
        super().handle_event(event_type, fl_ctx)

    def load_run(self, plan: Plan, run_id: str | None, fl_ctx: FLContext) -> SiteTrainer:
        """See ``SiteSession.load_run``.

        Raises:
            RefusalError: also where the policy lets no features out (``policy``), or the job filters updates
                (``privacy``).
        """
        trainer = super().load_run(plan, run_id, fl_ctx)
        if self.session.evaluates:
            raise RefusalError("state", "In split training a site that does not train has no part of the network.")
        check_features(self.session.policy)
        if self.session.terms is not None and self.session.terms.filtered:
            raise RefusalError("privacy", "The job filters updates, but features and their gradients pass no filter.")
        if self._answers is None or self._answers.site.trainer is not trainer:
            self._answers = SplitAnswers(SplitSite(trainer))
        return trainer

    def train(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Answer the server's calls until it ends the round; the update is the site's part where sites share one."""
        begin, session = time.perf_counter(), self.session
        model = FLModelUtils.from_shareable(shareable)
        trainer = self.load_run(job_plan(fl_ctx), model.meta.get(RUN_ID), fl_ctx)
        answers, number, received = self._split, int(model.current_round or 0), received_arrays(model.params)
        roster = read_roster(shareable.get_header(SECRET))
        follow_server(trainer.state, model.meta, trainer.site)
        session.record.received(received, number, model.meta, trainer.count("training"), False)
        session.attach(trainer, number, received, model.meta, fl_ctx)
        session.enter(FEATURES, number, fl_ctx)
        with torch.random.fork_rng(devices=[]):
            scored = trainer.validate(answers.site.begin(number, received))
            self._serve(answers, model, roster)
        update = answers.site.finish()
        report = report_round(trainer, scored, answers.site.steps, answers.loss, begin, answers.seconds)
        return self.reply(update, session.permitted(report), number, fl_ctx)

    def whole_model(self, received: Arrays) -> Arrays:
        """The server's part together with this site's own, where it has one."""
        self._split.site.restore(2**31)
        return self._split.site.joined(received)

    def _serve(self, answers: SplitAnswers, task: FLModel, roster: Roster) -> None:
        """Answer the calls of a round, and enter them in the record."""
        session = self.session
        answers.begin("train_loss" in session.policy.report_fields(session.guaranteed))
        start, number, patience = str(task.meta.get(START)), int(task.current_round or 0), _patience(task.meta)
        try:
            ended = self._desk.serve(start, number, roster, answers.answer, patience, answers.site.trainer.aborted)
        except Exception as error:
            # If the record cannot be written either, that is what the server is told.
            logger.error("The round has broken off: %s", error)
            raise
        finally:
            session.record.called(self._desk.tally.to_dict())
        if not ended:
            logger.warning("The server has not called for a long time; the round is over for this site.")

    def _answer_call(self, caller: str, request: Shareable) -> Shareable:
        try:
            return self._desk.receive(read_call(request, caller), message_size(request))
        except RefusalError as error:
            return refusal(error.reason, str(error))

    @property
    def _split(self) -> SplitAnswers:
        if self._answers is None:
            raise RefusalError("state", "The task came before the run was opened at this site.")
        return self._answers


def _patience(meta: Mapping[str, Any]) -> float:
    found = meta.get(PATIENCE)
    return float(found) if isinstance(found, int | float) and found > 0 else _NO_CALL
