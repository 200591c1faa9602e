"""One site of a federation in this process: FLARE's own runner of tasks over an engine whose network is a method call.

FLARE's client splits into a runner, which knows filters, executors and events, and an engine, which knows the network.
Here the runner is FLARE's, and so everything that happens to a task at a site is what happens at a real one.
"""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from nvflare.apis.client import Client
from nvflare.apis.event_type import EventType
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.apis.workspace import Workspace
from nvflare.app_common.app_constant import AppConstants
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.cellnet.utils import new_cell_message
from nvflare.private.fed.client.client_engine_executor_spec import TaskAssignment
from nvflare.private.fed.client.client_json_config import ClientJsonConfigurator
from nvflare.private.fed.client.client_run_manager import ClientRunManager
from nvflare.private.fed.client.client_runner import ClientRunner, ClientRunnerConfig
from nvflare.widgets.fed_event import FED_EVENT_TOPIC

from fedseg.jobs.allowed_components import site_privacy
from fedseg.jobs.components import build_component
from fedseg.training.trainer import SiteTrainer

JOB_ID = "simulate_job"
SERVER_NAME = "simulator_server"
Events = Callable[[Shareable], None]
"""Gets each event that leaves a site."""
ToPeer = Callable[[str, str, str, Shareable], Shareable | None]
"""Brings a call of one site to another on a topic; gives the answer, or None where the other cannot be reached."""


def deploy(job: Path, workspace: Path, name: str) -> Workspace:
    """Lay a job where FLARE lays it at one participant.

    Args:
        job: job folder.
        workspace: folder of the participant, made where it is missing.
        name: of the participant.
    """
    for folder in ("startup", "local"):
        (workspace / folder).mkdir(parents=True, exist_ok=True)
    found = Workspace(str(workspace), name)
    shutil.copytree(job / "app", found.get_app_dir(JOB_ID), dirs_exist_ok=True)
    shutil.copyfile(job / "meta.json", found.get_job_meta_path(JOB_ID))
    return found


class LocalCell:
    """What stands in the place of FLARE's connection: it keeps who answers direct calls."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Any], Any]] = {}

    def register_request_cb(self, channel: str, topic: str, cb: Callable[[Any], Any]) -> None:
        """See FLARE's ``Cell``."""
        self.answers[topic] = cb


class LocalEngine(ClientRunManager):
    """FLARE's engine of a job at a site, for one task at a time."""

    def __init__(
        self, name: str, workspace: Workspace, config: ClientRunnerConfig, roads: tuple[Events, ToPeer]
    ) -> None:
        client = SimpleNamespace(client_name=name, client_args={})
        super().__init__(name, JOB_ID, workspace, client, config.components, config.handlers)
        self.cell = LocalCell()
        self.task: TaskAssignment | None = None
        self.result: Shareable | None = None
        self._name = name
        self._send_event, self._to_peer = roads

    def know(self, names: Sequence[str]) -> None:
        """The sites of the job, as FLARE tells them at its start."""
        self.all_clients = [Client(name, "") for name in names]
        self.name_to_clients = {client.name: client for client in self.all_clients}

    def build_component(self, config_dict: dict[str, Any]) -> Any:
        """A component that a site builds of the job's configuration; see FLARE's engine."""
        return build_component(config_dict)

    def get_task_assignment(self, fl_ctx: FLContext, timeout: float | None = None) -> TaskAssignment | None:
        """The task at hand; the server is its sender."""
        server = FLContextManager(identity_name=SERVER_NAME, job_id=JOB_ID).new_context()
        fl_ctx.set_peer_context(server)
        return self.task

    def send_task_result(self, result: Shareable, fl_ctx: FLContext, timeout: float | None = None) -> bool:
        """Keep the result for whoever gave the task."""
        self.result = result
        return True

    def send_aux_request(
        self,
        targets: Any,
        topic: str,
        request: Shareable,
        timeout: float,
        fl_ctx: FLContext,
        optional: bool = False,
        secure: bool = False,
    ) -> dict[str, Shareable]:
        """Events go to the server, calls to other sites; that the server still waits for the task's result needs no
        asking."""
        if topic == FED_EVENT_TOPIC:
            request.set_peer_props(fl_ctx.get_all_public_props())
            self._send_event(request)
        elif isinstance(targets, list) and set(targets) <= set(self.name_to_clients):
            answers = {name: self._to_peer(self._name, name, topic, request) for name in targets}
            return {name: answer for name, answer in answers.items() if answer is not None}
        return {FQCN.ROOT_SERVER: make_reply(ReturnCode.OK)}


