"""Asking sites: a task goes out, answers come in, and who fails or stays silent is noted by name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task, TaskCompletionStatus
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.wf_comm_spec import WFCommSpec
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.model_controller import ModelController
from nvflare.widgets.info_collector import InfoCollector

from fedseg.contract.protocol import BYTES_DOWN, BYTES_UP, PREPARE, REASON, RUN_ID, TEXT
from fedseg.errors import AbortedError, FedsegError
from fedseg.workflows.run.presence import Listening, Presence
from fedseg.workflows.run.record import RunRecord

Take = Callable[[FLModel], bool]


class SiteDialogue(ModelController):
    """What a workflow needs to talk with its sites; a failed answer never ends the job by itself.

    Attributes:
        events: what went wrong at which site in which round (-1 outside of rounds).
        record: where events are written as they happen; set at the start of the run.
        presence: of which sites nothing is heard.
        num_rounds: how many there will be, for those who ask how far the job is.
    """

    record: RunRecord
    num_rounds = 0

    def __init__(self, run_id: str, task_check_period: float, site_silence: int = 0) -> None:
        super().__init__(persistor_id="", allow_empty_global_weights=True, task_check_period=task_check_period)
        self.presence = Presence(site_silence)
        self._missing: set[str] = set()
        self.run_id = run_id
        self.events: list[dict[str, Any]] = []
        self._answers: dict[str, FLModel] = {}
        self._bytes: dict[str, tuple[int, int]] = {}
        self._asked: list[str] = []
        self._heard: set[str] = set()
        self._round = -1
        self._lock = threading.Lock()

    def all_sites(self) -> list[str]:
        """Names of the sites that are connected now, sorted."""
        return sorted(client.name for client in self.engine.get_clients())

    def ask(
        self, task: str, model: FLModel, sites: Sequence[str], timeout: int, take: Take | None = None
    ) -> dict[str, FLModel]:
        """Send a task and wait for the answers. Sites that are absent are not asked, and not waited for.

        Args:
            task: name of the task.
            model: what it carries.
            sites: who is asked.
            timeout: seconds after which the wait ends without those who have not answered; 0 waits for all that are
                there.
            take: gets each answer as it arrives; False leaves it out.

        Returns:
            The accepted answers by site, without their arrays.

        Raises:
            AbortedError: the job was aborted meanwhile.
        """
        self._answers, self._heard, noted = {}, set(), len(self.events)
        sites = self._present(sites)
        if not sites:
            return self._answers
        model.meta = {**(model.meta or {}), RUN_ID: self.run_id}
        open_ = True

        def receive(answer: FLModel) -> bool:
            # An answer that arrives while the wait ends must not change a round that is being summed up.
            with self._lock:
                accepted = open_ and (take is None or take(answer))
                if accepted:
                    site = answer.meta["client_name"]
                    self._answers[site] = FLModel(metrics=answer.metrics or {"taken": 1.0}, meta=answer.meta)
                return accepted

        if model.current_round is not None:
            self.set_fl_context(model)
        task_object = self._prepare_task(model, task, timeout, receive)
        self._asked = sites
        with self.presence.watch(sites, self._heard, self._lock.locked, lambda: self._end_early(task_object)):
            self.broadcast_and_wait(
                task=task_object, targets=sites, min_responses=0, fl_ctx=self.fl_ctx, abort_signal=self.abort_signal
            )
        self._asked = []
        with self._lock:
            open_ = False
        status = getattr(task_object, "completion_status", None)
        if status in (TaskCompletionStatus.ERROR, TaskCompletionStatus.CANCELLED):
            raise FedsegError(f"FLARE ended the task {task} ({status}): {getattr(task_object, 'exception', None)}.")
        if self.abort_signal.triggered:
            raise AbortedError(f"The job was aborted during the task {task}; the last finished round is kept.")
        for site in sites:
            if site not in self._heard:
                self._note_silence(site, task, timeout)
            elif site not in self._answers and site not in {e["site"] for e in self.events[noted:]}:
                self.note(site, f"sent an answer to the task {task} that cannot be read")
        return self._answers

    def set_communicator(self, communicator: WFCommSpec) -> None:
        """What FLARE calls to connect the workflow with its sites."""
        super().set_communicator(communicator)
        self.communicator = Listening(communicator, self.presence)

    def _end_early(self, task: Task) -> None:
        self.cancel_task(task, TaskCompletionStatus.TIMEOUT)

    def _present(self, sites: Sequence[str]) -> list[str]:
        """Those of whom something can be expected; who is missing was noted before, and who is back is noted now."""
        for site in sorted(self._missing & set(sites)):
            if self.presence.absence(site) is None:
                self._missing.discard(site)
                self.note(site, "is heard of again, and is asked again")
        return [site for site in sites if site not in self._missing]

    def _note_silence(self, site: str, task: str, timeout: int) -> None:
        if (why := self.presence.absence(site)) is not None:
            self._missing.add(site)
            self.note(site, f"did not answer the task {task}: {why}; it is left out until it is heard of again")
        else:
            self.note(site, f"did not answer the task {task}" + (f" within {timeout} s" if timeout else ""))

    def invite(self, model: FLModel, site: str, take: Take) -> None:
        """Ask a single site to take part without waiting: its answer counts whenever it comes."""
        model.meta = {**(model.meta or {}), RUN_ID: self.run_id}
        task = self._prepare_task(model, PREPARE, 0, take)
        self.broadcast(task=task, targets=[site], min_responses=1, fl_ctx=self.fl_ctx)

    def note(self, site: str, what: str) -> None:
        """Remember and write down what went wrong at a site."""
        self.warning(f"{site}: {what}")
        self.events.append({"round": self._round, "site": site, "what": what})
        self.record.event("site", round=self._round, site=site, what=what)

    def progress(self) -> dict[str, Any]:
        """How far the job is: ``round`` (from 0) of ``rounds`` during a round, and of the sites that were asked now
        those that have ``answered``, and for whom it is ``waiting``."""
        asked, heard = self._asked, set(self._heard)
        waiting = [site for site in asked if site not in heard and self.presence.absence(site) is None]
        now = {"answered": [site for site in asked if site in heard], "waiting": waiting}
        return now if self._round < 0 else {"round": self._round, "rounds": self.num_rounds, **now}

    # ------------------------------------------------------------- what FLARE calls

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Add the progress to what FLARE's ``show_stats`` tells."""
        super().handle_event(event_type, fl_ctx)
        if event_type == InfoCollector.EVENT_TYPE_GET_STATS:
            collector = fl_ctx.get_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR)
            if collector is not None:
                collector.add_info(group_name=self.name, info=self.progress())

    def _prepare_task_data(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        """Note a task that a site asks for once more, which tells that its process was killed and started again."""
        if fl_ctx.get_prop(FLContextKey.IS_CLIENT_TASK_RESEND):
            self.note(
                client_task.client.name,
                f"asked for the task {client_task.task.name} again: its process was started anew, or an answer was "
                "lost on the way",
            )
        super()._prepare_task_data(client_task, fl_ctx)

    def _accept_train_result(
        self, client_name: str, result: Shareable, fl_ctx: FLContext, is_unknown_task: bool = False
    ) -> bool:
        """Note a failed result by the site's name and reason instead of ending the job."""
        code = result.get_return_code()
        if is_unknown_task:
            return False
        self._heard.add(client_name)
        self._bytes[client_name] = (int(result.get_header(BYTES_UP, 0)), int(result.get_header(BYTES_DOWN, 0)))
        if code and code != ReturnCode.OK:
            text = result.get_header(TEXT) or f"FLARE reports {code}"
            self.note(client_name, f"{result.get_header(REASON) or 'failed'}: {text}")
            return False
        return super()._accept_train_result(client_name, result, fl_ctx, is_unknown_task)

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """A result that comes after its round has ended is dropped, and noted."""
        self.note(client.name, f"answered the task {task_name} too late; the result was dropped")
