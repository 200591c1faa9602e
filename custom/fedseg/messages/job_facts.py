"""What a run's record says of the job at hand: its content, who submitted it, and what runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey

from fedseg.files.digest import folder_digest
from fedseg.version import versions

_SUBMITTER = {
    "name": JobMetaKey.SUBMITTER_NAME,
    "organisation": JobMetaKey.SUBMITTER_ORG,
    "role": JobMetaKey.SUBMITTER_ROLE,
}


def job_facts(fl_ctx: FLContext, workspace: Any) -> dict[str, Any]:
    """Equal at the server and at its sites, but for the versions of packages.

    Args:
        fl_ctx: of a job's process.
        workspace: FLARE's workspace of this process.

    Returns:
        ``job`` (name), ``job_id`` (FLARE's), ``job_hash`` (over all files of the job's app), ``submitter`` (name,
        organisation and role as FLARE's server noted them at submission; empty in the simulator) and ``versions``.
    """
    job_id = fl_ctx.get_job_id()
    meta = fl_ctx.get_prop(FLContextKey.JOB_META)
    meta = meta if isinstance(meta, Mapping) else {}
    app = Path(workspace.get_app_config_dir(job_id)).parent
    return {
        "job": str(meta.get(JobMetaKey.JOB_NAME.value, "")),
        "job_id": str(job_id),
        "job_hash": folder_digest(app),
        "submitter": {name: str(meta[key.value]) for name, key in _SUBMITTER.items() if meta.get(key.value)},
        "versions": versions(),
    }
