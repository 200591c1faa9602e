"""The site's look at a job that a server sends, before anything of it is unpacked or read."""

from __future__ import annotations

from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.workspace import Workspace
from nvflare.private.admin_defs import Message, error_reply
from nvflare.private.fed.client.training_cmds import DeployProcessor
from nvflare.private.fed.utils.app_deployer import AppDeployer

from fedseg.contract.allowed_job_files import check_app_archive, check_name
from fedseg.errors import ConfigurationError


class ScreeningDeployer(AppDeployer):
    """A component of a site's ``local/resources.json``, which FLARE's client asks to deploy every job.

    What it says goes to the server, and tells of the job only.
    """

    def __init__(self) -> None:
        """Take the place of what unpacks a job in FLARE's client to look for its signature, before it asks for this.

        FLARE has no setting for that.
        """
        super().__init__()
        DeployProcessor.process = _process_screened

    def deploy(
        self,
        workspace: Workspace,
        job_id: str,
        job_meta: dict[str, Any],
        app_name: str,
        app_data: bytes,
        fl_ctx: FLContext,
    ) -> str | None:
        """Deploy a job, or say why not."""
        try:
            check_name(job_meta.get(JobMetaKey.JOB_NAME.value))
            check_app_archive(app_data)
        except ConfigurationError as error:
            return str(error)
        answer: str | None = super().deploy(workspace, job_id, job_meta, app_name, app_data, fl_ctx)
        return answer


_PROCESS = DeployProcessor.process


def _process_screened(processor: DeployProcessor, request: Message, engine: Any) -> Message:
    """Refuse a job by what its archive says before any of it is on the disk; else let FLARE go on."""
    try:
        check_app_archive(request.body)
    except ConfigurationError as error:
        return error_reply(str(error))
    return _PROCESS(processor, request, engine)
