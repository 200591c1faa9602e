"""The executor of a site: FLARE's tasks in, weight differences and scores out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.analytix import AnalyticsDataType, LogWriterName
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.apis.utils.analytix_utils import create_analytic_dxo, send_analytic_dxo
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fedseg.contract.plan import Plan
from fedseg.contract.protocol import (
    BYTES_DOWN,
    BYTES_UP,
    MODEL_NAME,
    PLAN_DIGEST,
    PREPARE,
    REASON,
    RUN_ID,
    SPLITS,
    START,
    STATISTICS,
    TEXT,
    TOTALS,
    UPLOAD,
)
from fedseg.contract.report import SiteReport, declared_fields
from fedseg.contract.round_settings import parse_round_settings
from fedseg.errors import AbortedError, ConfigurationError, DataError, FedsegError, RefusalError
from fedseg.executors.admission import admit_data, check_plan, check_version
from fedseg.executors.job_identity import job_fingerprint
from fedseg.executors.policy_check import (
    JobTerms,
    check_cases,
    check_job,
    check_statistics,
    check_submission,
    curves_leave,
    job_terms,
)
from fedseg.executors.site_record import SiteRecord
from fedseg.filters.base import hooks_of, own_names
from fedseg.filters.chain import update_chain
from fedseg.filters.context import SiteContext, patients_of
from fedseg.filters.encrypt import encrypts
from fedseg.filters.guard.guard import CURVES
from fedseg.memory import give_back
from fedseg.messages.job import job_name, job_plan, site_profile
from fedseg.messages.job_facts import job_facts
from fedseg.messages.replies import refusal
from fedseg.messages.sizes import message_size
from fedseg.messages.task_data import follow_server, received_arrays, update_message
from fedseg.networks.weights import Arrays
from fedseg.site.case_scores import write_case_scores
from fedseg.site.held_update import held, hold, largest, weight_facts
from fedseg.site.policy import OPEN, SitePolicy
from fedseg.site.profile import SiteProfile
from fedseg.site.state import SiteState, claim
from fedseg.tasks.segmentation.metrics import ScoredCase, summarise
from fedseg.training.hooks import TrainingHook
from fedseg.training.site_round import empty_round, mean_loss, site_round
from fedseg.training.trainer import SiteTrainer, TrainerSetup

logger = logging.getLogger(__name__)
_CODES = {"weights": ReturnCode.BAD_TASK_DATA, "loss": ReturnCode.EXECUTION_RESULT_ERROR}


class SegmentationExecutor(Executor):
    """Trains and validates at one site.

    Tasks: ``prepare`` (accept the job or refuse it), ``train``, ``validate`` and ``submit_model``; in jobs that encrypt
    updates also ``upload``, until which the update of a round waits on the site's own disk. Everything that is trained
    stands in the job's plan file; where data and state are stands in the site's own profile.
    """

    def __init__(self, hooks: list[str] | None = None) -> None:
        """Take the hooks of the job's method.

        Args:
            hooks: ids of components of the job that are training hooks, in the order in which they are called; see
                ``fedseg.training.hooks``. (FLARE does not build components that stand in a list.)

        Raises:
            ConfigurationError: ``hooks`` is not a list of ids.
        """
        super().__init__()
        if not all(isinstance(hook, str) for hook in hooks or []):
            raise ConfigurationError("executor.hooks", hooks, "a list of component ids")
        self.hooks = list(hooks or [])
        self._trainer: SiteTrainer | None = None
        self._run_id = ""
        self._profile: SiteProfile | None = None
        self._terms: JobTerms | None = None
        self._abort: Signal | None = None
        self._bytes_down = 0
        self._record = SiteRecord()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Count bytes where they are what the wire carries: before the task's filters and after the result's.

        What leaves is entered in the site's record once the guard has seen it too.
        """
        if event_type == EventType.BEFORE_TASK_DATA_FILTER:
            self._record.begin()
            self._bytes_down = message_size(fl_ctx.get_prop(FLContextKey.TASK_DATA))
        elif event_type == EventType.AFTER_TASK_RESULT_FILTER:
            result = fl_ctx.get_prop(FLContextKey.TASK_RESULT)
            if isinstance(result, Shareable):
                result.set_header(BYTES_DOWN, self._bytes_down)
                result.set_header(BYTES_UP, message_size(result))
                self._record.leaving(result)
        elif event_type == EventType.BEFORE_SEND_TASK_RESULT:
            task = str(fl_ctx.get_prop(FLContextKey.TASK_NAME))
            workspace = fl_ctx.get_engine().get_workspace()
            site, facts = fl_ctx.get_identity_name(), partial(job_facts, fl_ctx, workspace)
            self._record.sent(task, self._state_folder(fl_ctx), site, facts)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Do one task; every failure becomes a reply with a return code and a reason free of files and patients."""
        tasks: dict[str, Callable[[Shareable, FLContext], Shareable]] = {
            PREPARE: self._prepare,
            AppConstants.TASK_TRAIN: self._train,
            UPLOAD: self._upload,
            AppConstants.TASK_VALIDATION: self._validate,
            AppConstants.TASK_SUBMIT_MODEL: self._submit_model,
        }
        if task_name not in tasks:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        if reason := shareable.get_header(REASON):
            # A filter of the task's data could not do its work.
            return refusal(str(reason), str(shareable.get_header(TEXT)), ReturnCode.TASK_DATA_FILTER_ERROR)
        self._abort = abort_signal
        try:
            return tasks[task_name](shareable, fl_ctx)
        except AbortedError:
            return make_reply(ReturnCode.TASK_ABORTED)
        except RefusalError as error:
            logger.error("Refused (%s): %s", error.reason, error)
            return refusal(error.reason, str(error), _CODES.get(error.reason, ReturnCode.BAD_REQUEST_DATA))
        except FedsegError as error:
            logger.error("%s", error)
            reason = "data" if isinstance(error, DataError) else "configuration"
            return refusal(
                reason, f"The site's {reason} cannot be used; its own log says why.", ReturnCode.EXECUTION_EXCEPTION
            )
        except Exception as error:
            logger.exception("The task %s failed", task_name)
            text = f"An unexpected {type(error).__name__} stopped the task; the site's own log has the details."
            return refusal("error", text, ReturnCode.EXECUTION_EXCEPTION)
        finally:
            give_back()

    def _prepare(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        plan = job_plan(fl_ctx)
        check_version(plan)
        meta = from_shareable(shareable).meta
        check_plan(plan, meta.get(PLAN_DIGEST))
        trainer = self._open(plan, meta.get(RUN_ID), fl_ctx)
        counts = {split: len(trainer.datalist.split(split)) for split in ("training", "validation", "test")}
        logger.info("Job accepted: %s, plan %s", counts, plan.digest[:12])
        statistics = trainer.statistics()
        check_statistics(self._guaranteed, statistics)
        workspace = fl_ctx.get_engine().get_workspace()
        self._record.accepted(job_facts(fl_ctx, workspace), plan.digest, counts)
        answer = {**counts, STATISTICS: statistics} if statistics else counts
        return DXO(DataKind.METRICS, data=answer).to_shareable()

    def _train(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        model = FLModelUtils.from_shareable(shareable)
        trainer = self._open(job_plan(fl_ctx), model.meta.get(RUN_ID), fl_ctx)
        received = received_arrays(model.params)
        round_number, total = int(model.current_round or 0), max(1, int(model.total_rounds or 1))
        follow_server(trainer.state, model.meta)
        apart, cases = encrypts(fl_ctx), len(trainer.datalist.training)
        self._record.received(received, round_number, model.meta, cases, apart)
        self._attach(trainer, round_number, received, model.meta, fl_ctx)
        try:
            settings = parse_round_settings(model.meta)
            update, report = site_round(trainer, received, round_number, total, model.meta.get(TOTALS), settings)
        except RefusalError as error:
            if not (self._guaranteed and error.reason == "loss"):
                raise
            # To refuse would tell something of the data, outside of the guarantee and as often as the server likes.
            logger.error("The round could not be trained (%s); an update of zeros is sent in its place.", error)
            update, report = empty_round(trainer, received)
        report = replace(report, largest=largest(update) if apart else None)
        report = report.only((self._policy or OPEN).report_fields(self._guaranteed, declared_fields(trainer.hooks)))
        if curves_leave(self._policy, self._guaranteed):
            self._send_curves(report, round_number, fl_ctx)
        if apart:
            hold(self._folder, round_number, model.meta.get(START), update, report)
            update = {}
        return update_message(update, report, round_number)

    def _upload(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The update of the round, now that the server has said what it weighs; the job's filters encrypt it."""
        task = FLModelUtils.from_shareable(shareable)
        trainer = self._open(job_plan(fl_ctx), task.meta.get(RUN_ID), fl_ctx)
        if not encrypts(fl_ctx):
            raise RefusalError("privacy", "The job has no filter that encrypts, so the update stays at this site.")
        number, weights = int(task.current_round or 0), task.metrics or {}
        self._record.belongs_to(number, task.meta)
        update, report = held(self._folder, number, task.meta.get(START))
        meta = {**task.meta, **weight_facts(weights, trainer.site)}
        self._attach(trainer, number, {}, meta, fl_ctx)
        return update_message(update, report, number)

    def _validate(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Score a model: per split asked for, summaries over the site's cases; single cases stay at the site."""
        dxo = from_shareable(shareable)
        trainer = self._open(job_plan(fl_ctx), dxo.meta.get(RUN_ID), fl_ctx)
        received = received_arrays(dxo.data)
        weights = trainer.personal(received)
        splits = {s: trainer.datalist.final_split if s == "final" else s for s in dxo.meta.get(SPLITS, ["validation"])}
        scored: dict[str, list[ScoredCase]] = {}
        for split in dict.fromkeys(splits.values()):
            scored[split] = trainer.validate(weights, split, distances=True)
        name = str(dxo.meta.get(MODEL_NAME, "model"))
        cases = {split: len(scores) for split, scores in scored.items()}
        self._record.scored(name, received, dxo.meta, cases, encrypts(fl_ctx))
        if self._profile is not None and trainer.state is not None:
            write_case_scores(trainer.state.folder, name, trainer.datalist, scored)
        if not (self._policy or OPEN).scores_leave(self._guaranteed):
            split = trainer.datalist.final_split
            withheld = {"split": split, "cases": len(trainer.datalist.split(split)), "withheld": True}
            return DXO(DataKind.METRICS, data={"final": withheld}).to_shareable()
        data = {
            asked: {
                "split": split,
                "loss": _finite(mean_loss(scored[split])),
                **summarise([c.score for c in scored[split]]),
            }
            for asked, split in splits.items()
        }
        return DXO(DataKind.METRICS, data=data).to_shareable()

    def _submit_model(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """This site's own weights after its last finished round, for FLARE's cross-site evaluation."""
        state = self._open(job_plan(fl_ctx), from_shareable(shareable).meta.get(RUN_ID), fl_ctx).state
        check_submission(self._policy, self._terms)
        saved = state.load(2**31) if state is not None else None
        if saved is None:
            raise RefusalError("weights", "This site has trained no model yet.")
        weights = {name: value.numpy() for name, value in saved["network"].items()}
        return DXO(DataKind.WEIGHTS, data=weights).to_shareable()

    def _open(self, plan: Plan, run_id: str | None, fl_ctx: FLContext) -> SiteTrainer:
        """The trainer of this run, built at the first task after each start of the process.

        The site's policy is asked before every task: it may have changed since the last one.
        """
        check_version(plan)
        self._profile = site_profile(fl_ctx)
        self._terms = job_terms(plan, fl_ctx)
        check_job(self._policy, self._terms)
        if self._trainer is None or (run_id and run_id != self._run_id):
            self._run_id = run_id or fl_ctx.get_job_id()
            claim(self._profile.state, fl_ctx.get_identity_name())
            state = SiteState(self._profile.state, self._run_id)
            self._record.close()
            state.bind(job_fingerprint(plan, fl_ctx))
            self._record.open(state.folder, fl_ctx.get_identity_name())
            chain = update_chain(fl_ctx)
            private, frozen = own_names(chain, plan)
            self._trainer = SiteTrainer(
                plan,
                fl_ctx.get_identity_name(),
                admit_data(plan, self._profile),
                TrainerSetup(
                    state=state,
                    device=self._profile.device,
                    cache=self._profile.cache,
                    hooks=[*(_hook(name, fl_ctx) for name in self.hooks), *hooks_of(chain)],
                    private=private,
                    frozen=frozen,
                    simulated=self._profile.simulated,
                    aborted=lambda: bool(self._abort and self._abort.triggered),
                ),
            )
            torch.set_num_threads(plan.training.threads)
        check_cases(self._policy, len(self._trainer.datalist.training))
        return self._trainer

    def _state_folder(self, fl_ctx: FLContext) -> Path | None:
        """Where this site keeps its state, also before a run was opened; None where its profile cannot be read."""
        try:
            return (self._profile or site_profile(fl_ctx)).state
        except FedsegError:
            return None

    @property
    def _folder(self) -> Path:
        """This site's folder of the run."""
        if self._profile is None:
            raise RefusalError("state", "The task came before the run was opened at this site.")
        return self._profile.state / self._run_id

    @property
    def _policy(self) -> SitePolicy | None:
        return self._profile.policy if self._profile is not None else None

    @property
    def _guaranteed(self) -> bool:
        """Whether the job computes a formal guarantee for this site, which then tells nothing besides."""
        return self._terms is not None and self._terms.guaranteed

    def _attach(
        self, trainer: SiteTrainer, round_number: int, received: Arrays, meta: Mapping[str, Any], fl_ctx: FLContext
    ) -> None:
        """Tell the filters of the result what it was made from."""
        if self._profile is not None:
            context = SiteContext(
                site=trainer.site,
                job=job_name(fl_ctx),
                plan=trainer.plan,
                run_id=self._run_id,
                round_number=round_number,
                profile=self._profile,
                patients=patients_of(trainer.datalist),
                global_weights=received,
                task_meta={k: v for k, v in meta.items() if isinstance(v, str | bool | int | float | list)},
                trainer=trainer,
            )
            context.attach(fl_ctx)
            for item in update_chain(fl_ctx):
                item.before_task(context)

    def _send_curves(self, report: SiteReport, round_number: int, fl_ctx: FLContext) -> None:
        """TensorBoard curves of this site, sent to the server as FLARE's federated events, which the guard sees."""
        curves: dict[str, float | None] = {"train_loss": report.train_loss, "val_loss": report.val_loss}
        curves.update({f"val_dice/{region}": value for region, value in report.val_dice.items()})
        for tag, value in curves.items():
            if value is not None:
                dxo = create_analytic_dxo(
                    tag, value, AnalyticsDataType.SCALAR, LogWriterName.TORCH_TB, global_step=round_number
                )
                send_analytic_dxo(self, dxo, fl_ctx, CURVES, fire_fed_event=True)


def _hook(name: str, fl_ctx: FLContext) -> TrainingHook:
    hook = fl_ctx.get_engine().get_component(name)
    if not isinstance(hook, TrainingHook):
        raise ConfigurationError("executor.hooks", name, "the id of a component that is a training hook")
    return hook


def _finite(loss: float | None) -> float | None:
    """A loss that is none any more is not sent: the Dice beside it still counts."""
    return loss if loss is not None and math.isfinite(loss) else None
