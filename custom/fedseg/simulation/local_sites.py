"""The sites of a run in one process: the port through which a run reaches them, one after the other."""

from __future__ import annotations

import copy
import os
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from nvflare.apis.controller_spec import OperatorMethod, TaskOperatorKey
from nvflare.apis.event_type import EventType
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import ReturnCode, ServerCommandKey
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.private.defs import TaskConstant

from fedseg.jobs.job import read_job
from fedseg.messages.calls.call import SECRET, TOPIC, Ask, read_call
from fedseg.messages.calls.caller import DirectCalls
from fedseg.messages.replies import read_refusal
from fedseg.messages.sizes import told_sizes
from fedseg.simulation.local_server import LocalServer
from fedseg.simulation.local_site import LocalSite, deploy
from fedseg.site.profile import DATA_VARIABLE, LEDGER_VARIABLE, POLICY_FILE, STATE_VARIABLE
from fedseg.workflows.run.call_secrets import CallSecrets
from fedseg.workflows.run.sites import Conversation, Receive, Sites


class _Work:
    """A site at a task; in a thread of its own if it is called meanwhile.

    Whoever waits for that thread does nothing else: one thread computes at a time, so that a run can be repeated.
    """

    def __init__(self, site: LocalSite, task: Callable[[], Shareable]) -> None:
        self.site = site
        self._task = task
        self._result: Shareable | None = None
        self._thread = threading.Thread(target=self._run, name=site.name, daemon=True)

    def _run(self) -> None:
        self._result = self._task()

    def call(self, request: Shareable) -> Shareable:
        """The site's answer; the first call begins its work, and it ends with the last one."""
        ask = read_call(request).ask
        with self.site.randomness():
            if not self._thread.ident:
                self._thread.start()
            reply = self.site.call(TOPIC, request)
            while ask is Ask.READY and reply.get_return_code() != ReturnCode.OK and self._thread.is_alive():
                reply = self.site.call(TOPIC, request)
            if ask is Ask.END:
                self._thread.join()
        return reply

    def result(self) -> Shareable:
        """What the site made of the task."""
        if self._thread.ident:
            self._thread.join()
        else:
            with self.site.randomness():
                self._run()
        return self._result or make_reply(ReturnCode.EXECUTION_EXCEPTION)


class LocalCalls(DirectCalls):
    """Direct calls to the sites of this process, to one after the other in the order of their names."""

    def __init__(self, works: Mapping[str, _Work], timeout: float, secrets: Mapping[str, str]) -> None:
        super().__init__(None, timeout, secrets, threading.Event())
        self._works = works

    def _send(self, messages: Mapping[str, Shareable], limit: float) -> dict[str, Shareable]:
        return {site: self._works[site].call(messages[site]) for site in sorted(messages)}


