"""FLARE's side of every workflow: what its server calls, and the way to the sites; what a run does is for others."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Protocol

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.wf_comm_spec import WFCommSpec
from nvflare.app_common.workflows.model_controller import ModelController
from nvflare.widgets.info_collector import InfoCollector

from fedseg.messages.array_headers import read_one_at_a_time
from fedseg.messages.job import check_job_files
from fedseg.messages.job_facts import job_facts
from fedseg.site.profile import PROFILE_FILE, read_state_folder
from fedseg.workflows.run.flare_sites import FlareSites
from fedseg.workflows.run.presence import Listening
from fedseg.workflows.run.record import FOLDER, RunRecord
from fedseg.workflows.run.sites import Sites
from fedseg.workflows.run.unreadable import AnswerIntake


class Run(Protocol):
    """A job at work."""

    def execute(self) -> None:
        """Do all of it, and let go of what it holds."""

    def progress(self) -> dict[str, Any]:
        """How far it is, see ``Sites.progress``."""


class WaitSettings(Protocol):
    """What every workflow is told of its sites; see ``RunSettings``."""

    @property
    def min_sites(self) -> int: ...

    @property
    def site_silence(self) -> int: ...

    @property
    def task_check_period(self) -> float: ...


class FlareWorkflow(ModelController):
    """A workflow as FLARE's server runs it; a subclass says in ``load`` what it does.

    Attributes:
        settings: of the job.
        result: name of the part of a run's results that is there once the run is finished.
        encrypts: whether updates come encrypted, so that server and sites need their contexts.
        sites: the port to the sites over FLARE, once FLARE has connected the workflow.
        started: the run, once FLARE has started it.
    """

    sites: FlareSites
    result: ClassVar[str] = "final"
    needs: ClassVar[frozenset[str]] = frozenset()
    withholds: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: WaitSettings) -> None:
        read_one_at_a_time()
        period = settings.task_check_period
        super().__init__(persistor_id="", allow_empty_global_weights=True, task_check_period=period)
        self.started: Run | None = None
        self._silence = settings.site_silence

    @property
    def encrypts(self) -> bool:
        return False

    @abstractmethod
    def load(self, sites: Sites, record: RunRecord, fl_ctx: FLContext) -> Run:
        """The run of the job at hand over any port to sites.

        Args:
            sites: the port.
            record: where the run writes down what happens.
            fl_ctx: of the server's process of the job.

        Raises:
            ConfigurationError: the job's files are none that a job may have, or its parts cannot work together.
        """

    def check_sites_part(self, fl_ctx: FLContext) -> None:
        """Refuse a job whose parts at the sites cannot work together with this workflow (ConfigurationError)."""

    def begin(self, sites: Sites, record: RunRecord, fl_ctx: FLContext) -> tuple[Path, Path, Path]:
        """What every run begins with: a look at the job's files, the facts of the job, and the run's id.

        Args:
            sites, record, fl_ctx: see ``load``.

        Returns:
            The server's state folder, its own configuration folder, and that of the job.
        """
        check_job_files(fl_ctx)
        self.check_sites_part(fl_ctx)
        workspace, job_id = fl_ctx.get_engine().get_workspace(), str(fl_ctx.get_job_id())
        record.job = job_facts(fl_ctx, workspace)
        site_config, config = Path(workspace.get_site_config_dir()), Path(workspace.get_app_config_dir(job_id))
        if (site_config / PROFILE_FILE).is_file():
            # A server of its own, not a simulated one: FLARE's job ids are unique here.
            sites.run_id = job_id
        state = read_state_folder("server", site_config, Path(workspace.get_run_dir(job_id)))
        return state, site_config, config

    # ------------------------------------------------------------------ what FLARE calls

    def run(self) -> None:
        """The whole job; a failure is recorded before FLARE ends the job with it."""
        agent = self.fl_ctx.get_engine().server.command_agent
        AnswerIntake(agent, str(self.fl_ctx.get_job_id()), self.communicator.given.get).begin()
        record = RunRecord(Path(self.get_run_dir()) / FOLDER)
        with record.failures():
            self.started = self.load(self.sites, record, self.fl_ctx)
            self.started.execute()

    def set_communicator(self, communicator: WFCommSpec) -> None:
        """Connect the workflow with its sites."""
        super().set_communicator(communicator)
        self.sites = FlareSites(self, self._silence)
        self.communicator = Listening(communicator, self.sites.presence, self.sites.secrets)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Add the progress to what FLARE's ``show_stats`` tells."""
        super().handle_event(event_type, fl_ctx)
        if event_type == InfoCollector.EVENT_TYPE_GET_STATS and self.started is not None:
            collector = fl_ctx.get_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR)
            if collector is not None:
                collector.add_info(group_name=self.name, info=self.started.progress())

    def _prepare_task_data(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        """Note a task that a site asks for once more, which tells that its process was killed and started again."""
        if fl_ctx.get_prop(FLContextKey.IS_CLIENT_TASK_RESEND):
            self.sites.note(
                client_task.client.name,
                f"asked for the task {client_task.task.name} again: its process was started anew, or an answer was "
                "lost on the way",
            )
        super()._prepare_task_data(client_task, fl_ctx)

    def _process_result(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        self.sites.hear(client_task)
        super()._process_result(client_task, fl_ctx)
        self.sites.conclude(client_task)

    def _accept_train_result(
        self, client_name: str, result: Shareable, fl_ctx: FLContext, is_unknown_task: bool = False
    ) -> bool:
        """A failed result never ends the job by itself."""
        if is_unknown_task or result.get_return_code() not in (None, "", ReturnCode.OK):
            return False
        return super()._accept_train_result(client_name, result, fl_ctx, is_unknown_task)

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """A result that comes after its round has ended is dropped, and noted."""
        self.sites.note(client.name, f"answered the task {task_name} too late; the result was dropped")
