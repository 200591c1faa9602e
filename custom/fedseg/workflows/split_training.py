"""Split training over FLARE: tasks begin and end rounds, direct calls carry what happens in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.controller_spec import Task
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import AppConstants

from fedseg.aggregators.fedavg import FedAvg
from fedseg.errors import ConfigurationError, FedsegError, RefusalError
from fedseg.executors.split_calls import PATIENCE, Ask, Call
from fedseg.training.plan import Plan
from fedseg.training.randomness import derive_seed
from fedseg.training.site_report import SiteReport
from fedseg.training.split_message import StepBytes
from fedseg.workflows import arguments
from fedseg.workflows.acceptance import check_report
from fedseg.workflows.direct_calls import DirectCalls
from fedseg.workflows.federated_training import FederatedTraining
from fedseg.workflows.scores import Scored
from fedseg.workflows.split_model import SplitModel
from fedseg.workflows.split_round import SplitRound

_READY_TIMEOUT = 5.0
_PAUSE = 0.05
# Silences of a site in an iteration of three exchanges, and one more for what the server computes.
_PATIENCE = 4


class SplitTraining(FederatedTraining):
    """SplitAVG (Zhang et al., IEEE J Biomed Health Inform 2022) and its variants; see ``SplitSettings``.

    1. ``prepare``, as in ``FederatedTraining``.
    2. A round is one pass over the training cases of the largest site; the others see theirs again. The task ``train``
       brings the server's part, with which each site scores its own network. Then iterations follow each other by
       direct calls. A site that does not answer one in time is left out of this iteration and of the rest of the
       round; with the next one it comes back with the state that it had.
    3. A checkpoint after every round holds the server's part with its optimizer; the sites keep theirs.
    4. With ``site_update: separate`` every site sends its own part at the end, if its policy lets it, and the run
       leaves one model for each; else it leaves one model for all, and the best one.
    """

    model: SplitModel

    def __init__(
        self, num_rounds: int, message_timeout: int = 60, start_timeout: int = 600, min_sites: int = 1, **others: Any
    ) -> None:
        """Check the arguments.

        Args:
            num_rounds, min_sites: see ``FederatedTraining``.
            message_timeout: seconds that a site may take to answer a call.
            start_timeout: seconds for which a round waits for the other sites once the first one has scored what it
                received; a site that was left out of the round before is waited for ``message_timeout``.
            others: further arguments of ``FederatedTraining``: time-outs, stopping rules and how a run goes on.

        Raises:
            ConfigurationError: a value is not allowed, or an argument has no meaning in split training.
        """
        for name in ("aggregator", "server_optimizer", "shared_arrays", "selection", "max_epsilon", "keep_updates"):
            if others.pop(name, None):
                raise ConfigurationError(f"workflow.{name}", "given", "left out in split training")
        arguments.check_counts(1, message_timeout=message_timeout, start_timeout=start_timeout)
        super().__init__(num_rounds, FedAvg(), min_sites=min_sites, **others)
        self.model = SplitModel()
        self.message_timeout, self.start_timeout = message_timeout, start_timeout
        self._task: Task | None = None
        self._out: dict[str, str] = {}
        self._out_before: set[str] = set()
        self._site_models: dict[str, str] = {}

    def open(self, plan: Plan, state: Path, initial: Path | None = None) -> None:
        torch.set_num_threads(plan.training.threads)
        super().open(plan, state, initial)

    def _prepare(self) -> None:
        super()._prepare()
        size = self.plan.training.batch_size
        uneven = sorted(site for site, facts in self.sites.items() if facts.num_samples % size)
        if self.model.split.cut_gradient == "mean" and uneven:
            raise FedsegError(
                f"cut_gradient mean needs equal batches, but the training cases of {', '.join(uneven)} are no multiple "
                f"of {size}."
            )

    # ---------------------------------------------------------------- a round

    def _collect(self, sites: Sequence[str]) -> None:
        """Begin the round at the sites, run its iterations beside the task, and end it."""
        message = FLModel(params_type=ParamsType.FULL, params=self.model.outgoing(), meta=self._round_meta())
        message.meta[PATIENCE] = _PATIENCE * self.message_timeout
        message.current_round, message.total_rounds = self._round, self.num_rounds
        calls = DirectCalls(self.engine, self.message_timeout, len(sites))
        self._out_before, self._out, self._task, self._heard = set(self._out), {}, None, set()
        failure: list[BaseException] = []
        over = threading.Event()

        def iterate() -> None:
            try:
                self._run_iterations(calls, sites, over)
            except BaseException as error:
                failure.append(error)
            finally:
                self._wait(over, lambda: self._task is not None)
                if self._task is not None and not over.is_set():
                    self._end_early(self._task)

        thread = threading.Thread(target=iterate, name="iterations", daemon=True)
        thread.start()
        try:
            self.ask(AppConstants.TASK_TRAIN, message, sites, self.round_timeout, self._take_update)
        finally:
            over.set()
            thread.join()
            calls.close()
        if failure:
            raise failure[0]
        for site in sites:
            up, down = self._bytes.get(site, (0, 0)) if site in self._heard else (0, 0)
            self._bytes[site] = up + calls.up.get(site, 0), down + calls.down.get(site, 0)

    def _run_iterations(self, calls: DirectCalls, sites: Sequence[str], over: threading.Event) -> None:
        """The whole round in a thread of its own, since the wait for the task's results takes this one's."""
        blank = Call(Ask.READY, self.start_id, self._round)
        ready = self._gather(calls, blank, sites, over)

        def exchange(asked: Mapping[str, Call]) -> dict[str, Call]:
            if over.is_set():
                # The round's time is up, or the job is aborted: nobody is there any more.
                return {}
            answers, failures = calls.exchange(asked)
            if not over.is_set():
                for site, why in sorted(failures.items()):
                    self._leave(site, why)
            return answers

        model, there = self.model, list(ready)
        if ready:
            torch.manual_seed(derive_seed(self.plan.seed, "server", self._round, "network"))
            common = model.common
            job = SplitRound(self.plan, model.server, common, self.start_id, self._round, exchange, self._leave)
            model.round = job.result
            start, end = self._round / self.num_rounds, (self._round + 1) / self.num_rounds
            up, down = dict(calls.up), dict(calls.down)
            there = job.run(ready, self._steps, start, end)
            model.round.bytes = {
                s: StepBytes(calls.up.get(s, 0) - up.get(s, 0), calls.down.get(s, 0) - down.get(s, 0)) for s in ready
            }
        ends = {site: replace(blank, ask=Ask.END, loss=model.round.loss(site)) for site in sites}
        calls.tell({site: end for site, end in ends.items() if site not in there})
        exchange({site: ends[site] for site in there})
        self._wait(over, lambda: all(s in self._heard or s in self._out or self.presence.absence(s) for s in there))

    def _gather(self, calls: DirectCalls, blank: Call, sites: Sequence[str], over: threading.Event) -> list[str]:
        """The sites that are ready to be called, once all are that can be expected in time."""
        waiting, ready, first = set(sites), set[str](), 0.0
        timeout = min(_READY_TIMEOUT, float(self.message_timeout))
        while not over.is_set():
            waiting -= {site for site in waiting if site in self._heard or self.presence.absence(site)}
            if not waiting:
                break
            answers, _ = calls.exchange(dict.fromkeys(sorted(waiting), blank), timeout)
            ready |= set(answers)
            waiting -= set(answers)
            now = time.monotonic()
            first = first or (now if ready else 0.0)
            for site in sorted(waiting):
                limit = self.message_timeout if site in self._out_before else self.start_timeout
                if first and now - first > limit:
                    self._leave(site, f"it was not ready within {limit} s")
                    waiting.discard(site)
            over.wait(_PAUSE)
        return sorted(ready)

    def _leave(self, site: str, why: str) -> None:
        """Leave a site out of the rest of the round."""
        self._out[site] = why
        self.note(site, f"left out of the rest of the round: {why}")

    def _wait(self, over: threading.Event, done: Callable[[], bool]) -> None:
        while not done() and not over.wait(_PAUSE):
            pass

    @property
    def _steps(self) -> int:
        """Iterations of a round: one pass over the training cases of the largest site."""
        return -(-max(facts.num_samples for facts in self.sites.values()) // self.plan.training.batch_size)

    def _check_report(self, site: str, report: SiteReport) -> None:
        facts, settings = self.sites[site], self.plan.training
        if not 0 <= report.num_steps <= self._steps:
            raise RefusalError("report", f"The site reports {report.num_steps} steps; the round has {self._steps}.")
        ordinary = settings.local_epochs * -(-facts.num_samples // settings.batch_size)
        check_report(replace(report, num_steps=ordinary), facts, settings)

    def _prepare_task(self, data: FLModel, task_name: str, timeout: int, callback: Callable[[FLModel], bool]) -> Task:
        self._task = super()._prepare_task(data, task_name, timeout, callback)
        return self._task

    # ---------------------------------------------------------------- models

    def _finish(self) -> None:
        """With parts of their own, have them sent and write one model for each site; then score as usual."""
        if self.model.common is None:
            task = FLModel(metrics={"submit": 1.0}, meta={})
            self.ask(AppConstants.TASK_SUBMIT_MODEL, task, sorted(self.sites), self.round_timeout, self._take_part)
            last = len(self.rounds) - 1
            for site in sorted(self.model.parts):
                self._site_models[site] = f"last.{site}.safetensors"
                self.record.model(self._site_models[site], self.plan, self.model.whole(site), last)
        super()._finish()

    def _take_part(self, answer: FLModel) -> bool:
        """Take in a site's own part."""
        try:
            self.model.take_part(answer.meta["client_name"], answer.params or {})
        except FedsegError as error:
            self.note(answer.meta["client_name"], f"its part was left out: {error}")
            return False
        return True

    def _beats_best(self, scored: Scored) -> bool:
        """Nobody keeps the sites' own parts of earlier rounds, so that only the last model can be had."""
        return self.model.common is not None and super()._beats_best(scored)

    def _store(self, name: str, round_number: int) -> str:
        """The server's part alone is no model; see ``_finish``."""
        return name if self.model.common is None else super()._store(name, round_number)

    def _write_results(self, **parts: Any) -> None:
        if self._site_models or self.model.common is None:
            parts = {
                name: {**part, "model": None, "models": self._site_models} if name == "final" else part
                for name, part in parts.items()
            }
        super()._write_results(**parts)
