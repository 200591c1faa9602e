"""From the values of a label file to the classes of a task, and from predicted regions back to label values."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fedseg.errors import DataError
from fedseg.tasks.task import LabelConvention, Task


def recognise_convention(task: Task, values: Iterable[int | float]) -> LabelConvention:
    """The label convention that a file follows, judged by the values that occur in it.

    Args:
        task: the task with its conventions, preferred one first (taken when a file fits several).
        values: the distinct values of the file.

    Raises:
        DataError: no convention has all these values.
    """
    found = sorted({float(v) for v in values})
    for convention in task.conventions:
        if set(found) <= {float(v) for v in convention.allowed}:
            return convention
    shown = [int(v) if v.is_integer() else v for v in found]
    allowed = " or ".join(f"{sorted(c.allowed)} ({c.name})" for c in task.conventions)
    raise DataError(
        f"label values {shown[:12]}{'...' if len(shown) > 12 else ''} do not belong to the task {task.name}, "
        f"which allows {allowed}. Map the labels of this file to one of these."
    )


def to_classes(task: Task, label: np.ndarray) -> np.ndarray:
    """Internal class values (uint8: 0 background, i + 1 for class i) of a label array in any of the conventions."""
    values = np.unique(label)
    convention = recognise_convention(task, values.tolist())
    result = np.zeros(label.shape, np.uint8)
    for index, name in enumerate(task.classes):
        result[label == convention.values[name]] = index + 1
    return result


def to_values(task: Task, classes: np.ndarray, convention: LabelConvention | None = None) -> np.ndarray:
    """Label values (uint8) of an array of internal class values; the task's first convention where none is given."""
    values = (convention or task.conventions[0]).values
    table = np.array([0, *(values[name] for name in task.classes)], np.uint8)
    return table[classes]


def to_regions(task: Task, classes: np.ndarray) -> np.ndarray:
    """Boolean region masks, shape [R, ...], of internal class values, shape [...]."""
    return np.stack([np.isin(classes, task.region_values(region)) for region in task.regions])


def paint_regions(task: Task, regions: np.ndarray) -> np.ndarray:
    """Internal class values, shape [...], of boolean region masks, shape [R, ...]: the smallest region wins."""
    result = np.zeros(regions.shape[1:], np.uint8)
    for region, value in task.painting_order:
        result[regions[region]] = value
    return result
