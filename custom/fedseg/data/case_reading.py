"""The one reading of a case: its files, their grids and their values, against a task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedseg.data.checks.grid import check_place
from fedseg.data.checks.voxels import check_image
from fedseg.data.datalist import Case
from fedseg.data.grid import Grid, compare_grids
from fedseg.data.problems import Report, Reporter, refuse
from fedseg.data.reading import ImageFile, open_image, require_one_channel, whole_numbers
from fedseg.tasks.task import Task


@dataclass(frozen=True)
class OpenCase:
    """A case of which all headers were read.

    Attributes:
        images: one for each image file of the case; None where it cannot be used.
        label: likewise; None without one.
    """

    images: tuple[ImageFile | None, ...]
    label: ImageFile | None

    @property
    def grid(self) -> Grid | None:
        """The grid of the case: that of its first image that can be used."""
        return next((image.grid for image in self.images if image), None)


def open_case(task: Task, case: Case, reporter: Reporter) -> OpenCase:
    """Read the headers of all files of a case, and report what is wrong with each or among them. Reads no voxel.

    Args:
        task: what the case is checked against.
        case: the files.
        reporter: gives for a file the report to tell of it; ``refuse`` to end at the first error.
    """
    images = tuple(open_image(path, reporter(path)) for path in case.images)
    _check_channel_count(task, case, images, reporter(case.images[0]))
    label = open_image(case.label, reporter(case.label)) if case.label else None
    usable = []
    for image in filter(None, (*images, label)):
        may_hold_channels = len(case.channels) == 1 and image is not label
        if may_hold_channels or require_one_channel(image, reporter(image.path)):
            usable.append(image)
    for image in usable[:1]:
        check_place(task, image.grid, image.stated, reporter(image.path))
    for image in usable[1:]:
        compare_grids(image.grid, usable[0].path, usable[0].grid, reporter(image.path))
    return OpenCase(images, label)


def read_values(task: Task, image: ImageFile, report: Report) -> np.ndarray | None:
    """The voxels [C, X, Y, Z] of an image of a case, float32; None with a report where they cannot be used."""
    voxels = image.read(report)
    return voxels if voxels is not None and check_image(task, voxels, report) else None


def read_label_values(label: ImageFile, report: Report) -> np.ndarray | None:
    """The whole numbers [X, Y, Z] of the label of a case, float32; None with a report where they are others."""
    voxels = label.read(report) if require_one_channel(label, lambda *_: None) else None
    return None if voxels is None else whole_numbers(voxels[0], report)


def read_case(task: Task, case: Case) -> tuple[np.ndarray, Grid, np.ndarray | None]:
    """Channels [C, X, Y, Z] of a case in float32, their grid, and the label's values [X, Y, Z] or None without one.

    Channels that were not acquired are 0.

    Raises:
        FileError: what ``fedseg check-data`` would call an error of one of the files.
    """
    opened = open_case(task, case, refuse)
    arrays = [read_values(task, image, refuse(image.path)) for image in opened.images if image]
    label = read_label_values(opened.label, refuse(opened.label.path)) if opened.label and task.classes else None
    assert opened.grid is not None  # ``refuse`` raises
    array = np.concatenate([array for array in arrays if array is not None])
    for position in case.missing:
        array = np.insert(array, position, 0, axis=0)
    return array, opened.grid, label


def _check_channel_count(task: Task, case: Case, images: tuple[ImageFile | None, ...], report: Report) -> None:
    wanted, found = len(task.channels), len(images) + len(case.missing)
    if not case.missing and found == 1:
        if images[0] is None:
            return
        found = images[0].channels
    if found != wanted:
        report(
            "channel-count",
            "error",
            f"The case has {found} image(s), but the task {task.name} takes {wanted}: {', '.join(task.channels)}.",
            "List one file for each of them, in this order (or one 4-D file with them in its last axis).",
        )
        return
    needed = [task.channels[i] for i in case.missing if task.channels[i] not in task.optional_channels]
    if needed:
        message = f"The case lacks {', '.join(needed)}, without which the task {task.name} takes no case."
        report("channel-missing", "error", message, "Name the file, or let the task list it in optional_channels.")
