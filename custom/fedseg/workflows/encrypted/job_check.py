"""Whether all parts of a job agree that it encrypts updates."""

from __future__ import annotations

from nvflare.app_common.app_constant import AppConstants

from fedseg.contract.protocol import UPLOAD
from fedseg.contract.shapes import array_owners
from fedseg.errors import ConfigurationError
from fedseg.workflows.run.round_protocol import DECRYPT, ENCRYPT, JobParts


def check_encryption(job: JobParts, scaled: bool) -> None:
    """Refuse a job in which a part does not know that the others encrypt.

    Args:
        job: as far as it matters.
        scaled: whether the job fixes the scale of updates, so that sites need not tell their largest values.

    Raises:
        ConfigurationError: names the part that is missing, or that cannot be there.
    """
    why_all = "All arrays of the network are encrypted as one vector."
    if array_owners(job.plan):
        parts = [part.name for part in job.plan.network.parts]
        raise ConfigurationError("network.parts", parts, "parts that all sites share in a job that encrypts", why_all)
    for each in job.filters(UPLOAD):
        if each.guarantees and not scaled:
            why = "Otherwise sites report the largest value of their update, which no guarantee would cover."
            allowed = "left out in a job that encrypts without a fixed workflow.scale"
            raise ConfigurationError("task_result_filters", type(each).__name__, allowed, why)
        if each.private_names(job.plan) or each.frozen_names(job.plan):
            left_out = "left out in a job that encrypts"
            raise ConfigurationError("task_result_filters", type(each).__name__, left_out, why_all)
    if UPLOAD not in job.tasks:
        raise ConfigurationError("executors: tasks", list(job.tasks), f"a list with {UPLOAD!r} in a job that encrypts")
    if ENCRYPT not in job.result_filters.get(UPLOAD, []):
        allowed = f"for {UPLOAD!r} a chain that ends with {ENCRYPT}"
        raise ConfigurationError("task_result_filters", dict(job.result_filters), allowed)
    if job.result_filters.get(AppConstants.TASK_TRAIN):
        why = "In a job that encrypts, updates leave with the other task; none would pass a filter here."
        raise ConfigurationError("task_result_filters: tasks", AppConstants.TASK_TRAIN, f"{UPLOAD!r}", why)
    for task in (AppConstants.TASK_TRAIN, AppConstants.TASK_VALIDATION):
        if DECRYPT not in job.data_filters.get(task, []):
            raise ConfigurationError(
                "task_data_filters", dict(job.data_filters), f"for {task!r} a chain with {DECRYPT}"
            )
