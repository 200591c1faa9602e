"""How a round of split training goes: a task begins and ends it, direct calls carry what is in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AppConstants

from fedseg.contract.report import SiteReport
from fedseg.contract.round_settings import round_steps
from fedseg.errors import ConfigurationError, FedsegError, RefusalError
from fedseg.messages.calls.call import PATIENCE, Ask, Call
from fedseg.randomness import derive_seed
from fedseg.training.split.halves import check_split
from fedseg.training.split.message import StepBytes
from fedseg.workflows.run.acceptance import check_report
from fedseg.workflows.run.round_protocol import UPDATE_REFUSED, JobParts, RoundProtocol
from fedseg.workflows.run.run_state import RunState
from fedseg.workflows.run.sites import Calls, Conversation, Message, single_messages
from fedseg.workflows.split.gathering import Gathering
from fedseg.workflows.split.iterations import Exchange
from fedseg.workflows.split.model import SplitModel
from fedseg.workflows.split.round import SplitRound, SplitTurns

_EXECUTOR = "fedseg.executors.split.executor.SplitExecutor"
# Silences of a site in an iteration of three exchanges, and one more for what the server computes.
_PATIENCE = 4


class SplitRounds(RoundProtocol):
    """One pass over the training cases of the largest site that a round asks; the others see theirs again.

    The task ``train`` brings the server's part, with which each site scores its own network. Then iterations follow
    each other by direct calls. A site that does not answer one in time is left out of this iteration and of the rest of
    the round; with the next one it comes back with the state that it had.
    """

    splits = True

    def __init__(self, model: SplitModel, message_timeout: int, start_timeout: int) -> None:
        """Take the model, and the limits in seconds that ``SplitTraining`` explains."""
        self._model = model
        self.message_timeout, self.start_timeout = message_timeout, start_timeout
        self._asked: Sequence[str] = ()
        self._out: dict[str, str] = {}
        self._out_before: set[str] = set()

    # ------------------------------------------------------------------ a job

    def check_job(self, job: JobParts) -> None:
        super().check_job(job)
        plan = job.plan
        if plan.split is None:
            raise ConfigurationError("split", None, "given in the plan of a job of split training")
        check_split(plan.split, plan)
        for path in job.executors:
            if path != _EXECUTOR:
                raise ConfigurationError("executor", path, f"{_EXECUTOR} where the plan has split")
        if filters := job.filters(AppConstants.TASK_TRAIN):
            why = "Features and their gradients do not pass them, so they would protect nothing."
            raise ConfigurationError(
                "task_result_filters", type(filters[0]).__name__, "left out in split training", why
            )
        if plan.training.local_epochs != 1:
            why = "A round is one pass over the training cases of the largest site."
            raise ConfigurationError("training.local_epochs", plan.training.local_epochs, "1 in split training", why)
        if plan.training.validate_after:
            raise ConfigurationError("training.validate_after", True, "false in split training")
        if job.initial:
            raise ConfigurationError("initial model", "given", "left out in split training")

    # ------------------------------------------------------------------ a run

    def begin(self, run: RunState) -> None:
        if uneven := sorted(site for site in run.facts if self.unfit(run, site)):
            raise FedsegError(
                f"cut_gradient mean needs equal batches, but the training cases of {', '.join(uneven)} are no multiple "
                f"of {run.plan.training.batch_size}. Set cut_gradient to own, or training.batch_size to 1."
            )

    def unfit(self, run: RunState, site: str) -> str | None:
        """A site whose last batch is smaller than the others', where batches must be equal, cannot take part."""
        size = run.plan.training.batch_size
        if self._model.split.cut_gradient != "mean" or run.facts[site].num_samples % size == 0:
            return None
        return f"cut_gradient mean needs training cases that are a multiple of {size}"

    def collect(self, run: RunState, asked: Sequence[str]) -> None:
        self._asked, self._out_before, self._out = asked, set(self._out), {}
        talk = partial(self._call_sites, run)
        message, timeout, accept = self.message(run, asked), run.settings.round_timeout, self.accepting(run)
        task = AppConstants.TASK_TRAIN, message, asked, timeout, accept, UPDATE_REFUSED
        run.sites.converse(Conversation(*task, talk, self.message_timeout))
        for site in sorted(set(run.model.reports) - set(self.participants(run)) - set(self._out)):
            run.note(site, "left out of the round: none of its samples came into an iteration")

    def message(self, run: RunState, sites: Sequence[str]) -> Message:
        message = super().message(run, sites)
        for each in single_messages(message):
            each.meta[PATIENCE] = _PATIENCE * self.message_timeout
        return message

    def participants(self, run: RunState) -> list[str]:
        """Sites that have reported, and whose samples the server's part was trained with."""
        return [site for site in super().participants(run) if self._model.round.samples.get(site, 0)]

    def check_report(self, run: RunState, site: str, report: SiteReport, number: int) -> None:
        steps = self._steps(run, site)
        if not 0 <= report.num_steps <= steps:
            raise RefusalError("report", f"The site reports {report.num_steps} steps; the round has {steps}.")
        check_report(report, run.facts[site], None, run.plan)

    def finish(self, run: RunState) -> None:
        """Where sites have parts of their own, have them sent, and write one model for each site."""
        if self._model.common is None:
            task, accept = FLModel(metrics={"submit": 1.0}, meta={}), self._accept_part
            sites, timeout = sorted(run.facts), run.settings.round_timeout
            run.sites.ask(AppConstants.TASK_SUBMIT_MODEL, task, sites, timeout, accept, "its part was left out")
            self._model.save_parts(run.record, run.plan, len(run.rounds) - 1)

    def _accept_part(self, site: str, answer: FLModel) -> None:
        self._model.accept_part(site, answer.params or {})

    # ------------------------------------------------------------------ direct calls

    def _call_sites(self, run: RunState, calls: Calls) -> list[str]:
        """All calls of a round; gives the sites that were there to the last, and so will report."""
        blank = Call(Ask.READY, run.start_id, run.number)
        leave = partial(self._leave, run)

        def gone(site: str) -> bool:
            return site in run.sites.heard or run.sites.absence(site) is not None

        def exchange(asked: Mapping[str, Call]) -> dict[str, Call]:
            answers, failures = calls.exchange(asked)
            for site, failure in sorted(failures.items()):
                leave(site, failure.why)
            return answers

        ready = Gathering(calls, blank, self.start_timeout, gone).run(self._asked, self._out_before, leave)
        present = ready
        if ready:
            torch.manual_seed(derive_seed(run.plan.seed, "server", run.number, "network"))
            up, down = dict(calls.up), dict(calls.down)
            present = self._iterate(run, ready, exchange)
            self._model.round.bytes = {
                s: StepBytes(calls.up.get(s, 0) - up.get(s, 0), calls.down.get(s, 0) - down.get(s, 0)) for s in ready
            }
        # Where the round's time is up, or the job is aborted, nobody's answer is waited for any more.
        present = [] if calls.over.is_set() else present
        ends = {site: replace(blank, ask=Ask.END, loss=self._model.round.loss(site)) for site in self._asked}
        calls.tell({site: end for site, end in ends.items() if site not in present})
        exchange({site: ends[site] for site in present})
        return [site for site in present if site not in self._out]

    def _iterate(self, run: RunState, ready: Sequence[str], exchange: Exchange) -> list[str]:
        """All iterations with the sites that are ready; the sites that were there to the last."""
        model, number, total = self._model, run.number, run.settings.num_rounds
        start, end = number / total, (number + 1) / total
        parts = run.plan, model.server, model.common, run.start_id, number, exchange, partial(self._leave, run)
        steps = {site: self._steps(run, site) for site in ready}
        if model.split.in_turn:
            turns = SplitTurns(*parts)
            model.round = turns.result
            return turns.run(ready, steps, start, end, self.message_timeout / 2)
        together = SplitRound(*parts)
        model.round = together.result
        return together.run(ready, max(steps.values()), start, end)

    def _steps(self, run: RunState, site: str) -> int:
        """Iterations of a round at a site: one pass over the training cases of the largest site that was asked.

        Where sites train one after the other, over its own.
        """
        others = [site] if self._model.split.in_turn else self._asked or run.facts
        return max(round_steps(run.plan.training, run.facts[each].num_samples) for each in others)

    def _leave(self, run: RunState, site: str, why: str) -> None:
        """Leave a site out of the rest of the round."""
        self._out[site] = why
        run.note(site, f"left out of the rest of the round: {why}")
