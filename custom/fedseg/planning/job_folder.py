"""A proposed job as files: a job folder, its task, and the reasons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedseg.contract.allowed_job_files import META_FILE, SERVER_FILE
from fedseg.contract.plan import parse_plan
from fedseg.contract.protocol import CLIENT_FILE, PLAN_FILE
from fedseg.files.documents import write_json, write_whole
from fedseg.files.names import JOB
from fedseg.planning.proposed_job import ProposedJob

TASK_FILE, REASONS_FILE = "task.json", "reasons.md"
ROUNDS = 40

_SERVER: dict[str, Any] = {
    "format_version": 2,
    "server": {"task_request_interval": 0.5},
    "workflows": [
        {
            "path": "fedseg.workflows.federated_training.FederatedTraining",
            "args": {"num_rounds": ROUNDS, "aggregator": {"path": "fedseg.aggregators.fedavg.FedAvg"}},
        }
    ],
    "components": [
        {
            "id": "curves",
            "path": "nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver",
            "args": {"events": ["fed.analytix_log_stats"]},
        }
    ],
}
_CLIENT: dict[str, Any] = {
    "format_version": 2,
    "executors": [
        {
            "tasks": ["prepare", "train", "validate", "submit_model"],
            "executor": {"path": "fedseg.executors.training.SegmentationExecutor"},
        }
    ],
}


def write_job(proposed: ProposedJob, name: str, out: Path) -> Path:
    """Write the job folder ``out/name``, the task ``out/task.json`` and the reasons ``out/reasons.md``.

    Args:
        proposed: the job.
        name: of the job: letters, digits, ``_`` and ``-``.
        out: folder that holds none of these yet.

    Returns:
        The job folder.

    Raises:
        ConfigurationError: the name is not allowed, or the plan would be refused; nothing is written then.
    """
    JOB.check("--name", name)
    parse_plan(proposed.plan)
    config = out / name / "app" / "config"
    for file, content in ((PLAN_FILE, proposed.plan), (SERVER_FILE, _SERVER), (CLIENT_FILE, _CLIENT)):
        write_json(config / file, content)
    write_json(out / name / META_FILE, {"name": name, "deploy_map": {"app": ["@ALL"]}})
    write_json(out / TASK_FILE, proposed.plan["task"])
    write_whole(out / REASONS_FILE, reasons(proposed, name))
    return out / name


def reasons(proposed: ProposedJob, name: str) -> str:
    """Why the job says what it says, in Markdown."""
    lines = [f"# Why {name} says what it says", "", *(f"- {text}" for text in proposed.reasons)]
    if proposed.warnings:
        lines += ["", "Look at these before you submit it:", "", *(f"- {text}" for text in proposed.warnings)]
    return "\n".join([*lines, ""])
