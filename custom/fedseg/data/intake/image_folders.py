"""Images without a datalist, to be segmented: a file, or a folder in which names tell cases and channels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedseg.data.datalist import FILE_NAME, Case, Datalist, read_datalist
from fedseg.errors import DataError, UsageError
from fedseg.files.folders import walk
from fedseg.tasks.task import Task

ENDINGS = (".nii", ".nii.gz")


def read_cases(path: Path, task: Task, skip: Path | None = None) -> Datalist:
    """The cases that ``path`` means.

    - a datalist, or a folder with ``datalist.json``: what it lists;
    - an image: one case. For a task with several channels it must hold all of them;
    - a folder of images, at any depth: with one channel each image is a case. With several, ``<case>_<channel>.nii.gz``
      (or ``-``, or nnU-Net's ``<case>_0000.nii.gz`` by the task's order) belong together where they lie side by side;
      other files, such as labels, are passed over.

    Args:
        path: file or folder.
        task: names the channels.
        skip: folder of results, whose images are none to be segmented.

    Returns:
        A datalist; cases that no datalist names stand under ``test``.

    Raises:
        UsageError: there is no such file or folder.
        DataError: no image is there, or a case lacks a channel that the task does not call optional.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist. Name an image, a folder of images, or a datalist.")
    if (path / FILE_NAME).is_file() or (path.is_file() and not path.name.endswith(ENDINGS)):
        return read_datalist(path)
    if path.is_file():
        return Datalist(test=(Case((path,), None, _split(path, task)[0]),), path=path)
    left_out = skip.resolve() if skip is not None else None
    found: dict[tuple[Path, str], dict[int, Path]] = {}
    for place, _, names in walk(path):
        if left_out is not None and place.resolve().is_relative_to(left_out):
            continue
        for file in (place / name for name in names if name.endswith(ENDINGS)):
            case, channel = _split(file, task)
            if channel is not None:
                found.setdefault((place, case), {})[channel] = file
    if not found:
        named = f" named <case>_<channel>.nii.gz, of {', '.join(task.channels)}" if len(task.channels) > 1 else ""
        raise DataError(f"{path} holds no image of the task {task.name}: it takes NIfTI files{named}.")
    _refuse_incomplete(path, found, task)
    cases = [
        Case(
            tuple(files[i] for i in sorted(files)),
            None,
            name,
            tuple(i for i in range(len(task.channels)) if i not in files),
        )
        for (_, name), files in found.items()
    ]
    return Datalist(test=tuple(cases), path=path)


def _split(file: Path, task: Task) -> tuple[str, int | None]:
    """A file's case and channel; no channel where there are several and its name tells none."""
    stem = file.name.removesuffix(".gz").removesuffix(".nii")
    for position, channel in enumerate(task.channels):
        for end in (f"_{channel}", f"-{channel}", f"_{position:04d}"):
            if stem.endswith(end) and stem != end:
                return stem.removesuffix(end), position
    return stem, 0 if len(task.channels) == 1 else None


def _refuse_incomplete(folder: Path, found: Mapping[tuple[Path, str], Mapping[int, Path]], task: Task) -> None:
    needed = [i for i, channel in enumerate(task.channels) if channel not in task.optional_channels]
    lacks = {key: [task.channels[i] for i in needed if i not in files] for key, files in found.items()}
    told = [f"{place / name} lacks {', '.join(names)}" for (place, name), names in lacks.items() if names]
    if told:
        raise DataError(f"{len(told)} of {len(found)} cases in {folder} are incomplete: {'; '.join(told)}.")
