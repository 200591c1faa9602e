"""What FLARE's server runs in a training: the workflow that a job names, a thin shell around a training run."""

from __future__ import annotations

from nvflare.apis.fl_context import FLContext

from fedseg.contract.allowed_job_files import INITIAL_FILE, model_files
from fedseg.contract.combinations import check_parts
from fedseg.contract.plan import read_plan
from fedseg.contract.protocol import PLAN_FILE
from fedseg.contract.shapes import private_arrays
from fedseg.filters.layers import layers_of_sites
from fedseg.messages.job import report_fields, site_parts, sites_part
from fedseg.training.hooks import personal_plan
from fedseg.workflows.run.flare_workflow import FlareWorkflow
from fedseg.workflows.run.record import RunRecord
from fedseg.workflows.run.round_protocol import RoundProtocol
from fedseg.workflows.run.run_model import RunModel, RunPlace
from fedseg.workflows.run.selection_base import SiteSelection
from fedseg.workflows.run.settings import RunSettings, check_part
from fedseg.workflows.run.sites import Sites
from fedseg.workflows.run.training_run import TrainingRun


class Workflow(FlareWorkflow):
    """The parts of a training run, as a job names them.

    A kind of training is a subclass whose constructor builds the parts from the job's arguments, and nothing else.

    Attributes:
        settings, model, protocol, selection: the parts.
        needs, withholds: see ``contract.combinations``.
    """

    def __init__(
        self, settings: RunSettings, model: RunModel, protocol: RoundProtocol, selection: SiteSelection
    ) -> None:
        """Take the parts.

        Raises:
            ConfigurationError: ``selection`` is none, or the parts cannot work together, see ``contract.combinations``;
                there is no model of which an average can be kept.
        """
        check_part("selection", selection, SiteSelection)
        super().__init__(settings)
        self.settings, self.model, self.protocol, self.selection = settings, model, protocol, selection
        if settings.model_average is not None:
            model.keep_average(settings.model_average)
        check_parts(self.parts, whole=False)

    @property
    def encrypts(self) -> bool:
        return self.protocol.encrypts

    @property
    def parts(self) -> tuple[object, ...]:
        """Everything at the server with which the parts at the sites have to work together."""
        return (
            self,
            self.settings,
            *self.settings.parts,
            self.protocol,
            self.selection,
            self.model,
            *self.model.components,
        )

    def training_run(self, sites: Sites, record: RunRecord) -> TrainingRun:
        """A run of these parts over any port to sites."""
        return TrainingRun(self.settings, self.model, self.protocol, self.selection, sites, record)

    def check_sites_part(self, fl_ctx: FLContext) -> None:
        check_parts([*self.parts, *site_parts(fl_ctx)])

    def load(self, sites: Sites, record: RunRecord, fl_ctx: FLContext) -> TrainingRun:
        """See ``FlareWorkflow``: the run at its start, or as its checkpoint has it."""
        state, site_config, config = self.begin(sites, record, fl_ctx)
        initial = config / INITIAL_FILE
        place = RunPlace(state, site_config, initial if initial.is_file() else None, model_files(config))
        run, plan = self.training_run(sites, record), read_plan(config / PLAN_FILE)
        record.own_arrays = private_arrays(plan) | layers_of_sites(sites_part(fl_ctx), plan)
        run.state.personal = personal_plan(plan, site_parts(fl_ctx))
        run.state.load(plan, place, report_fields(fl_ctx))
        return run
