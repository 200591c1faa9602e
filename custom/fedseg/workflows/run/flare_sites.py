"""Sites that are reached with FLARE: its tasks for what takes long, its auxiliary messages for direct calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from nvflare.apis.controller_spec import ClientTask, Task, TaskCompletionStatus
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.model_controller import ModelController

from fedseg.contract.protocol import PREPARE
from fedseg.errors import AbortedError, FedsegError, RefusalError
from fedseg.messages.calls.caller import DirectCalls
from fedseg.messages.replies import read_refusal
from fedseg.messages.sizes import told_sizes
from fedseg.workflows.run.call_secrets import CallSecrets
from fedseg.workflows.run.presence import Presence
from fedseg.workflows.run.sites import Conversation, Receive, Sites

_RECEIVE, _JUDGED = "fedseg_receive", "fedseg_judged"
_PAUSE = 0.05


class FlareSites(Sites):
    """The sites of a FLARE job; see ``workflows.run.workflow.Workflow``, which hands FLARE's callbacks on.

    Attributes:
        presence: of which sites nothing is heard.
        secrets: by which sites know the server's direct calls.
    """

    def __init__(self, controller: ModelController, silence: int) -> None:
        """Prepare.

        Args:
            controller: FLARE's controller of the workflow.
            silence: seconds without a sign of life after which a site counts as absent; 0 for never.
        """
        super().__init__()
        self.presence, self.secrets = Presence(silence), CallSecrets()
        self._controller = controller
        self._task: Task | None = None
        self._posted: dict[str, Task] = {}

    def connected(self) -> list[str]:
        return sorted(client.name for client in self._controller.engine.get_clients())

    def absence(self, site: str) -> str | None:
        return self.presence.absence(site)

    # ------------------------------------------------------------------ tasks

    def deliver(self, task: str, message: FLModel, sites: list[str], timeout: int, receive: Receive) -> None:
        flare, order = self._controller, self._order(task, message, timeout, receive)
        self._task = order
        with self.presence.watch(sites, self.heard, self.lock.locked, lambda: self._end_early(order)):
            flare.broadcast_and_wait(
                task=order, targets=sites, min_responses=0, fl_ctx=flare.fl_ctx, abort_signal=flare.abort_signal
            )
        status = order.completion_status
        if status in (TaskCompletionStatus.ERROR, TaskCompletionStatus.CANCELLED):
            raise FedsegError(f"FLARE ended the task {task} ({status}): {getattr(order, 'exception', None)}.")
        self._check_abort(task)

    def post(self, task: str, message: FLModel, site: str, receive: Receive) -> Callable[[], None]:
        order = self._order(task, message, 0, receive)
        self._posted[site] = order
        self._controller.broadcast(task=order, targets=[site], min_responses=1, fl_ctx=self._controller.fl_ctx)
        return lambda: self._end_early(order)

    def wait(self, enough: Callable[[], bool], timeout: int = 0) -> None:
        begin = last = time.monotonic()
        while not enough():
            # An invitation is answered whenever the site likes; a round does not wait for it.
            orders = {site: order for site, order in self._posted.items() if order.name != PREPARE}
            waiting = [site for site, order in orders.items() if order.completion_status is None]
            if all(self.absence(site) for site in waiting) or (timeout and time.monotonic() - begin >= timeout):
                return
            time.sleep(_PAUSE)
            self._check_abort("at hand")
            now = time.monotonic()
            if not self.lock.locked():
                self.presence.pass_time(waiting, min(now - last, 2.0))
            last = now

    def await_return(self, sites: Sequence[str], timeout: int) -> None:
        begin = time.monotonic()
        while all(self.absence(site) for site in sites) and time.monotonic() - begin < timeout:
            time.sleep(_PAUSE)
            self._check_abort("at hand")

    def _order(self, task: str, message: FLModel, timeout: int, receive: Receive) -> Task:
        """A task of FLARE whose answers go to ``receive``."""
        flare = self._controller
        if message.current_round is not None:
            flare.set_fl_context(message)

        def judge(site: str, answer: FLModel | RefusalError) -> bool:
            order.set_prop(_JUDGED, True)
            return receive(site, answer)

        order: Task = flare._prepare_task(
            message, task, timeout, lambda answer: judge(answer.meta["client_name"], answer)
        )
        order.set_prop(_RECEIVE, judge)
        return order

    def _end_early(self, order: Task) -> None:
        self._controller.cancel_task(order, TaskCompletionStatus.TIMEOUT)

    def _check_abort(self, task: str) -> None:
        if self._controller.abort_signal.triggered:
            raise AbortedError(f"The job was aborted during the task {task}; the last finished round is kept.")

    def hear(self, client_task: ClientTask) -> None:
        """Count the bytes of a site's answer, and note it by the site's name and reason if it is a refusal."""
        site, result = client_task.client.name, client_task.result
        self.heard.add(site)
        self.count(site, *told_sizes(result))
        if (refusal := read_refusal(result)) is not None:
            client_task.task.get_prop(_RECEIVE)(site, refusal)

    def conclude(self, client_task: ClientTask) -> None:
        """Note an answer to a task for one site that FLARE could not read, so that nobody waits for it."""
        site = client_task.client.name
        order = self._posted.get(site)
        if order is not None and order is client_task.task and not order.get_prop(_JUDGED):
            text = f"The answer to the task {order.name} cannot be read."
            order.get_prop(_RECEIVE)(site, RefusalError("failed", text))

    # ------------------------------------------------------------------ direct calls

    def converse(self, conversation: Conversation) -> None:
        """See ``Sites``; calls are made in a thread of their own, since the wait for the task's results takes this."""
        over = threading.Event()
        secrets = {site: self.secrets.of(site) for site in conversation.sites}
        calls = DirectCalls(self._controller.engine, conversation.call_timeout, secrets, over)
        self._task, self.heard = None, set()
        failure: list[BaseException] = []

        def speak() -> None:
            try:
                awaited = conversation.talk(calls)
                _wait(over, lambda: all(site in self.heard or self.absence(site) for site in awaited))
            except BaseException as error:
                failure.append(error)
            finally:
                _wait(over, lambda: self._task is not None)
                if self._task is not None and not over.is_set():
                    self._end_early(self._task)

        thread = threading.Thread(target=speak, name="calls", daemon=True)
        thread.start()
        try:
            self.ask(*conversation.asked)
        finally:
            over.set()
            thread.join()
            calls.close()
        if failure:
            raise failure[0]
        for site in conversation.sites:
            self.count(site, calls.up.get(site, 0), calls.down.get(site, 0))


def _wait(over: threading.Event, done: Callable[[], bool]) -> None:
    while not done() and not over.wait(_PAUSE):
        pass
