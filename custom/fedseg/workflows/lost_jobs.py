"""Jobs that a server was running when it ended: FLARE leaves them as running for ever, so that nobody can go on."""

from __future__ import annotations

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import SystemComponents
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.job_def_manager import JobDefManagerSpec
from nvflare.apis.job_def import RunStatus


class LostJobs(FLComponent):
    """A component of the server's ``local/resources.json``: at each start of the server it marks as abandoned every
    job that a former process of the server was running, which can be resumed then.

    A job that waited to be run is left as it is: the server starts it.
    """

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Look once, before the server begins to start jobs."""
        if event_type != EventType.SYSTEM_BOOTSTRAP:
            return
        engine = fl_ctx.get_engine()
        jobs = engine.get_component(SystemComponents.JOB_MANAGER)
        if not isinstance(jobs, JobDefManagerSpec):
            self.log_warning(fl_ctx, "The server keeps no jobs, so none is looked for.")
            return
        for job in jobs.get_jobs_by_status([RunStatus.RUNNING, RunStatus.DISPATCHED], fl_ctx):
            jobs.set_status(job.job_id, RunStatus.ABANDONED, fl_ctx)
            self.log_warning(fl_ctx, f"The job {job.job_id} was running when the server ended; it can be resumed.")
