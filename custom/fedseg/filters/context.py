"""What a filter knows of the site and the task at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.fl_context import FLContext

from fedseg.contract.plan import Plan
from fedseg.contract.report import ReportField, declared_fields, task_fields
from fedseg.data.datalist import Datalist
from fedseg.errors import RefusalError
from fedseg.networks.weights import Arrays
from fedseg.randomness import generator
from fedseg.site.profile import SiteProfile
from fedseg.training.hooks import LocalTraining

_CONTEXT = "fedseg_site_context"


@dataclass(frozen=True)
class SiteContext:
    """One task at one site.

    Attributes:
        site: name of the site.
        job: name of the job.
        plan: of the job.
        run_id: keys the site's state.
        round_number: of the task, from 0; -1 outside of rounds.
        profile: data, state, ledger and policy of the site.
        patients: ids of the patients from whom the result was made; they stay at the site.
        global_weights: the model that the task brought, as it came; empty outside of training.
        trainer: the site's trainer, after the round.
        task_meta: scalars that came with the task.
        guaranteed: whether the job has a formal guarantee, so that nothing leaves which that does not cover.
    """

    site: str
    job: str
    plan: Plan
    run_id: str
    round_number: int
    profile: SiteProfile
    patients: tuple[str, ...] = ()
    global_weights: Arrays = field(default_factory=dict)
    task_meta: Mapping[str, Any] = field(default_factory=dict)
    trainer: LocalTraining | None = None
    guaranteed: bool = False

    @property
    def report_fields(self) -> Mapping[str, ReportField]:
        """What the job's components declared to report beside the fixed fields, and the range of its scores."""
        hooks = {} if self.trainer is None else declared_fields(self.trainer.hooks)
        return task_fields(self.plan.objective, hooks)

    @property
    def folder(self) -> Path:
        """The site's folder of this run: what must survive the process lies here."""
        return self.profile.state / self.run_id

    def generator(self, purpose: str) -> np.random.Generator:
        """A generator that follows from seed, site, round and ``purpose``; not for noise that protects."""
        return generator(self.plan.seed, self.site, self.round_number, purpose)

    def attach(self, fl_ctx: FLContext) -> None:
        """Leave this context for the filters of the task's result."""
        fl_ctx.set_prop(_CONTEXT, self, private=True, sticky=False)


def patients_of(datalist: Datalist) -> tuple[str, ...]:
    """Ids of the patients from whom a site's updates and reports are made."""
    return tuple(sorted({case.patient for case in (*datalist.training, *datalist.validation)}))


def attached_context(fl_ctx: FLContext) -> SiteContext:
    """The context that the executor left.

    Raises:
        RefusalError: there is none: the result was not made by fedseg's executor (reason ``privacy``).
    """
    context = fl_ctx.get_prop(_CONTEXT)
    if not isinstance(context, SiteContext):
        raise RefusalError("privacy", "The result was not made by fedseg's executor, so no filter lets it out.")
    return context


def reported_fields(fl_ctx: FLContext) -> Mapping[str, ReportField]:
    """What the report of the task at hand may hold beside the fixed fields: nothing without the executor's context."""
    context = fl_ctx.get_prop(_CONTEXT)
    return context.report_fields if isinstance(context, SiteContext) else {}
