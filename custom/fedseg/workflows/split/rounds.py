"""How a round of split training goes over FLARE: a task begins and ends it, direct calls carry what is in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from nvflare.apis.controller_spec import Task
from nvflare.apis.wf_comm_spec import WFCommSpec
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import AppConstants

from fedseg.aggregators.fedavg import FedAvg
from fedseg.messages.calls.call import PATIENCE, Ask, Call
from fedseg.messages.calls.caller import DirectCalls
from fedseg.randomness import derive_seed
from fedseg.training.split.message import StepBytes
from fedseg.workflows.federated_training import FederatedTraining
from fedseg.workflows.run import arguments
from fedseg.workflows.split.gathering import Gathering
from fedseg.workflows.split.iterations import Exchange
from fedseg.workflows.split.model import SplitModel
from fedseg.workflows.split.round import SplitRound, SplitTurns
from fedseg.workflows.split.secrets import Handing, SiteSecrets

_PAUSE = 0.05
# Silences of a site in an iteration of three exchanges, and one more for what the server computes.
_PATIENCE = 4


class SplitRounds(FederatedTraining):
    """The rounds of ``SplitTraining``."""

    model: SplitModel

    def __init__(self, num_rounds: int, message_timeout: int, start_timeout: int, **others: Any) -> None:
        """See ``SplitTraining``.

        Raises:
            ConfigurationError: a value is not allowed.
        """
        arguments.check_counts(1, message_timeout=message_timeout, start_timeout=start_timeout)
        super().__init__(num_rounds, FedAvg(), **others)
        self.model = SplitModel()
        self.message_timeout, self.start_timeout = message_timeout, start_timeout
        self._secrets = SiteSecrets()
        self._task: Task | None = None
        self._of_round: Sequence[str] = ()
        self._out: dict[str, str] = {}
        self._out_before: set[str] = set()

    def _collect(self, sites: Sequence[str]) -> None:
        """Begin the round at the sites, run its iterations beside the task, and end it."""
        message = FLModel(params_type=ParamsType.FULL, params=self.model.outgoing(), meta=self._round_meta())
        message.meta[PATIENCE] = _PATIENCE * self.message_timeout
        message.current_round, message.total_rounds = self._round, self.num_rounds
        over = threading.Event()
        calls = DirectCalls(self.engine, self.message_timeout, {site: self._secrets.of(site) for site in sites}, over)
        self._out_before, self._out, self._task, self._heard = set(self._out), {}, None, set()
        self._of_round = sites
        failure: list[BaseException] = []

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
        gathering = Gathering(calls, blank, self.start_timeout, lambda s: s in self._heard or self.presence.absence(s))
        ready = gathering.run(sites, self._out_before, self._leave)

        def exchange(asked: Mapping[str, Call]) -> dict[str, Call]:
            answers, failures = calls.exchange(asked)
            for site, failure in sorted(failures.items()):
                self._leave(site, failure.why)
            return answers

        there = ready
        if ready:
            torch.manual_seed(derive_seed(self.plan.seed, "server", self._round, "network"))
            up, down = dict(calls.up), dict(calls.down)
            there = self._train(ready, exchange)
            self.model.round.bytes = {
                s: StepBytes(calls.up.get(s, 0) - up.get(s, 0), calls.down.get(s, 0) - down.get(s, 0)) for s in ready
            }
        # Where the round's time is up, or the job is aborted, nobody's answer is waited for any more.
        there = [] if over.is_set() else there
        ends = {site: replace(blank, ask=Ask.END, loss=self.model.round.loss(site)) for site in sites}
        calls.tell({site: end for site, end in ends.items() if site not in there})
        exchange({site: ends[site] for site in there})
        self._wait(over, lambda: all(s in self._heard or s in self._out or self.presence.absence(s) for s in there))

    def _train(self, ready: Sequence[str], exchange: Exchange) -> list[str]:
        """All iterations with the sites that are ready; who was there to the last."""
        model, number = self.model, self._round
        start, end = number / self.num_rounds, (number + 1) / self.num_rounds
        parts = self.plan, model.server, model.common, self.start_id, number, exchange, self._leave
        steps = {site: self._steps(site) for site in ready}
        if model.split.in_turn:
            turns = SplitTurns(*parts)
            model.round = turns.result
            return turns.run(ready, steps, start, end, self.message_timeout / 2)
        together = SplitRound(*parts)
        model.round = together.result
        return together.run(ready, max(steps.values()), start, end)

    def _steps(self, site: str) -> int:
        """Iterations of a round at a site: one pass over the training cases of the largest site that was asked.

        Where sites train one after the other, over its own.
        """
        others = [site] if self.model.split.in_turn else self._of_round or self.sites
        return -(-max(self.sites[each].num_samples for each in others) // self.plan.training.batch_size)

    def _leave(self, site: str, why: str) -> None:
        """Leave a site out of the rest of the round."""
        self._out[site] = why
        self.note(site, f"left out of the rest of the round: {why}")

    def _wait(self, over: threading.Event, done: Callable[[], bool]) -> None:
        while not done() and not over.wait(_PAUSE):
            pass

    def set_communicator(self, communicator: WFCommSpec) -> None:
        """What FLARE calls to connect the workflow with its sites."""
        super().set_communicator(communicator)
        self.communicator = Handing(communicator, self.presence, self._secrets)

    def _prepare_task(self, data: FLModel, task_name: str, timeout: int, callback: Callable[[FLModel], bool]) -> Task:
        self._task = super()._prepare_task(data, task_name, timeout, callback)
        return self._task
