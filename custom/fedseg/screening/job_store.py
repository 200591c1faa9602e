"""The server's look at a job: when it is submitted, and once more before it is deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.job_def_manager import SimpleJobDefManager
from nvflare.apis.job_def import Job

from fedseg.contract.job_files import check_app_archive, check_job_archive
from fedseg.errors import ConfigurationError


class ScreeningJobStore(SimpleJobDefManager):
    """A component of the server's ``local/resources.json``, in the place of FLARE's own store of jobs.

    A job that it refuses at submission is not stored; one that it refuses later does not start. The coordinator reads
    why.
    """

    def create(self, meta: dict[str, Any], uploaded_content: str | bytes, fl_ctx: FLContext) -> dict[str, Any]:
        """Store a submitted job.

        Raises:
            ConfigurationError: it holds a file or a value that no job may have.
        """
        check_job_archive(Path(uploaded_content) if isinstance(uploaded_content, str) else uploaded_content)
        created: dict[str, Any] = super().create(meta, uploaded_content, fl_ctx)
        return created

    def get_app(self, job: Job, app_name: str, fl_ctx: FLContext) -> bytes:
        """The app of a stored job, as a ZIP file.

        Raises:
            ConfigurationError: see ``create``.
        """
        app: bytes = super().get_app(job, app_name, fl_ctx)
        try:
            check_app_archive(app)
        except ConfigurationError as error:
            # What the coordinator gets to read of a job that could not be deployed.
            fl_ctx.get_prop(FLContextKey.JOB_DEPLOY_DETAIL, []).append(f"server: {error}")
            raise
        return app
