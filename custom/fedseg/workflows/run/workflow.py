"""What FLARE's server runs: the workflow that a job names, a thin shell around a training run."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.wf_comm_spec import WFCommSpec
from nvflare.app_common.workflows.model_controller import ModelController
from nvflare.widgets.info_collector import InfoCollector

from fedseg.contract.combinations import check_parts
from fedseg.contract.job_files import INITIAL_FILE
from fedseg.contract.plan import PLAN_FILE, read_plan
from fedseg.contract.shapes import private_arrays
from fedseg.filters.layers import layers_of_sites
from fedseg.messages.job import check_job_files, report_fields, site_parts, sites_part
from fedseg.messages.job_facts import job_facts
from fedseg.site.profile import PROFILE_FILE, read_state_folder
from fedseg.workflows.run.flare_sites import FlareSites
from fedseg.workflows.run.presence import Listening
from fedseg.workflows.run.record import FOLDER, RunRecord
from fedseg.workflows.run.round_protocol import RoundProtocol
from fedseg.workflows.run.run_model import RunModel, RunPlace
from fedseg.workflows.run.settings import RunSettings, check_part
from fedseg.workflows.run.site_selection import SiteSelection
from fedseg.workflows.run.sites import Sites
from fedseg.workflows.run.training_run import TrainingRun


class Workflow(ModelController):
    """The parts of a run, as a job names them, and FLARE's way to its sites.

    A kind of training is a subclass whose constructor builds the parts from the job's arguments, and nothing else.

    Attributes:
        settings, model, protocol, selection: the parts.
        needs, withholds: see ``contract.combinations``.
        sites: the port to the sites over FLARE, once FLARE has connected the workflow.
        started: the run, once FLARE has started it.
    """

    sites: FlareSites
    needs: ClassVar[frozenset[str]] = frozenset()
    withholds: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self, settings: RunSettings, model: RunModel, protocol: RoundProtocol, selection: SiteSelection
    ) -> None:
        """Take the parts.

        Raises:
            ConfigurationError: ``selection`` is none, or the parts cannot work together, see ``contract.combinations``.
        """
        check_part("selection", selection, SiteSelection)
        period = settings.task_check_period
        super().__init__(persistor_id="", allow_empty_global_weights=True, task_check_period=period)
        self.settings, self.model, self.protocol, self.selection = settings, model, protocol, selection
        check_parts(self.parts, whole=False)
        self.started: TrainingRun | None = None

    @property
    def parts(self) -> tuple[object, ...]:
        """Everything at the server with which the parts at the sites have to work together."""
        return (self, self.settings, self.protocol, self.selection, self.model, *self.model.components)

    def training_run(self, sites: Sites, record: RunRecord) -> TrainingRun:
        """A run of these parts over any port to sites."""
        return TrainingRun(self.settings, self.model, self.protocol, self.selection, sites, record)

    def run(self) -> None:
        """The whole job; a failure is recorded before FLARE ends the job with it."""
        record = RunRecord(Path(self.get_run_dir()) / FOLDER)
        with record.failures():
            self.started = self.load(self.sites, record, self.fl_ctx)
            self.started.train()

    def load(self, sites: Sites, record: RunRecord, fl_ctx: FLContext) -> TrainingRun:
        """The run of the job at hand over any port to sites, at its start or as its checkpoint has it.

        Args:
            sites: the port.
            record: where the run writes down what happens.
            fl_ctx: of the server's process of the job.

        Raises:
            ConfigurationError: the job's files are none that a job may have, or its parts cannot work together.
        """
        check_job_files(fl_ctx)
        check_parts([*self.parts, *site_parts(fl_ctx)])
        workspace, job_id = fl_ctx.get_engine().get_workspace(), str(fl_ctx.get_job_id())
        record.job = job_facts(fl_ctx, workspace)
        site_config, config = Path(workspace.get_site_config_dir()), Path(workspace.get_app_config_dir(job_id))
        if (site_config / PROFILE_FILE).is_file():
            # A server of its own, not a simulated one: FLARE's job ids are unique here.
            sites.run_id = job_id
        state = read_state_folder("server", site_config, Path(workspace.get_run_dir(job_id)))
        initial = config / INITIAL_FILE
        place = RunPlace(state, site_config, initial if initial.is_file() else None)
        run, plan = self.training_run(sites, record), read_plan(config / PLAN_FILE)
        record.own_arrays = private_arrays(plan) | layers_of_sites(sites_part(fl_ctx), plan)
        run.state.load(plan, place, report_fields(fl_ctx))
        return run

    # ------------------------------------------------------------------ what FLARE calls

    def set_communicator(self, communicator: WFCommSpec) -> None:
        """Connect the workflow with its sites."""
        super().set_communicator(communicator)
        self.sites = FlareSites(self, self.settings.site_silence)
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