class LocalSites(Sites):
    """Sites in this process, asked one after the other in the order of their names.

    Nobody is ever absent and no time limit is needed. A task that is sent without waiting is done when somebody waits
    for answers, first come, first served.
    """

    def __init__(
        self,
        job: Path,
        workspace: Path,
        environment: Mapping[str, str],
        names: Sequence[str],
        tamper: Callable[[str], Filter] | None = None,
    ) -> None:
        """Lay the job at server and sites and start its run.

        Args:
            job: job folder, as it runs.
            workspace: for a folder of each participant, as FLARE's simulator makes it.
            environment: of the sites' processes, see ``run_folder.site_environment``.
            names: of the sites.
            tamper: makes a filter of a site that stands before all others over its updates; for tests.
        """
        super().__init__()
        self._environment = dict(environment)
        self.server = LocalServer(read_job(job), deploy(job, workspace / "server", "server"))
        guarded = any((Path(environment[DATA_VARIABLE]) / name / POLICY_FILE).exists() for name in names)
        self.sites: dict[str, LocalSite] = {}
        for name in sorted(names):
            first = None if tamper is None else tamper(name)
            place = deploy(job, workspace / name, name)
            roads = self.server.receive_event, self.bring
            self.sites[name] = LocalSite(name, place, roads, sorted(names), guarded, first)
        self._posted: deque[tuple[str, FLModel, str, Receive]] = deque()
        self._secrets = CallSecrets()
        self._talk: Callable[[Mapping[str, _Work]], None] | None = None

    def close(self) -> None:
        """End the run at all sites and at the server."""
        for site in self.sites.values():
            site.close()
        self.server.fire(EventType.END_RUN)

    def connected(self) -> list[str]:
        return list(self.sites)

    def bring(self, caller: str, site: str, topic: str, request: Shareable) -> Shareable | None:
        """The answer of a site to a call of another one; None where it cannot be reached."""
        if site not in self.sites:
            return None
        return copy.deepcopy(self.sites[site].call(topic, copy.deepcopy(request), caller))

    def deliver(self, task: str, message: FLModel, sites: list[str], timeout: int, receive: Receive) -> None:
        """See ``Sites``; where the run talks with its sites meanwhile, it does so before the first result is read."""
        works = {
            name: _Work(self.sites[name], partial(self._do, name, task, message, timeout)) for name in sorted(sites)
        }
        with self.surroundings():
            if self._talk is not None:
                self._talk(works)
            for name, work in works.items():
                self._hand_on(name, task, work.result(), receive)

    def post(self, task: str, message: FLModel, site: str, receive: Receive) -> Callable[[], None]:
        """See ``Sites``; the site does the task when somebody waits for answers."""
        posted = task, message, site, receive
        self._posted.append(posted)
        return lambda: self._posted.remove(posted) if posted in self._posted else None

    def wait(self, enough: Callable[[], bool], timeout: int = 0) -> None:
        while self._posted and not enough():
            task, message, site, receive = self._posted.popleft()
            self.deliver(task, message, [site], timeout, receive)

    def converse(self, conversation: Conversation) -> None:
        works: dict[str, _Work] = {}
        secrets = {name: self._secrets.of(name) for name in conversation.sites}
        calls = LocalCalls(works, conversation.call_timeout, secrets)

        def talk_with(begun: Mapping[str, _Work]) -> None:
            works.update(begun)
            try:
                conversation.talk(calls)
            except BaseException:
                for name in works:
                    self.sites[name].abort()
                raise

        self._talk = talk_with
        try:
            self.ask(*conversation.asked)
        finally:
            self._talk = None
            calls.over.set()
            calls.close()
        for site in conversation.sites:
            self.count(site, calls.up.get(site, 0), calls.down.get(site, 0))

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """What the processes of simulated sites find in their environment."""
        before = {name: os.environ.get(name) for name in (DATA_VARIABLE, STATE_VARIABLE, LEDGER_VARIABLE)}
        os.environ.pop(LEDGER_VARIABLE, None)
        os.environ.update(self._environment)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    def _do(self, name: str, task: str, message: FLModel, timeout: int) -> Shareable:
        """Send a task to a site; its result, as it arrives at the server."""
        sent = copy.deepcopy(FLModelUtils.to_shareable(message))
        task_id = str(uuid.uuid4())
        for cookie, value in (
            (AppConstants.CONTRIBUTION_ROUND, message.current_round),
            (ReservedHeaderKey.WORKFLOW, self.server.workflow_id),
            (ReservedHeaderKey.TASK_ID, task_id),
        ):
            sent.add_cookie(cookie, value)
        operator = {TaskOperatorKey.OP_ID: task, TaskOperatorKey.METHOD: OperatorMethod.BROADCAST}
        headers = {
            ReservedHeaderKey.TASK_NAME: task,
            ReservedHeaderKey.TASK_OPERATOR: {**operator, TaskOperatorKey.TIMEOUT: timeout},
            ReservedHeaderKey.TASK_ID: task_id,
            ReservedHeaderKey.MSG_ROOT_ID: str(uuid.uuid4()),
            ReservedHeaderKey.MSG_ROOT_TTL: timeout,
            ReservedHeaderKey.AUDIT_EVENT_ID: None,
            TaskConstant.WAIT_TIME: self.server.task_request_interval,
            ServerCommandKey.TASK_NAME: task,
        }
        if self._talk is not None:
            headers[SECRET] = self._secrets.of(name)
        for header, value in headers.items():
            sent.set_header(header, value)
        return copy.deepcopy(self.sites[name].do(task, sent))

    def _hand_on(self, name: str, task: str, result: Shareable, receive: Receive) -> None:
        """Have a result filtered, counted and received."""
        self.count(name, *told_sizes(result))
        result = self.server.filtered(task, result)
        receive(name, read_refusal(result) or FLModelUtils.from_shareable(result))
