"""One kind of round as an object: how sites are asked, what of their answers counts, and what a job must be for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AppConstants

from fedseg.contract.combinations import SAME_SITES
from fedseg.contract.plan import Plan
from fedseg.contract.protocol import UPLOAD
from fedseg.contract.report import SiteReport
from fedseg.contract.round_settings import RoundSettings, round_steps
from fedseg.errors import ConfigurationError, FedsegError, RefusalError
from fedseg.filters.encrypt import DecryptModel, EncryptUpdate
from fedseg.tasks.objective import MEAN
from fedseg.workflows.run.acceptance import check_report, read_update
from fedseg.workflows.run.run_state import RunState
from fedseg.workflows.run.selection_base import Selection
from fedseg.workflows.run.sites import Accept, Message, message_for_each, single_messages

UPDATE_REFUSED = "update left out"
ENCRYPT, DECRYPT = (f"{each.__module__}.{each.__name__}" for each in (EncryptUpdate, DecryptModel))
ENCRYPTED = "fedseg.workflows.encrypted_training.EncryptedTraining"
SPLIT = "fedseg.workflows.split_training.SplitTraining"


@dataclass(frozen=True)
class JobParts:
    """A job as far as its kind of round depends on it.

    Attributes:
        plan: of the job.
        workflow: class path of its workflow.
        executors: class paths of its executors.
        tasks: that these work on.
        filters: by task, through which results of a site go, in order.
        result_filters, data_filters: class paths of the sites' filters by task.
        initial: whether it brings a model to start from.
    """

    plan: Plan
    workflow: str
    executors: Sequence[str]
    tasks: Sequence[str]
    filters: Callable[[str], Sequence[Any]]
    result_filters: Mapping[str, Sequence[str]]
    data_filters: Mapping[str, Sequence[str]]
    initial: bool = False

    @property
    def encrypts(self) -> bool:
        """Whether a filter at the sites encrypts or decrypts."""
        chains = [*self.result_filters.values(), *self.data_filters.values()]
        return any(path in (ENCRYPT, DECRYPT) for chain in chains for path in chain)


class RoundsOver(FedsegError):
    """A round cannot be made, and the run ends with those that it has; it fails where it has none."""


class RoundProtocol(ABC):
    """A kind of round. A subclass says in ``collect`` how a round goes; all else has a meaning for most kinds.

    >>> class FirstSite(RoundProtocol):  # one site trains, the others rest
    ...     def collect(self, run, asked):
    ...         self.train(run, asked[:1])
    >>> FirstSite().round_settings(0) == RoundSettings()
    True

    Attributes:
        encrypts, splits: whether updates come encrypted, and whether the network is trained in two parts: such jobs
            have a kind of round of their own.
    """

    encrypts: ClassVar[bool] = False
    splits: ClassVar[bool] = False

    # ------------------------------------------------------------------ a job

    def check_job(self, job: JobParts) -> None:
        """Refuse a job in which one part knows of another kind of round than this.

        Raises:
            ConfigurationError: names the part.
        """
        if job.encrypts and not self.encrypts:
            raise ConfigurationError("workflow", job.workflow, f"{ENCRYPTED} in a job that encrypts")
        if job.result_filters.get(UPLOAD) and not self.encrypts:
            why = "Without encryption updates leave with that task, so a filter of the other one would protect nothing."
            raise ConfigurationError("task_result_filters: tasks", UPLOAD, f"{AppConstants.TASK_TRAIN!r}", why)
        if job.plan.split is not None and not self.splits:
            raise ConfigurationError("workflow", job.workflow, f"{SPLIT} where the plan has split")

    def round_settings(self, number: int) -> RoundSettings:
        """Settings that replace those of the plan in one round; the steps that sites report are held to them."""
        return RoundSettings()

    # ------------------------------------------------------------------ a run

    def begin(self, run: RunState) -> None:
        """Prepare for rounds with the sites that have accepted the job.

        Raises:
            FedsegError: no round can be made with them.
        """

    def total_rounds(self, run: RunState) -> int:
        """Rounds that the run has, those that are finished included, as far as it is known now."""
        return run.settings.num_rounds

    def unfit(self, run: RunState, site: str) -> str | None:
        """Why a site that wants to join cannot take part, as the end of a sentence; None if it can."""
        return None

    @abstractmethod
    def collect(self, run: RunState, asked: Sequence[str]) -> None:
        """One round: have sites train, and their updates accepted by ``run.model``.

        Args:
            run: of which ``run.number`` is the round at hand.
            asked: the sites of the round.

        Raises:
            RoundsOver: nobody can take part in a further round.
        """

    def asked(self, run: RunState, chosen: Selection) -> Selection:
        """Who was asked in the round that was just collected, where it is not all of those that were chosen."""
        return chosen

    def participants(self, run: RunState) -> list[str]:
        """The sites of the round at hand that count for ``min_sites``."""
        return sorted(run.model.reports)

    def finish(self, run: RunState) -> None:
        """What is still to be collected once the rounds are over, before the last evaluation."""

    # ------------------------------------------------------------------ parts of a round

    def train(self, run: RunState, sites: Sequence[str]) -> None:
        """Have sites train from the model of the round before; see ``Sites.ask``."""
        message, accept = self.message(run, sites), self.accepting(run)
        run.sites.ask(AppConstants.TASK_TRAIN, message, sites, run.settings.round_timeout, accept, UPDATE_REFUSED)

    def message(self, run: RunState, sites: Sequence[str]) -> Message:
        """What the task ``train`` of the round at hand brings to sites."""
        settings, message = self.round_settings(run.number), run.model.training_message(sites)
        if run.plan.training.reset_optimizer is None and SAME_SITES in run.selection.withholds:
            settings = replace(settings, reset_optimizer=True)
        for each in single_messages(message):
            each.meta |= {**run.round_meta(), **settings.to_meta()}
            each.current_round, each.total_rounds = run.number, run.settings.num_rounds
        own = {site: settings.joined(run.site_settings[site]) for site in sites if site in run.site_settings}
        if own:
            message = message_for_each(message, sites)
            for site, given in own.items():
                message[site].meta |= given.to_meta()
        return message

    def score(
        self, run: RunState, number: int, sites: Sequence[str], meta: Mapping[str, Any], accept: Accept
    ) -> dict[str, FLModel]:
        """Have sites score the model after a finished round.

        Args:
            run: the run.
            number: of the finished round; -1 for the start.
            sites: who is asked.
            meta: what the task says besides, see ``contract.protocol``.
            accept: see ``Sites.ask``; its error is noted alone.
        """
        message = run.model.scoring_message(number, sites)
        for each in single_messages(message):
            each.meta |= meta
        return run.sites.ask(AppConstants.TASK_VALIDATION, message, sites, run.settings.round_timeout, accept, "")

    def score_own(
        self, run: RunState, site: str, sites: Sequence[str], meta: Mapping[str, Any], accept: Accept
    ) -> dict[str, FLModel]:
        """Have sites score the model that one site has for itself, see ``RunModel.own_models``; else see ``score``.

        Raises:
            FedsegError: this kind of round makes no such models.
        """
        raise FedsegError(f"{site} has no model of its own in this kind of round.")

    def accepting(self, run: RunState, number: int | None = None) -> Accept:
        """Reads, checks and counts the update of a site.

        Args:
            run: the run.
            number: of the round whose task the site has answered; None for the round at hand.
        """
        return partial(self._accept, run, run.number if number is None else number)

    def _accept(self, run: RunState, number: int, site: str, answer: FLModel) -> None:
        update = read_update(site, answer, run.report_fields)
        report = update.report
        self.check_report(run, site, report, number)
        if run.settings.max_epsilon is not None and report.epsilon is None:
            raise RefusalError("report", "The site reports no epsilon, although the job limits it.")
        run.model.accept_update(site, update)
        if report.fresh_state:
            run.note(site, "had lost what it kept of former rounds, or it was damaged, and trained without it")
        run.record.event(
            "update",
            round=run.number,
            site=site,
            train_loss=report.train_loss,
            seconds=report.seconds,
            **{f"val_{run.plan.objective.primary.name}": report.val_scores.get(MEAN)},
        )

    def check_report(self, run: RunState, site: str, report: SiteReport, number: int) -> None:
        """Check every reported number that the server can compute itself; see ``acceptance.check_report``.

        Args:
            run, site, report: what a site of the run reports.
            number: of the round that it reports of.
        """
        given = self.round_settings(number).joined(run.site_settings.get(site, RoundSettings()))
        facts, settings = run.facts[site], given.applied(run.plan.training)
        steps = round_steps(settings, facts.num_samples, given.epoch_cases)
        if given.patience is None:
            check_report(report, facts, steps, run.plan)
            return
        check_report(report, facts, None, run.plan)
        each = steps // settings.local_epochs
        if report.num_steps % each or not each <= report.num_steps <= steps:
            text = f"The site reports num_steps {report.num_steps}; they are {each} in an epoch, and {steps} at most."
            raise RefusalError("report", text)


class Broadcast(RoundProtocol):
    """All sites of a round train at once, each from the model of the round before."""

    def collect(self, run: RunState, asked: Sequence[str]) -> None:
        self.train(run, asked)
