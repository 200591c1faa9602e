"""The filters that a job declares: found, and checked to make a chain that an update can pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from nvflare.apis.fl_constant import FilterKey

from fedseg.contract.plan import Plan
from fedseg.contract.protocol import SHARE
from fedseg.contract.update import DENSE, QUANTISED, SPARSE, Stage
from fedseg.errors import ConfigurationError
from fedseg.filters.base import UpdateFilter
from fedseg.filters.chain import UPDATE_TASKS
from fedseg.filters.restore import RestoreUpdate

RESULTS, DATA = "task_result_filters", "task_data_filters"
_RESTORE = f"{RestoreUpdate.__module__}.{RestoreUpdate.__name__}"


def declared_filters(config: dict[str, Any]) -> list[dict[str, Any]]:
    """All filter components of a configuration file, in order."""
    return [component for key in (DATA, RESULTS) for _, chain in _chains(config, key) for component in chain]


def filters_of(config: dict[str, Any], task: str) -> list[dict[str, Any]]:
    """The components through which results of ``task`` go, in order."""
    return [component for tasks, chain in _chains(config, RESULTS) if task in tasks for component in chain]


def filter_paths(config: dict[str, Any], key: str) -> dict[str, list[str]]:
    """Class paths of the filters of each task, in order.

    Args:
        config: of FLARE's client.
        key: ``RESULTS`` or ``DATA``.
    """
    found: dict[str, list[str]] = {}
    for tasks, chain in _chains(config, key):
        for task in tasks:
            found.setdefault(task, []).extend(component["path"] for component in chain)
    return found


def check_tasks(client: dict[str, Any]) -> None:
    """Refuse result filters for tasks whose results are no updates: every such result would be held back.

    Raises:
        ConfigurationError: names the task; also where a task has two chains, which FLARE refuses.
    """
    seen: list[str] = []
    for tasks, _ in _chains(client, RESULTS):
        for task in tasks:
            if task not in (*UPDATE_TASKS, SHARE):
                known = [*UPDATE_TASKS, SHARE]
                raise ConfigurationError(f"{RESULTS}: tasks", task, f"one of {known}: only those send updates")
            if task in seen:
                raise ConfigurationError(f"{RESULTS}: tasks", task, "in one chain of filters only")
            seen.append(task)


def check_chain(plan: Plan, filters: Sequence[Any], shared_arrays: bool, restored: bool) -> None:
    """Refuse filters through which no update of this job can pass.

    Args:
        plan: of the job.
        filters: through which an update goes at a site, in order.
        shared_arrays: whether shared arrays travel with the updates.
        restored: whether the server has ``RestoreUpdate``.

    Raises:
        ConfigurationError: the first thing that does not fit.
    """
    form, last = DENSE, 0
    for each in filters:
        name = type(each).__name__
        if not isinstance(each, UpdateFilter):
            raise ConfigurationError(RESULTS, name, "filters over updates", "docs/reference/method-table.md has them.")
        if each.stage <= last:
            order = ", ".join(stage.name.lower() for stage in Stage)
            raise ConfigurationError(RESULTS, name, f"in its place: {order}; at most one filter of each")
        if form not in each.accepts:
            raise ConfigurationError(RESULTS, name, f"before the filter that makes the update {form}")
        if shared_arrays and not each.accepts_shared_arrays:
            allowed = "a filter that protects shared arrays too, in a job with workflow.shared_arrays"
            raise ConfigurationError(RESULTS, name, allowed)
        each.private_names(plan)
        each.frozen_names(plan)
        last, form = int(each.stage), each.gives or form
    if form in (SPARSE, QUANTISED) and not restored:
        what = f'{{"path": "{_RESTORE}", "args": {{}}}} for the task train'
        raise ConfigurationError(f"the server's {RESULTS}", None, f"{what}, since updates arrive {form}")


def restores(server: dict[str, Any], task: str) -> bool:
    """Whether the server restores the results of ``task`` before they are aggregated."""
    return any(
        component.get("path") == _RESTORE
        for tasks, chain in _chains(server, RESULTS, FilterKey.IN)
        if task in tasks
        for component in chain
    )


def _chains(
    config: dict[str, Any], key: str, direction: str | None = None
) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
    """Tasks and components of each chain; only those of ``direction`` where one is given."""
    entries = config.get(key, [])
    if not isinstance(entries, list):
        raise ConfigurationError(key, entries, "a list of chains")
    for entry in entries:
        tasks, chain = (entry.get("tasks"), entry.get("filters")) if isinstance(entry, dict) else (None, None)
        texts = isinstance(tasks, list) and all(isinstance(task, str) for task in tasks)
        parts = isinstance(chain, list) and all(isinstance(c, dict) and isinstance(c.get("path"), str) for c in chain)
        if not texts or not parts or not tasks or not chain:
            allowed = '{"tasks": [names], "filters": [{"path": ..., "args": {...}}]}'
            raise ConfigurationError(key, entry, allowed)
        if direction is None or str(entry.get("direction", direction)).lower() in (direction, FilterKey.INOUT):
            yield tasks, chain
