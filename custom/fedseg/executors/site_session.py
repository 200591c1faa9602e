"""What a site has loaded for a run; every kind of executor has one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal

from fedseg.contract.plan import Plan
from fedseg.contract.protocol import STATISTICS
from fedseg.contract.report import SiteReport, declared_fields, tells_scores
from fedseg.contract.scores import few
from fedseg.errors import ConfigurationError, FedsegError, RefusalError
from fedseg.executors.admission import admit_data, check_version
from fedseg.executors.disclosures import MODELLED
from fedseg.executors.job_identity import job_fingerprint
from fedseg.executors.refusals import JobTerms, check_cases, check_job, check_trains, curves_leave, job_terms
from fedseg.executors.site_record import SiteRecord
from fedseg.filters.base import hooks_of, own_names
from fedseg.filters.chain import update_chain
from fedseg.filters.context import SiteContext, patients_of
from fedseg.messages.job import check_job_files, job_name, site_profile
from fedseg.networks.weights import Arrays
from fedseg.privacy.accounting.ledger import Ledger
from fedseg.site.policy import OPEN, SitePolicy
from fedseg.site.profile import SiteProfile
from fedseg.site.state import SiteState, claim
from fedseg.training.hooks import TrainingHook
from fedseg.training.trainer import SiteTrainer, TrainerSetup, check_groups


class SiteSession:
    """A site's profile and policy, what the job asks of it, its trainer, and its record of the run.

    Every executor owns one. The trainer is built at the first task after each start of the process; profile and policy
    are read again at every task, since they may change while a job runs.

    >>> session = SiteSession(hooks=["prox"])
    >>> session.trainer, session.policy.features, session.guaranteed
    (None, True, False)

    Attributes:
        hooks: ids of the job's components that are training hooks.
        record: the site's record of this run.
        profile: of the site; None before the first task.
        terms: what the job asks; None before the first task.
        trainer: of the run; None before the first task.
        run_id: keys the site's state.
        asked_to_evaluate: whether the job asks this site to score models only, see ``evaluates``.
        abort: FLARE's signal of the present task.
    """

    def __init__(self, hooks: Sequence[str] = ()) -> None:
        self.hooks, self.record = list(hooks), SiteRecord()
        self.profile: SiteProfile | None = None
        self.terms: JobTerms | None = None
        self.trainer: SiteTrainer | None = None
        self.run_id, self.asked_to_evaluate = "", False
        self.abort: Signal | None = None

    def load_run(self, plan: Plan, run_id: str | None, fl_ctx: FLContext) -> SiteTrainer:
        """Check the job against the site's policy, and return the trainer of the run; a new run gets a new trainer.

        Args:
            plan: of the job.
            run_id: from the task; without one it is FLARE's id of the job.
            fl_ctx: of the task.

        Raises:
            RefusalError: the site does not take part (reasons ``version``, ``policy``, ``state``, ``data``, ``task``).
            ConfigurationError: the site's profile or the job is wrong.
        """
        check_version(plan)
        self.profile = site_profile(fl_ctx)
        self.terms = job_terms(plan, fl_ctx)
        check_job(self.profile.policy, self.terms)
        if self.trainer is None or (run_id and run_id != self.run_id):
            self.run_id, self.trainer = run_id or fl_ctx.get_job_id(), None
            self.trainer = self._new_trainer(plan, self.profile, fl_ctx)
        self.trainer.least_scored = self.policy.min_scored_cases
        if not self.evaluates:
            check_cases(self.profile.policy, self.trainer.count("training"))
        return self.trainer

    @property
    def evaluates(self) -> bool:
        """Whether this site scores models only, by its own policy or since the job leaves it out of the training."""
        return self.policy.evaluate_only or self.asked_to_evaluate

    def check_trains(self, fl_ctx: FLContext) -> None:
        """Refuse a task that is not answered by counts or scores, where the site scores models only.

        Raises:
            RefusalError: rule ``evaluate_only`` of the policy (``policy``), or the job asked for it before (``state``).
        """
        check_trains(site_profile(fl_ctx).policy, self.asked_to_evaluate)

    @property
    def policy(self) -> SitePolicy:
        """The site's policy; one that forbids nothing where the site has none."""
        return (self.profile.policy if self.profile is not None else None) or OPEN

    @property
    def guaranteed(self) -> bool:
        """Whether the job computes a formal guarantee for this site; then only what it covers leaves, and counts."""
        return self.terms is not None and self.terms.guaranteed

    @property
    def folder(self) -> Path:
        """This site's folder of the run."""
        if self.profile is None:
            raise RefusalError("state", "The task came before the run was opened at this site.")
        return self.profile.state / self.run_id

    def state_folder(self, fl_ctx: FLContext) -> Path | None:
        """Where this site keeps its state, also before a run; None where its profile cannot be read."""
        try:
            return (self.profile or site_profile(fl_ctx)).state
        except FedsegError:
            return None

    def permitted(self, report: SiteReport) -> SiteReport:
        """The report with those fields only that may leave this site."""
        hooks = self.trainer.hooks if self.trainer is not None else ()
        fields = self.policy.report_fields(self.guaranteed, declared_fields(hooks))
        if self.trainer is not None and self.withheld("validation") is not None:
            fields = frozenset(name for name in fields if not tells_scores(name))
        return report.only(fields)

    def withheld(self, split: str) -> dict[str, Any] | None:
        """What is said in the place of scores of a split with fewer cases than the policy asks for; None with enough.

        Raises:
            RefusalError: the task came before the run was opened (reason ``state``).
        """
        if self.trainer is None:
            raise RefusalError("state", "The task came before the run was opened at this site.")
        cases = self.trainer.datalist
        return few(split, self.policy.min_scored_cases, len(cases.split(split)), cases.patients(split))

    @property
    def curves_leave(self) -> bool:
        """Whether curves of losses and scores may leave during training."""
        return curves_leave(self.policy, self.guaranteed)

    def enter(self, what: str, round_number: int, fl_ctx: FLContext, splits: Collection[str] = MODELLED) -> None:
        """Enter in the site's ledger what is about to leave without a guarantee.

        Args:
            what: see ``disclosures.without_guarantee``.
            round_number: from 0; -1 outside of rounds.
            fl_ctx: of the task.
            splits: from whose patients it was made.

        Raises:
            RefusalError: it cannot be entered, or has left as often as the policy allows, so nothing may leave (reason
                ``privacy``).
        """
        assert self.profile is not None
        assert self.trainer is not None
        datalist, job = self.trainer.datalist, job_name(fl_ctx)
        patients = {case.patient for split in splits for case in datalist.split(split)}
        ledger, place = Ledger(self.profile.ledger, self.profile.simulated), {"job": job, "run_id": self.run_id}
        most = self.policy.max_statistics if what == STATISTICS else None
        ledger.enter(self.trainer.plan.dataset, patients, what, **place, round_number=round_number, most=most)

    def attach(
        self, trainer: SiteTrainer, round_number: int, received: Arrays, meta: Mapping[str, Any], fl_ctx: FLContext
    ) -> None:
        """Tell the filters of the result what it is made from.

        Args:
            trainer: of the run.
            round_number: from 0.
            received: arrays of the task.
            meta: of the task.
            fl_ctx: of the task.
        """
        assert self.profile is not None
        context = SiteContext(
            site=trainer.site,
            job=job_name(fl_ctx),
            plan=trainer.plan,
            run_id=self.run_id,
            round_number=round_number,
            profile=self.profile,
            patients=patients_of(trainer.datalist),
            global_weights=received,
            task_meta={k: v for k, v in meta.items() if isinstance(v, str | bool | int | float | list)},
            trainer=trainer,
            guaranteed=self.guaranteed,
        )
        context.attach(fl_ctx)
        for item in update_chain(fl_ctx):
            item.before_task(context)

    def _new_trainer(self, plan: Plan, profile: SiteProfile, fl_ctx: FLContext) -> SiteTrainer:
        """Look at the job's files, bind the run's folder to the job, open its record, and build the trainer."""
        try:
            check_job_files(fl_ctx)
        except ConfigurationError as error:
            raise RefusalError("configuration", str(error)) from None
        site = fl_ctx.get_identity_name()
        claim(profile.state, site)
        state = SiteState(profile.state, self.run_id)
        self.record.close()
        state.bind(job_fingerprint(plan, fl_ctx))
        self.record.open(state.folder, site)
        chain = update_chain(fl_ctx)
        hooks = [*(_hook(name, fl_ctx) for name in self.hooks), *hooks_of(chain)]
        if not self.evaluates:
            check_groups(plan, site)
        datalist, (private, frozen) = admit_data(plan, profile, hooks, self.evaluates), own_names(chain, plan)
        setup = TrainerSetup(
            state=state,
            device=profile.device,
            cache=profile.cache,
            hooks=hooks,
            private=private,
            frozen=frozen,
            simulated=profile.simulated,
            counts_patients=self.guaranteed,
            aborted=lambda: bool(self.abort and self.abort.triggered),
        )
        torch.set_num_threads(plan.training.threads)
        return SiteTrainer(plan, site, datalist, setup)


def _hook(name: str, fl_ctx: FLContext) -> TrainingHook:
    hook = fl_ctx.get_engine().get_component(name)
    if not isinstance(hook, TrainingHook):
        raise ConfigurationError("executor.hooks", name, "the id of a component that is a training hook")
    return hook
