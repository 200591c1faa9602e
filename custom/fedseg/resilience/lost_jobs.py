"""Jobs that a server was running when it ended: FLARE leaves them as running for ever, so that nobody can go on."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO, Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import SystemComponents
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.job_def_manager import JobDefManagerSpec
from nvflare.apis.job_def import RunStatus

from fedseg.screening.json_only import read_json_only


class LostJobs(FLComponent):
    """A component of the server's ``local/resources.json``: at each start of the server it marks as abandoned every
    job that a former process of the server was running, which can be resumed then.

    A job that waited to be run is left as it is: the server starts it. So is every job of a store that another server
    uses at the same time, since its jobs are not lost; two servers need two stores.
    """

    def __init__(self) -> None:
        super().__init__()
        read_json_only()
        # Held until the process ends, however it ends; processes of jobs, which may outlive it, do not inherit it.
        self._claim: IO[str] | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Look once, before the server begins to start jobs."""
        if event_type != EventType.SYSTEM_BOOTSTRAP:
            return
        engine = fl_ctx.get_engine()
        jobs = engine.get_component(SystemComponents.JOB_MANAGER)
        if not isinstance(jobs, JobDefManagerSpec):
            self.log_warning(fl_ctx, "The server keeps no jobs, so none is looked for.")
            return
        if not self._claimed(jobs, fl_ctx):
            return
        for job in jobs.get_jobs_by_status([RunStatus.RUNNING, RunStatus.DISPATCHED], fl_ctx):
            jobs.set_status(job.job_id, RunStatus.ABANDONED, fl_ctx)
            self.log_warning(fl_ctx, f"The job {job.job_id} was running when the server ended; it can be resumed.")

    def _claimed(self, jobs: Any, fl_ctx: FLContext) -> bool:
        """Whether the store is this server's alone, as far as its file system can tell."""
        store = Path(jobs.uri_root)
        try:
            self._claim = store.with_name(f"{store.name}.lock").open("a")
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.log_error(
                fl_ctx,
                f"Another server uses the jobs in {store} now. Its jobs are left alone; give this server folders of "
                "its own in local/resources.json and local/fedseg.json, and start it again.",
            )
            return False
        except OSError as error:
            self.log_warning(fl_ctx, f"Whether another server uses the jobs in {store} cannot be told: {error}")
        return True
