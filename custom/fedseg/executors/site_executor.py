"""What the executors of a site have in common: tasks in, replies out, and a line in the record for each."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

from fedseg.contract.plan import Plan
from fedseg.contract.protocol import (
    BYTES_DOWN,
    BYTES_UP,
    EVALUATE,
    EVALUATES,
    OUTSIDE,
    OWN_MODEL,
    PHANTOMS,
    PLAN_DIGEST,
    PREPARE,
    REASON,
    RUN_ID,
    STATISTICS,
    TEXT,
)
from fedseg.contract.report import SiteReport
from fedseg.contract.scores import PERSONAL
from fedseg.errors import AbortedError, DataError, FedsegError, RefusalError
from fedseg.executors.admission import check_plan, check_version
from fedseg.executors.curves import send_curves
from fedseg.executors.disclosures import CURVES, splits_of, without_guarantee
from fedseg.executors.refusals import check_gift, check_statistics, check_submission
from fedseg.executors.scoring import score_model
from fedseg.executors.site_session import SiteSession
from fedseg.memory import give_back
from fedseg.messages.array_headers import read_one_at_a_time
from fedseg.messages.job import job_plan
from fedseg.messages.job_facts import job_facts
from fedseg.messages.replies import refusal, why
from fedseg.messages.sizes import message_size
from fedseg.messages.task_data import expect_state, received_arrays, update_message
from fedseg.networks.weights import Arrays
from fedseg.training.trainer import SiteTrainer

logger = logging.getLogger(__name__)
Answer = Callable[[Shareable, FLContext], Shareable]
_OF_EVALUATORS = (PREPARE, AppConstants.TASK_VALIDATION)
_CODES = {"weights": ReturnCode.BAD_TASK_DATA, "loss": ReturnCode.EXECUTION_RESULT_ERROR}


class SiteExecutor(Executor, ABC):
    """Answers ``prepare``, ``validate`` and ``submit_model``; a subclass says how it trains.

    Attributes:
        session: what the site has loaded for the run.
    """

    def __init__(self, hooks: Sequence[str] = ()) -> None:
        super().__init__()
        read_one_at_a_time()
        self.session = SiteSession(hooks)
        self._bytes_down = 0

    @abstractmethod
    def train(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Answer the task ``train``: one round of training."""

    def tasks(self) -> Mapping[str, Answer]:
        """What is called for each task, by the task's name."""
        return {
            PREPARE: self._prepare,
            AppConstants.TASK_TRAIN: self.train,
            AppConstants.TASK_VALIDATION: self._validate,
            AppConstants.TASK_SUBMIT_MODEL: self._submit_model,
        }

    def load_run(self, plan: Plan, run_id: str | None, fl_ctx: FLContext) -> SiteTrainer:
        """See ``SiteSession.load_run``; a subclass may refuse more."""
        return self.session.load_run(plan, run_id, fl_ctx)

    def received(self, content: Any, meta: Mapping[str, Any], fl_ctx: FLContext) -> Arrays:
        """The arrays that a task brings.

        Args:
            content: of the task.
            meta: of the task.
            fl_ctx: of the task.

        Raises:
            RefusalError: there are none (reason ``weights``).
        """
        return received_arrays(content)

    def whole_model(self, received: Arrays) -> Arrays:
        """The whole network's weights from what a task ``validate`` carries."""
        return received

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Count bytes where they are what the wire carries: before the task's filters and after the result's.

        What leaves is entered in the site's record once the guard has seen it too, and where no guarantee covers it, in
        the ledger before that.
        """
        record = self.session.record
        if event_type == EventType.BEFORE_TASK_DATA_FILTER:
            record.begin()
            self._bytes_down = message_size(fl_ctx.get_prop(FLContextKey.TASK_DATA))
        elif event_type == EventType.AFTER_TASK_RESULT_FILTER:
            result = fl_ctx.get_prop(FLContextKey.TASK_RESULT)
            if isinstance(result, Shareable):
                result.set_header(BYTES_DOWN, self._bytes_down)
                result.set_header(BYTES_UP, message_size(result))
                record.leaving(result)
        elif event_type == EventType.BEFORE_SEND_TASK_RESULT:
            task = str(fl_ctx.get_prop(FLContextKey.TASK_NAME))
            workspace = fl_ctx.get_engine().get_workspace()
            site, facts = fl_ctx.get_identity_name(), partial(job_facts, fl_ctx, workspace)
            with record.or_nothing("ledger"):
                self._enter(task, fl_ctx)
            record.sent(task, self.session.state_folder(fl_ctx), site, facts)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Do one task; every failure becomes a reply with a return code and a reason free of files and patients."""
        tasks = self.tasks()
        if task_name not in tasks:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        if reason := shareable.get_header(REASON):
            # A filter of the task's data could not do its work.
            return refusal(str(reason), str(shareable.get_header(TEXT)), ReturnCode.TASK_DATA_FILTER_ERROR)
        self.session.abort = abort_signal
        try:
            if task_name not in _OF_EVALUATORS:
                self.session.check_trains(fl_ctx)
            return tasks[task_name](shareable, fl_ctx)
        except AbortedError:
            return make_reply(ReturnCode.TASK_ABORTED)
        except Exception as error:
            return _failure(task_name, error)
        finally:
            give_back()

    def reply(self, update: Arrays, report: SiteReport, round_number: int, fl_ctx: FLContext) -> Shareable:
        """The result of a round: its update and what may be told of it; curves leave beside it."""
        if report.fresh_state:
            self.session.record.lost()
        if self.session.curves_leave:
            self.session.enter(CURVES, round_number, fl_ctx)
            send_curves(self, report, job_plan(fl_ctx).objective.primary, round_number, fl_ctx)
        return update_message(update, report, round_number)

    def _enter(self, task: str, fl_ctx: FLContext) -> None:
        """Enter the result of a task in the ledger where no guarantee covers it."""
        session, result = self.session, self.session.record.result
        if result is None:
            return
        hooks = () if session.trainer is None else session.trainer.hooks
        for what in without_guarantee(task, result, fl_ctx, hooks):
            number = int(result.get_header(AppConstants.CURRENT_ROUND, -1))
            session.enter(what, number, fl_ctx, splits_of(task, result))

    def _prepare(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Accept the job or refuse it; the answer counts the site's cases by split."""
        plan = job_plan(fl_ctx)
        check_version(plan)
        meta = from_shareable(shareable).meta
        check_plan(plan, meta.get(PLAN_DIGEST))
        self.session.asked_to_evaluate = _is_left_out(meta, fl_ctx)
        trainer = self.load_run(plan, meta.get(RUN_ID), fl_ctx)
        counts = {split: trainer.count(split) for split in ("training", "validation", "test")}
        logger.info("Job accepted: %s, plan %s", counts, plan.digest[:12])
        statistics = {} if self.session.evaluates else trainer.statistics()
        if self.session.evaluates:
            # The number of cases comes with their scores, if these may be told at all.
            counts = {}
        check_statistics(self.session.guaranteed, statistics)
        workspace = fl_ctx.get_engine().get_workspace()
        self.session.record.accepted(job_facts(fl_ctx, workspace), plan.digest, counts)
        answer: dict[str, Any] = dict(counts) or {EVALUATES: True}
        if statistics:
            answer[STATISTICS] = statistics
        if trainer.datalist.phantoms:
            answer[PHANTOMS] = True
        return DXO(DataKind.METRICS, data=answer).to_shareable()

    def _validate(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Score a model on the splits asked for."""
        dxo = from_shareable(shareable)
        if EVALUATE in dxo.meta:
            # This process may have been started anew, and then was told nothing before.
            self.session.asked_to_evaluate = _is_left_out(dxo.meta, fl_ctx)
        trainer = self.load_run(job_plan(fl_ctx), dxo.meta.get(RUN_ID), fl_ctx)
        expect_state(trainer.state, dxo.meta, trainer.site)
        received = self.whole_model(self.received(dxo.data, dxo.meta, fl_ctx))
        return score_model(self.session, trainer, received, dxo.meta, fl_ctx)

    def _submit_model(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """This site's own weights after its last finished round, or its personal ones: for a cross-site evaluation, or
        for the run to keep."""
        meta = from_shareable(shareable).meta
        trainer, which = self.load_run(job_plan(fl_ctx), meta.get(RUN_ID), fl_ctx), meta.get(OWN_MODEL)
        if which == OUTSIDE:
            check_gift(self.session.policy, self.session.terms)
        else:
            check_submission(self.session.policy, self.session.terms, which == PERSONAL)
        if which in (OUTSIDE, PERSONAL):
            weights = trainer.personal_model()
            if weights is None:
                raise RefusalError("weights", "This site keeps no personal model.")
            return DXO(DataKind.WEIGHTS, data=weights, meta={OWN_MODEL: which}).to_shareable()
        saved = trainer.state.load(2**31) if trainer.state is not None else None
        if saved is None:
            raise RefusalError("weights", "This site has trained no model yet.")
        weights = {name: value.cpu().numpy() for name, value in saved["network"].items()}
        return DXO(DataKind.WEIGHTS, data=weights).to_shareable()


def _is_left_out(meta: Mapping[str, Any], fl_ctx: FLContext) -> bool:
    """Whether the job asks this site to score models only."""
    return fl_ctx.get_identity_name() in (meta.get(EVALUATE) or ())


def _failure(task: str, error: Exception) -> Shareable:
    """The reply to a task that failed: a reason, and nothing that could name a file or a patient."""
    if isinstance(error, RefusalError):
        logger.error("Refused (%s): %s", error.reason, error)
        return refusal(error.reason, str(error), _CODES.get(error.reason, ReturnCode.BAD_REQUEST_DATA))
    if isinstance(error, FedsegError):
        logger.error("%s", error)
        reason = "data" if isinstance(error, DataError) else "configuration"
        text = f"The site's {reason} cannot be used; its own log says why."
        return refusal(reason, text, ReturnCode.EXECUTION_EXCEPTION)
    logger.error("The task %s failed", task, exc_info=error)
    text = f"An unexpected {type(error).__name__} stopped the task; the site's own log has the details."
    return refusal("error", why(error, text), ReturnCode.EXECUTION_EXCEPTION)
