"""Partial labels: which outputs of a task somebody has drawn in a case, and which classes of its label count then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedseg.errors import DataError
from fedseg.tasks.task import Task

if TYPE_CHECKING:
    from fedseg.tasks.objective import Objective

MOST_REGIONS = 40
"""Regions of a task with partial labels: each has a bit in the targets of the loss, beside the classes."""


def drawn_outputs(kind: Objective, names: Sequence[str] | None) -> tuple[bool, ...] | None:
    """Which outputs of a kind of task are drawn in a case.

    >>> from fedseg.tasks.objective import objective_of
    >>> from fedseg.tasks.registry import PANCREAS
    >>> drawn_outputs(objective_of(PANCREAS), ["pancreas"])
    (True, False)

    Args:
        kind: of the task.
        names: as the datalist has them; None: everything is drawn.

    Returns:
        For each output whether it is drawn; None where all are, and the case is like any other.

    Raises:
        DataError: a name is no output of the task, or the kind of task cannot leave out any.
    """
    if names is None:
        return None
    if unknown := sorted(set(names) - set(kind.outputs)):
        raise DataError(
            f"drawn names {', '.join(map(repr, unknown))}, but the {kind.output}s of the task {kind.task.name} are "
            f"{', '.join(kind.outputs)}. Name only these."
        )
    found = tuple(output in names for output in kind.outputs)
    if all(found):
        return None
    if not kind.partial or len(found) > MOST_REGIONS:
        raise DataError(
            f"drawn leaves out {kind.output}s, which the task {kind.task.name} cannot: partial labels are for "
            f"segmentation of at most {MOST_REGIONS} regions. Draw all, or take the case out."
        )
    return found


def undrawn_classes(task: Task, drawn: Sequence[bool] | None) -> tuple[str, ...]:
    """Classes that lie in no drawn region: their voxels in a label say nothing.

    Args:
        task: its classes and regions.
        drawn: see ``drawn_outputs``.
    """
    if drawn is None:
        return ()
    known = {name for region, is_drawn in zip(task.regions, drawn, strict=True) if is_drawn for name in region.classes}
    inside = {name for region in task.regions for name in region.classes}
    return tuple(name for name in task.classes if name in inside - known)


def told_classes(task: Task, drawn: Sequence[bool] | None) -> tuple[str, ...]:
    """Classes that a label can tell: those whose smallest region is drawn, or that lie in no region.

    Args:
        task: its classes and regions.
        drawn: see ``drawn_outputs``.
    """
    if drawn is None:
        return task.classes
    smallest: dict[str, bool] = {}
    for region, is_drawn in sorted(zip(task.regions, drawn, strict=True), key=lambda pair: -len(pair[0].classes)):
        smallest |= dict.fromkeys(region.classes, is_drawn)
    return tuple(name for name in task.classes if smallest.get(name, True))
