"""Whether a job encrypts updates, and whether all of its parts agree on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvflare.app_common.app_constant import AppConstants

from fedseg.contract.plan import Plan
from fedseg.contract.protocol import UPLOAD
from fedseg.errors import ConfigurationError
from fedseg.filters.base import UpdateFilter
from fedseg.filters.encrypt import DecryptModel, EncryptUpdate
from fedseg.jobs.components import components
from fedseg.workflows.encrypted_training import EncryptedTraining

_ENCRYPT, _DECRYPT, _WORKFLOW = (
    f"{each.__module__}.{each.__name__}" for each in (EncryptUpdate, DecryptModel, EncryptedTraining)
)


def is_encrypted(server: dict[str, Any], client: dict[str, Any]) -> bool:
    """Whether a part of the job has to do with encryption, by the class paths."""
    return any(part["path"] in (_ENCRYPT, _DECRYPT, _WORKFLOW) for part in components([server, client]))


def check_encryption(
    plan: Plan, server: dict[str, Any], client: dict[str, Any], filters: Sequence[UpdateFilter]
) -> None:
    """Refuse a job in which one part encrypts and another does not know of it.

    Args:
        plan: of the job.
        server, client: contents of FLARE's two configuration files.
        filters: through which results of the task ``upload`` go, in order.

    Raises:
        ConfigurationError: names the part that is missing, or that cannot be there.
    """
    if not is_encrypted(server, client):
        return
    for each in filters:
        if each.guarantees:
            why = "Sites report the largest value of their update, which no guarantee would cover."
            raise ConfigurationError("task_result_filters", type(each).__name__, "left out in a job that encrypts", why)
        if each.private_names(plan) or each.frozen_names(plan):
            why = "All arrays of the network are encrypted as one vector."
            raise ConfigurationError("task_result_filters", type(each).__name__, "left out in a job that encrypts", why)
    if server["workflows"][0]["path"] != _WORKFLOW:
        raise ConfigurationError("workflow", server["workflows"][0]["path"], f"{_WORKFLOW} in a job that encrypts")
    tasks = [task for entry in client.get("executors", []) for task in entry.get("tasks", [])]
    if UPLOAD not in tasks:
        raise ConfigurationError("executors: tasks", tasks, f"a list with {UPLOAD!r} in a job that encrypts")
    after, before = (_by_task(client, key) for key in ("task_result_filters", "task_data_filters"))
    if _ENCRYPT not in after.get(UPLOAD, []):
        raise ConfigurationError("task_result_filters", after, f"for {UPLOAD!r} a chain that ends with {_ENCRYPT}")
    if after.get(AppConstants.TASK_TRAIN):
        why = "In a job that encrypts, updates leave with the other task; none would pass a filter here."
        raise ConfigurationError("task_result_filters: tasks", AppConstants.TASK_TRAIN, f"{UPLOAD!r}", why)
    for task in (AppConstants.TASK_TRAIN, AppConstants.TASK_VALIDATION):
        if _DECRYPT not in before.get(task, []):
            raise ConfigurationError("task_data_filters", before, f"for {task!r} a chain with {_DECRYPT}")


def _by_task(client: dict[str, Any], key: str) -> dict[str, list[str]]:
    """Class paths of the filters of each task."""
    found: dict[str, list[str]] = {}
    for entry in client.get(key, []):
        for task in entry["tasks"]:
            found.setdefault(task, []).extend(part["path"] for part in entry["filters"])
    return found
