"""The one label convention of a data set: stated, told by the names of its files, or found in all its labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from fedseg.data.datalist import SPLITS, Case, Datalist
from fedseg.data.problems import FileError
from fedseg.data.progress import Progress, silent
from fedseg.data.reading import read_label
from fedseg.errors import DataError
from fedseg.tasks.segmentation.labels import recognise_convention
from fedseg.tasks.task import LabelConvention, Task

# The challenges from 2023 on name the sequences so, and write the enhancing tumour as 3; later ones have a class 4.
_NAMES_OF = {"BraTS 2023": re.compile(r".*[-_](t1n|t1c|t2w|t2f)\.nii(\.gz)?", re.IGNORECASE)}
_STATE = "State the convention that all files follow: --convention of the import, or label_convention in the datalist."


def with_convention(task: Task, name: str | None) -> Task:
    """The task with one label convention only; as it is where none is named.

    Raises:
        DataError: the task has no convention of this name.
    """
    if name is None:
        return task
    chosen = tuple(convention for convention in task.conventions if convention.name == name)
    if not chosen:
        known = ", ".join(convention.name for convention in task.conventions) or "none"
        raise DataError(f"The label convention {name!r} is none of the task {task.name}, which knows: {known}.")
    return replace(task, conventions=chosen)


def named_convention(task: Task, cases: Iterable[Case]) -> str | None:
    """The convention that the names of image files tell; None where they tell none of the task."""
    known = [convention.name for convention in task.conventions]
    for name, pattern in _NAMES_OF.items():
        if name in known and any(pattern.fullmatch(image.name) for case in cases for image in case.images):
            return name
    return None


def find_convention(task: Task, cases: Sequence[Case], progress: Progress = silent) -> str | None:
    """The one convention that all label files follow.

    Args:
        task: with its conventions, the preferred one first.
        cases: of one data set. A label that cannot be read says nothing.
        progress: shows how far the reading is.

    Returns:
        Its name; None where the task has only one, or none.

    Raises:
        DataError: the files follow several conventions, none, or might follow any of two that mean different things.
    """
    if len(task.conventions) < 2:
        return None
    if (named := named_convention(task, cases)) is not None:
        return named
    left, seen, first = list(task.conventions), set[int](), ""
    for case in progress(cases, "Reading labels", len(cases)):
        values = _values(case)
        if not values:
            continue
        check_values(task, case, values)
        fitting = [convention for convention in left if values <= convention.allowed]
        if not fitting:
            names = " or ".join(convention.name for convention in left)
            raise DataError(
                f"{case.label} does not follow {names}, as {first} does. Map the labels of all files to one convention."
            )
        if len(fitting) < len(left):
            first = str(case.label)
        left, seen = fitting, seen | values
    if len({meaning(convention, seen) for convention in left}) > 1:
        names = " or ".join(convention.name for convention in left)
        raise DataError(f"The labels {sorted(seen - {0})} may mean {names}. {_STATE}")
    return left[0].name


def settled(task: Task, datalist: Datalist, cases: Sequence[Case] | None = None) -> Datalist:
    """The datalist with its convention stated, found by ``find_convention`` where it states none.

    Args:
        task: what the labels are for.
        datalist: of one site.
        cases: those whose labels are read; None reads all.

    Raises:
        DataError: as of ``find_convention`` and ``with_convention``.
    """
    if datalist.convention is None:
        every = [case for split in SPLITS for case in datalist.split(split)]
        return replace(datalist, convention=find_convention(task, every if cases is None else cases))
    with_convention(task, datalist.convention)
    return datalist


def check_values(task: Task, case: Case, values: Iterable[int]) -> None:
    """Refuse label values that are not the task's.

    Raises:
        DataError: names the file first.
    """
    try:
        recognise_convention(task, values)
    except DataError as error:
        raise DataError(f"{case.label}: {error}") from None


def _values(case: Case) -> set[int]:
    if case.label is None:
        return set()
    try:
        return {int(value) for value in np.unique(read_label(case.label)[0])}
    except FileError:
        return set()


def meaning(convention: LabelConvention, values: set[int]) -> tuple[tuple[str, int], ...]:
    """What the values mean in a convention."""
    return tuple(sorted((name, value) for name, value in convention.values.items() if value in values))
