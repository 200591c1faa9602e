"""The executor of a site in split training: features of its patches out, gradients at them in."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch
from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fedseg.contract.plan import Plan
from fedseg.contract.protocol import RUN_ID, START
from fedseg.contract.report import SiteReport
from fedseg.errors import RefusalError
from fedseg.executors.policy_check import check_features, curves_leave
from fedseg.executors.split.answers import SplitAnswers
from fedseg.executors.training import SegmentationExecutor
from fedseg.messages.calls.call import PATIENCE, SECRET, read_call
from fedseg.messages.calls.desk import CallDesk
from fedseg.messages.calls.gate import CallGate
from fedseg.messages.job import job_plan
from fedseg.messages.replies import refusal
from fedseg.messages.sizes import message_size
from fedseg.messages.task_data import follow_server, received_arrays, update_message
from fedseg.site.policy import OPEN
from fedseg.tasks.segmentation.metrics import summarise
from fedseg.training.site_round import mean_loss
from fedseg.training.split.site_round import SplitSite
from fedseg.training.trainer import SiteTrainer

logger = logging.getLogger(__name__)
_NO_CALL = 600.0


class SplitExecutor(SegmentationExecutor):
    """Trains the first part of a network at one site; the rest is at the server.

    The task ``train`` starts a round: the site scores what it received, and then answers the server's direct calls
    until the server ends the round. What leaves in these calls (features; labels or gradients that tell them; gradients
    of the site's part with ``summed``, the part with ``handed_on``) passes no filter and no guard, so this executor is
    the gate: where the site has a policy, its rule ``features`` must be true, and a job whose updates are filtered is
    refused, since the filters would not see what leaves here. The site's record counts the calls of each round.
    """

    def __init__(self) -> None:
        """Take no hooks: they change the training of a whole network."""
        super().__init__()
        self._desk = CallDesk()
        self._answers: SplitAnswers | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Listen for direct calls from the start of the job's process."""
        if event_type == EventType.START_RUN:
            CallGate(str(fl_ctx.get_job_id()), self._called).open(fl_ctx.get_engine())
        super().handle_event(event_type, fl_ctx)

    def _called(self, request: Shareable) -> Shareable:
        try:
            return self._desk.take(read_call(request), message_size(request))
        except RefusalError as error:
            return refusal(error.reason, str(error))

    def _open(self, plan: Plan, run_id: str | None, fl_ctx: FLContext) -> SiteTrainer:
        trainer = super()._open(plan, run_id, fl_ctx)
        check_features(self._policy)
        if self._terms is not None and self._terms.filtered:
            raise RefusalError("privacy", "The job filters updates, but features and their gradients pass no filter.")
        if self._answers is None or self._answers.site.trainer is not trainer:
            self._answers = SplitAnswers(SplitSite(trainer))
        return trainer

    def _train(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        begin = time.perf_counter()
        model = FLModelUtils.from_shareable(shareable)
        trainer = self._open(job_plan(fl_ctx), model.meta.get(RUN_ID), fl_ctx)
        answers, number, received = self._split, int(model.current_round or 0), received_arrays(model.params)
        start, secret = str(model.meta.get(START)), _secret(shareable)
        follow_server(trainer.state, model.meta)
        self._record.received(received, number, model.meta, len(trainer.datalist.training), False)
        self._attach(trainer, number, received, model.meta, fl_ctx)
        with torch.random.fork_rng(devices=[]):
            scored = trainer.validate(answers.site.begin(number, received))
            answers.begin("train_loss" in (self._policy or OPEN).report_fields(self._guaranteed))
            try:
                patience = _patience(model.meta)
                ended = self._desk.serve(start, number, secret, answers.answer, patience, trainer.aborted)
            except Exception as error:
                # If the record cannot be written either, that is what the server is told.
                logger.error("The round has broken off: %s", error)
                raise
            finally:
                self._record.called(self._desk.tally.to_dict())
        if not ended:
            logger.warning("The server has not called for a long time; the round is over for this site.")
        update = answers.site.finish()
        report = SiteReport(
            num_samples=len(trainer.training_cases),
            num_steps=answers.site.steps,
            train_loss=answers.loss,
            val_loss=mean_loss(scored),
            val_dice=summarise([case.score for case in scored])["dice"],
            val_cases=len(scored),
            seconds=time.perf_counter() - begin,
            seconds_training=answers.seconds,
        )
        report = report.only((self._policy or OPEN).report_fields(self._guaranteed))
        if curves_leave(self._policy, self._guaranteed):
            self._send_curves(report, number, fl_ctx)
        return update_message(update, report, number)

    def _validate(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Score the server's part together with this site's own, where it has one."""
        dxo = from_shareable(shareable)
        self._open(job_plan(fl_ctx), dxo.meta.get(RUN_ID), fl_ctx)
        self._split.site.restore(2**31)
        dxo.data = self._split.site.joined(received_arrays(dxo.data))
        return super()._validate(dxo.update_shareable(shareable), fl_ctx)

    @property
    def _split(self) -> SplitAnswers:
        if self._answers is None:
            raise RefusalError("state", "The task came before the run was opened at this site.")
        return self._answers


def _secret(task: Shareable) -> str:
    found = task.get_header(SECRET)
    if not isinstance(found, str) or not found:
        raise RefusalError("state", "The task brings no secret by which the server's calls are known.")
    return found


def _patience(meta: Mapping[str, Any]) -> float:
    found = meta.get(PATIENCE)
    return float(found) if isinstance(found, int | float) and found > 0 else _NO_CALL
