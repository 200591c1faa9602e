"""The server's look at a job: when it is submitted, and once more before it is deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.job_def_manager import SimpleJobDefManager
from nvflare.apis.job_def import Job
from nvflare.private.fed.server import job_cmds
from nvflare.private.fed.server.job_meta_validator import JobMetaValidator

from fedseg.contract.allowed_job_files import check_app_archive, check_job_archive
from fedseg.errors import ConfigurationError


class ScreeningValidator(JobMetaValidator):
    """FLARE's first reader of a submitted job, who does not read one that the server would not store."""

    def validate(self, job_name: str, job_data: bytes | str) -> tuple[bool, str, dict[str, Any]]:
        """Whether the job may be submitted, why not, and its meta data."""
        try:
            check_job_archive(_archive(job_data))
        except ConfigurationError as error:
            return False, str(error), {}
        answer: tuple[bool, str, dict[str, Any]] = super().validate(job_name, job_data)
        return answer


class ScreeningJobStore(SimpleJobDefManager):
    """A component of the server's ``local/resources.json``, in the place of FLARE's own store of jobs.

    A job that it refuses at submission is not stored; one that it refuses later does not start. The coordinator reads
    why.
    """

    def __init__(self, uri_root: str = "jobs", job_store_id: str = "job_store") -> None:
        """Take FLARE's arguments, and the place of what reads a submitted job before it comes here.

        FLARE has no setting for that reader, and tells the coordinator only what the reader says.
        """
        super().__init__(uri_root, job_store_id)
        job_cmds.JobMetaValidator = ScreeningValidator

    def create(self, meta: dict[str, Any], uploaded_content: str | bytes, fl_ctx: FLContext) -> dict[str, Any]:
        """Store a submitted job.

        Raises:
            ConfigurationError: it holds a file or a value that no job may have.
        """
        check_job_archive(_archive(uploaded_content))
        created: dict[str, Any] = super().create(meta, uploaded_content, fl_ctx)
        return created

    def get_app(self, job: Job, app_name: str, fl_ctx: FLContext) -> bytes:
        """The app of a stored job, as a ZIP file.

        Raises:
            ConfigurationError: see ``create``.
        """
        try:
            app: bytes = super().get_app(job, app_name, fl_ctx)
            check_app_archive(app)
        except ConfigurationError as error:
            # What the coordinator gets to read of a job that could not be deployed.
            fl_ctx.get_prop(FLContextKey.JOB_DEPLOY_DETAIL, []).append(f"server: {error}")
            raise
        return app

    def get_content(self, meta: dict[str, Any], fl_ctx: FLContext) -> bytes | None:
        """A stored job as a ZIP file, which FLARE unpacks to get at an app of it.

        Raises:
            ConfigurationError: see ``create``.
        """
        content: bytes | None = super().get_content(meta, fl_ctx)
        if content is not None:
            check_job_archive(content)
        return content


def _archive(content: bytes | str) -> bytes | Path:
    """A job as FLARE hands it on: the archive, or where it lies."""
    return Path(content) if isinstance(content, str) else content
