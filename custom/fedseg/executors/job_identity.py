"""What makes a job the same job for a site: its plan, its filters and everything else that it asks of the site."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from nvflare.apis.fl_context import FLContext

from fedseg.contract.plan import Plan
from fedseg.contract.protocol import CLIENT_FILE
from fedseg.files.documents import read_json
from fedseg.filters.chain import update_chain


def job_fingerprint(plan: Plan, fl_ctx: FLContext) -> str:
    """SHA-256 over the plan, the site's part of the job, and the filters through which updates leave.

    The filters of the site itself are among them, so a site that changes them starts a new run.
    """
    workspace = fl_ctx.get_engine().get_workspace()
    path = Path(workspace.get_app_config_dir(fl_ctx.get_job_id())) / CLIENT_FILE
    content = {
        "plan": plan.digest,
        "client": read_json(path, "the site's part of a job") if path.is_file() else None,
        "filters": [f.describe() for f in update_chain(fl_ctx)],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
