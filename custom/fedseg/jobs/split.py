"""Whether a job trains a network in two parts, and whether all of its parts agree on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedseg.contract.plan import Plan
from fedseg.errors import ConfigurationError
from fedseg.executors.split.executor import SplitExecutor
from fedseg.jobs.components import components
from fedseg.training.split.halves import check_split
from fedseg.workflows.split_training import SplitTraining

_WORKFLOW, _EXECUTOR = (f"{each.__module__}.{each.__name__}" for each in (SplitTraining, SplitExecutor))


def is_split(server: dict[str, Any], client: dict[str, Any]) -> bool:
    """Whether a part of the job has to do with split training, by the class paths."""
    return any(part["path"] in (_WORKFLOW, _EXECUTOR) for part in components([server, client]))


def check_split_job(
    plan: Plan, server: dict[str, Any], client: dict[str, Any], filters: Sequence[Any], initial: bool
) -> None:
    """Refuse a job in which one part splits the network and another does not know of it.

    Args:
        plan: of the job.
        server, client: contents of FLARE's two configuration files.
        filters: through which results of the task ``train`` go.
        initial: whether the job brings a model to start from.

    Raises:
        ConfigurationError: names the part that is missing, or that cannot be there.
    """
    if plan.split is None and not is_split(server, client):
        return
    if plan.split is None:
        raise ConfigurationError("split", None, "given in the plan of a job of split training")
    check_split(plan.split, plan)
    if server["workflows"][0]["path"] != _WORKFLOW:
        raise ConfigurationError("workflow", server["workflows"][0]["path"], f"{_WORKFLOW} where the plan has split")
    for entry in client.get("executors", []):
        if entry["executor"]["path"] != _EXECUTOR:
            raise ConfigurationError("executor", entry["executor"]["path"], f"{_EXECUTOR} where the plan has split")
    if filters:
        why = "Features and their gradients do not pass them, so they would protect nothing."
        raise ConfigurationError("task_result_filters", type(filters[0]).__name__, "left out in split training", why)
    if plan.training.local_epochs != 1:
        why = "A round is one pass over the training cases of the largest site."
        raise ConfigurationError("training.local_epochs", plan.training.local_epochs, "1 in split training", why)
    if plan.training.validate_after:
        raise ConfigurationError("training.validate_after", True, "false in split training")
    if initial:
        raise ConfigurationError("initial model", "given", "left out in split training")
