"""The executor of a site in a job of statistics: it counts its cases, and trains nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedseg.contract.plan import Plan
from fedseg.contract.protocol import COUNT, PREPARE, RUN_ID, STATISTICS
from fedseg.data.label_convention import with_convention
from fedseg.errors import AbortedError, RefusalError
from fedseg.executors.disclosures import MODELLED
from fedseg.executors.refusals import check_patients
from fedseg.executors.site_executor import Answer, SiteExecutor
from fedseg.filters.charging import charge_ledger
from fedseg.filters.context import SiteContext, patients_of
from fedseg.messages.job import job_name, job_plan
from fedseg.privacy.mechanisms.noise import SecureNoise, SeededNoise
from fedseg.site.policy import OPEN
from fedseg.statistics.measuring import measure
from fedseg.statistics.noise import NoiseSetting, parse_noise, protected
from fedseg.statistics.site_statistics import Statistics, released
from fedseg.training.trainer import SiteTrainer

logger = logging.getLogger(__name__)
T = TypeVar("T")


class StatisticsExecutor(SiteExecutor):
    """Tells what the training and validation cases of one site are like, as numbers that merge.

    Tasks: ``prepare`` (accept the job or refuse it) and ``count``. Without noise, nothing leaves with fewer than the
    policy's ``min_patients`` behind it, and the release is entered in the site's ledger as one without a guarantee.
    With noise, the ledger is charged before the first case is read, and every bin leaves with noise.

    Attributes:
        only_counts: tells that the job asks for no update.
        protects_statistics: whether noise is added.
    """

    only_counts: ClassVar[bool] = True

    def __init__(self, noise: dict[str, Any] | None = None) -> None:
        """Check the arguments.

        Args:
            noise: ``{"epsilon": ..., "mechanism": "laplace" or "gaussian", "delta": ...}``, see
                ``statistics.noise.NoiseSetting``; None for no noise.

        Raises:
            ConfigurationError: a value is not allowed.
        """
        super().__init__()
        self._noise = parse_noise(noise)

    @property
    def protects_statistics(self) -> bool:
        return self._noise is not None

    def train(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        raise RefusalError("configuration", "A job of statistics trains nothing.")

    def tasks(self) -> Mapping[str, Answer]:
        return {PREPARE: super().tasks()[PREPARE], COUNT: self._count}

    def load_run(self, plan: Plan, run_id: str | None, fl_ctx: FLContext) -> SiteTrainer:
        """See ``SiteExecutor``; a site with too few patients takes no part."""
        trainer = super().load_run(plan, run_id, fl_ctx)
        check_patients(self.session.policy, len(patients_of(trainer.datalist)))
        return trainer

    def _count(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Statistics of the site's cases, in the form in which they may leave."""
        trainer = self.load_run(job_plan(fl_ctx), from_shareable(shareable).meta.get(RUN_ID), fl_ctx)
        if self._noise is not None:
            found = self._protected(trainer, self._noise, fl_ctx)
        else:
            tallies = measure(*self._cases(trainer), progress=self._until_aborted)
            found = released(tallies, (self.session.policy or OPEN).min_patients)
        logger.info("Statistics of %d cases of %d patients are told", found.cases, found.patients)
        return DXO(DataKind.METRICS, data={STATISTICS: found.to_dict()}).to_shareable()

    def _cases(self, trainer: SiteTrainer) -> tuple[Any, Any]:
        """The task with the convention of the site's labels, and the cases from which models are made."""
        datalist = trainer.datalist
        cases = [case for split in MODELLED for case in datalist.split(split)]
        return with_convention(trainer.plan.task, datalist.convention), cases

    def _protected(self, trainer: SiteTrainer, setting: NoiseSetting, fl_ctx: FLContext) -> Statistics:
        """Charge first: neither the cost nor a refusal may depend on what the images hold."""
        profile, session = self.session.profile, self.session
        assert profile is not None
        context = SiteContext(
            site=trainer.site,
            job=job_name(fl_ctx),
            plan=trainer.plan,
            run_id=session.run_id,
            round_number=-1,
            profile=profile,
            patients=patients_of(trainer.datalist),
        )
        spent = charge_ledger(setting.release(), context, setting.delta, "Statistics")
        logger.info("Statistics are charged: epsilon %.4g at delta %g in all", spent.epsilon, spent.delta)
        tallies = measure(*self._cases(trainer), fine=False, per_patient=True, progress=self._until_aborted)
        words = (trainer.plan.seed, trainer.site, COUNT)
        return protected(tallies, setting, SeededNoise(*words) if profile.simulated else SecureNoise())

    def _until_aborted(self, items: Iterable[T], description: str, total: int | None = None, /) -> Iterable[T]:
        for item in items:
            if self.session.abort is not None and self.session.abort.triggered:
                raise AbortedError("The job was aborted while cases were counted.")
            yield item
