"""What a task asks of the grid of a case: a plausible voxel size, and axes that lie in the body as is usual."""

from __future__ import annotations

from fedseg.data.grid import Grid
from fedseg.data.problems import Report, shown
from fedseg.errors import ConfigurationError
from fedseg.memory import check_memory
from fedseg.tasks.task import Task

OBLIQUE_DEGREES = 10.0


def check_place(task: Task, grid: Grid, stated: bool, report: Report) -> None:
    """Report what is wrong with the grid of a case.

    Args:
        task: says which voxel sizes are plausible.
        grid: the grid of the case.
        stated: whether the file says how the axes lie in the body.
        report: where to.
    """
    low, high = task.spacing_range
    if not (low <= min(grid.spacing) and max(grid.spacing) <= high):
        report(
            "spacing",
            "error",
            f"The voxel size {shown(grid.spacing)} mm is outside {low:g} to {high:g} mm of the task {task.name}.",
            "Check the header's units and spacing; convert the image again from DICOM.",
        )
    voxels = grid.voxels_at(task.spacing)
    try:
        check_memory("a case at the voxel size of the task", len(task.channels) * voxels * 4, remedy="")
    except ConfigurationError as error:
        report(
            "memory", "error", str(error), f"The task {task.name} may have too fine a spacing for such large images."
        )
    if min(grid.shape) == 1:
        message = f"The shape is {shown(grid.shape)}: a single slice, which is hardly a volume."
        report("dimensions", "warning", message, "Fine if the task is about slices; else convert the whole series.")
    if not stated:
        message = "The header states no orientation, so left and right are a guess."
        report("orientation", "warning", message, "Convert the image again from DICOM, keeping its orientation.")
    elif grid.obliquity > OBLIQUE_DEGREES:
        report(
            "orientation",
            "warning",
            f"The axes are turned by {grid.obliquity:.0f} degrees against the body's axes.",
            "Usable; resample to body axes if most other images are not turned.",
        )