class LocalSite:
    """A site that does one task after the other, as its process would."""

    def __init__(
        self,
        name: str,
        workspace: Workspace,
        roads: tuple[Events, ToPeer],
        names: Sequence[str],
        guarded: bool,
        first: Filter | None,
    ) -> None:
        """Build the job's components and start its run.

        Args:
            name: of the site.
            workspace: with the job, see ``deploy``.
            roads: what gets each event that leaves the site, and each call to another site.
            names: of all sites of the job.
            guarded: whether the site has declared its guard, as a site with a policy does.
            first: stands before all filters over updates; for tests.
        """
        self.name = name
        self._randomness = torch.Generator().get_state()
        self.engine, self.runner = _runner(name, workspace, roads, guarded)
        self.engine.know(names)
        if first is not None:
            self.runner.task_result_filters.setdefault("train/out", []).insert(0, first)
        with self.engine.new_context() as fl_ctx:
            fl_ctx.set_prop(ReservedKey.RUN_ABORT_SIGNAL, self.runner.run_abort_signal, private=True, sticky=True)
            self.engine.fire_event(EventType.ABOUT_TO_START_RUN, fl_ctx)
            self.engine.fire_event(EventType.START_RUN, fl_ctx)

    @property
    def trainer(self) -> SiteTrainer:
        """Of this site, once it has accepted the job."""
        found: SiteTrainer = self.runner.find_executor(AppConstants.TASK_TRAIN).session.trainer
        return found

    @contextmanager
    def randomness(self) -> Iterator[None]:
        """Draw from this site's own random state, as its process would: sites share torch's generator here."""
        before = torch.get_rng_state()
        torch.set_rng_state(self._randomness)
        try:
            yield
        finally:
            self._randomness = torch.get_rng_state()
            torch.set_rng_state(before)

    def do(self, task: str, message: Shareable) -> Shareable:
        """The result of a task, as it would leave the site."""
        self.engine.task = TaskAssignment(task, str(message.get_header(ReservedHeaderKey.TASK_ID)), message)
        with self.engine.new_context() as fl_ctx:
            self.runner.fetch_and_run_one_task(fl_ctx)
        result, self.engine.task, self.engine.result = self.engine.result, None, None
        return result if isinstance(result, Shareable) else make_reply(ReturnCode.EXECUTION_EXCEPTION)

    def call(self, topic: str, request: Shareable, caller: str | None = None) -> Shareable:
        """The answer to a direct call of another site, or of the server (None)."""
        received = Shareable()
        received.update(request)
        sender = {ReservedKey.RUN_NUM: JOB_ID, ReservedKey.IDENTITY_NAME: caller or SERVER_NAME}
        received[ReservedHeaderKey.HEADERS] = {ReservedHeaderKey.TOPIC: topic, ReservedHeaderKey.PEER_PROPS: sender}
        origin = FQCN.ROOT_SERVER if caller is None else FQCN.join([caller, JOB_ID])
        message = new_cell_message({MessageHeaderKey.ORIGIN: origin}, received)
        reply: Shareable = self.engine.cell.answers[topic](message).payload
        return reply

    def abort(self) -> None:
        """Have the task at hand ended."""
        self.runner.run_abort_signal.trigger(True)

    def close(self) -> None:
        """End the run at this site."""
        with self.engine.new_context() as fl_ctx:
            self.engine.fire_event(EventType.END_RUN, fl_ctx)


def _runner(
    name: str, workspace: Workspace, roads: tuple[Events, ToPeer], guarded: bool
) -> tuple[LocalEngine, ClientRunner]:
    """Engine and runner with the components of the job's configuration, built by FLARE."""
    address = {"sp_scheme": "local", "sp_target": FQCN.ROOT_SERVER}
    arguments = Namespace(**address, client_name=name, job_id=JOB_ID, workspace=workspace.get_root_dir())
    file = workspace.get_client_app_config_file_path(JOB_ID)
    configuration = ClientJsonConfigurator(workspace, file, arguments, workspace.get_app_dir(JOB_ID))
    configuration.configure()
    config = configuration.runner_config
    for component in site_privacy()["components"] if guarded else ():
        config.add_component(component["id"], build_component(component))
    engine = LocalEngine(name, workspace, config, roads)
    runner = ClientRunner({}, config, JOB_ID, engine)
    engine.add_handler(runner)
    with engine.new_context() as fl_ctx:
        fl_ctx.set_prop(FLContextKey.RUNNER, runner, private=True)
    return engine, runner
