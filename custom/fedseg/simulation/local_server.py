"""The server's side of FLARE in one process: a job's components there, and the context that they ask."""

from __future__ import annotations

from nvflare.apis.event_type import EventType
from nvflare.apis.filter import Filter
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import EventScope, FedEventHeader, FLContextKey, ProcessType
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.shareable import Shareable
from nvflare.apis.utils.event import fire_event_to_components
from nvflare.apis.workspace import Workspace
from nvflare.private.fed.utils.fed_utils import create_job_processing_context_properties

from fedseg.jobs.components import build_component
from fedseg.jobs.filter_chain import filters_of
from fedseg.jobs.job import Job
from fedseg.simulation.local_site import JOB_ID, SERVER_NAME


class LocalServer:
    """What FLARE's server is to a job's components there: filters of what arrives, and receivers of curves."""

    def __init__(self, job: Job, workspace: Workspace) -> None:
        """Build the job's components and start its run.

        Args:
            job: as it runs.
            workspace: with the job, see ``deploy``.
        """
        self.workspace, self.job = workspace, job
        workflow = job.server["workflows"][0]
        self.workflow_id = str(workflow.get("id") or workflow["path"].rpartition(".")[2])
        self.task_request_interval = float(job.server.get("server", {}).get("task_request_interval", 0.5))
        self._components: list[FLComponent] = [build_component(c) for c in job.server.get("components", [])]
        self._filters: dict[str, list[Filter]] = {}
        stickers = {FLContextKey.PROCESS_TYPE: ProcessType.SERVER_JOB}
        stickers |= create_job_processing_context_properties(workspace, JOB_ID)
        self._contexts = FLContextManager(self, SERVER_NAME, JOB_ID, private_stickers=stickers)
        self.fire(EventType.START_RUN)

    def get_workspace(self) -> Workspace:
        """For components, as FLARE's engine has it."""
        return self.workspace

    def new_context(self) -> FLContext:
        """For components, as FLARE's engine has it."""
        return self._contexts.new_context()

    def fire(self, event: str, data: Shareable | None = None) -> None:
        """Tell the components of an event: of the server's own, or of one that a site has sent."""
        with self.new_context() as fl_ctx:
            if data is not None:
                data.set_header(FedEventHeader.DIRECTION, "in")
                for key, value in ((FLContextKey.EVENT_DATA, data), (FLContextKey.EVENT_SCOPE, EventScope.FEDERATION)):
                    fl_ctx.set_prop(key, value, private=True, sticky=False)
            fire_event_to_components(event, self._components, fl_ctx)

    def receive_event(self, data: Shareable) -> None:
        """An event of a site arrives."""
        self.fire(data.get_header(FedEventHeader.EVENT_TYPE), data)

    def filtered(self, task: str, result: Shareable) -> Shareable:
        """A result after the server's filters."""
        if task not in self._filters:
            self._filters[task] = [build_component(each) for each in filters_of(self.job.server, task)]
        with self.new_context() as fl_ctx:
            for each in self._filters[task]:
                result = each.process(result, fl_ctx)
        return result
