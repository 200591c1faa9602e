"""Channels that a site never acquires: its cases list what there is, and lack the rest."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from fedseg.data.datalist import SPLITS, Case, Datalist
from fedseg.errors import DataError
from fedseg.tasks.task import Task


def needed_channels(task: Task, channels: Collection[str]) -> list[str]:
    """Which of some channels a task requires, so that no case may lack them."""
    return [name for name in _of_task(task, channels) if name not in task.optional_channels]


def without_channels(task: Task, datalist: Datalist, channels: Collection[str]) -> Datalist:
    """The datalist of a site that says that none of its cases has some channels.

    A case may say so too, by ``null`` in their places, or list the images of the other channels only.

    Args:
        task: gives the order of the channels; those that it does not have are of other tasks.
        datalist: of the site.
        channels: that no case has.

    Raises:
        DataError: the task requires such a channel, or a case has an image of it.
    """
    needed, positions = needed_channels(task, channels), tuple(map(task.channels.index, _of_task(task, channels)))
    if needed:
        raise DataError(
            f"The site never has {', '.join(needed)}, without which the task {task.name} takes no case. "
            "Let the task list it in optional_channels, or take it out of lacks in the site's profile."
        )
    if not positions:
        return datalist
    count = len(task.channels)
    splits = [tuple(_without(case, positions, count) for case in datalist.split(name)) for name in SPLITS]
    found = [case for cases in splits for case in cases if not set(positions) <= set(case.missing)]
    if found:
        names = ", ".join(task.channels[index] for index in positions)
        raise DataError(
            f"{len(found)} case(s) of a site that never has {names} list images of it (first: patient "
            f"{found[0].patient}). Correct the datalist, or lacks in the site's profile."
        )
    training, validation, test = splits
    return replace(datalist, training=training, validation=validation, test=test)


def _of_task(task: Task, channels: Collection[str]) -> list[str]:
    return [name for name in task.channels if name in channels]


def _without(case: Case, positions: tuple[int, ...], count: int) -> Case:
    """The case with these channels missing, where it lists one image for each of the others."""
    return replace(case, missing=positions) if not case.missing and len(case.images) == count - len(positions) else case
