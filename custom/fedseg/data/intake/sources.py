"""Intake: the cases in a folder or file as people have them (BraTS folders, Decathlon, nnU-Net, or a datalist)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedseg.data.datalist import FILE_NAME, SPLITS, Case, read_datalist, refuse_other_lists
from fedseg.data.intake.brats_folders import holds_brats, read_brats
from fedseg.data.intake.nnunet import as_decathlon, is_nnunet, read_nnunet
from fedseg.data.label_convention import check_values, find_convention, named_convention, with_convention
from fedseg.data.progress import Progress, silent
from fedseg.data.reading import read_image, read_label
from fedseg.data.splits import require_files
from fedseg.errors import DataError, UsageError
from fedseg.files.documents import load_json
from fedseg.tasks.registry import get_task, task_names
from fedseg.tasks.task import Task

Layout = Literal["datalist", "decathlon", "nnunet", "brats"]

# Names that data sets use for what a task here calls otherwise; only for noticing contradictions.
_SYNONYMS = {
    "t1w": "t1",
    "t1n": "t1",
    "t1gd": "t1ce",
    "t1c": "t1ce",
    "t2w": "t2",
    "t2f": "flair",
    "edema": "oedema",
    "non-enhancing tumor": "necrosis",
    "enhancing tumour": "enhancing",
    "enhancing tumor": "enhancing",
    "cancer": "tumour",
    "tumor": "tumour",
}


def find_layout(source: Path) -> tuple[Layout, Path]:
    """The layout of ``source``, and the file or folder that describes its cases.

    Raises:
        UsageError: ``source`` does not exist.
        DataError: it has none of the known layouts.
    """
    source = Path(os.path.abspath(source))
    if not source.exists():
        raise UsageError(f"{source} does not exist. Name a folder of images, a dataset.json or a datalist.json.")
    if source.is_file():
        return _layout_of(source), source
    if (source / FILE_NAME).is_file():
        return "datalist", source / FILE_NAME
    if (source / "dataset.json").is_file():
        return _layout_of(source / "dataset.json"), source / "dataset.json"
    if holds_brats(source):
        return "brats", source
    raise DataError(
        f"{source} has no layout that is known here: BraTS folders (<id>/<id>_t1.nii.gz ...), a dataset.json of the "
        "Decathlon or of nnU-Net, or a datalist.json. Write a datalist.json for other layouts."
    )


def read_source(source: Path, task: Task, convention: str | None = None) -> tuple[Case, ...]:
    """All labelled cases of ``source``, whatever its layout, with absolute paths.

    Args:
        source: a folder of BraTS folders, one of the Decathlon or of nnU-Net or its ``dataset.json``, a datalist or
            its folder.
        task: decides which images make up a case, and in what order.
        convention: the label convention that the user states for all files; None for what the source tells.

    Raises:
        UsageError: ``source`` does not exist.
        DataError: the layout is unknown, a case is incomplete or not labelled, or a file is missing.
    """
    layout, path = find_layout(source)
    if layout == "brats":
        cases = read_brats(path, task)
    elif layout == "decathlon":
        cases = _read_decathlon(path, task)
    elif layout == "nnunet":
        content = _read_json(path)
        cases = read_nnunet(path, content, len(task.channels))
        _refuse_contradictions(as_decathlon(content), path, task)
    else:
        datalist = read_datalist(path)
        cases = tuple(case for split in SPLITS for case in datalist.split(split))
    if not cases:
        raise DataError(f"{path} lists no labelled case.")
    for case in cases:
        if case.label is None and not case.supervision.weak:
            raise DataError(f"{path}: {case.images[0]} has no label. Label it, or take the case out.")
    require_files(cases)
    _check_first(cases, task, convention or _stated_convention(source))
    return cases


def convention_of(
    source: Path, task: Task, cases: Sequence[Case], given: str | None, progress: Progress = silent
) -> str | None:
    """The one label convention of a source: what the user gives, else what it states, else as ``find_convention`` does.

    Raises:
        DataError: as of ``find_convention`` and ``with_convention``.
    """
    name = given or _stated_convention(source)
    with_convention(task, name)
    return name or find_convention(task, cases, progress)


def _stated_convention(source: Path) -> str | None:
    """Only a datalist can state one."""
    layout, path = find_layout(source)
    return read_datalist(path).convention if layout == "datalist" else None


def guess_task(source: Path) -> Task:
    """The built-in task that ``source`` belongs to, judged by its layout, its name and its labels.

    Raises:
        UsageError: it cannot be told; the user has to name the task.
    """
    layout, path = find_layout(source)
    if layout == "brats":
        return get_task("brats")
    content = _read_json(path)
    name = str(content.get("task" if layout == "datalist" else "name") or "").lower()
    if name in task_names():
        return get_task(name)
    for task in map(get_task, task_names()):
        declared = as_decathlon(content) if layout == "nnunet" else content
        if layout != "datalist" and set(_declared_labels(declared)) == set(task.classes):
            return task
    raise UsageError(f"The task of {path} cannot be told from it. Name it: --task with one of {list(task_names())}.")


def origin_note(source: Path) -> dict[str, str]:
    """What a datalist should say about where its cases come from, and what stands for a patient in it."""
    layout, path = find_layout(source)
    patient = {
        "brats": "the subject; time points of a subject are one patient",
        "decathlon": "each volume, because a Decathlon data set names no patients",
        "nnunet": "each case, because nnU-Net names no patients",
        "datalist": "as the datalist says",
    }[layout]
    beside = (path if path.is_dir() else path.parent) / FILE_NAME
    drawn = {"images": "phantom"} if beside.is_file() and read_datalist(beside).phantoms else {}
    return {"layout": layout, "source": str(path), "patient": patient, **drawn}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = load_json(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is not JSON: {error}. Name a folder of images, a dataset.json or a datalist."
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object with a list of cases.")
    return content


def _layout_of(path: Path) -> Layout:
    content = _read_json(path)
    if is_nnunet(content):
        return "nnunet"
    is_decathlon = path.name == "dataset.json" or {"modality", "numTraining", "tensorImageSize"} & set(content)
    return "decathlon" if is_decathlon else "datalist"


def _read_decathlon(path: Path, task: Task) -> tuple[Case, ...]:
    content = _read_json(path)
    _refuse_contradictions(content, path, task)
    refuse_other_lists(content, ("training", "test"), path)
    entries = content.get("training")
    if not isinstance(entries, list):
        raise DataError(f"{path} has no list 'training' of images and labels, as a Decathlon dataset.json has.")
    cases = []
    for index, entry in enumerate(entries):
        entry = entry if isinstance(entry, dict) else {}
        images = entry["image"] if isinstance(entry.get("image"), list) else [entry.get("image")]
        if not images or not all(isinstance(i, str) and i for i in (*images, entry.get("label"))):
            raise DataError(f"{path}: training[{index}] must be an object with the paths 'image' and 'label'.")
        label = _below(path, entry["label"])
        # A data set without patient ids: one volume stands for one patient, named by its whole path.
        patient = _without_ending(entry["label"])
        files = [_below(path, str(i)) for i in images]
        cases.append(Case(tuple(_channels(files[0]) if len(files) == 1 else files), label, patient))
    if _labelled(content.get("test")):
        raise DataError(f"{path} has labelled cases under 'test', which is not read. Write a datalist.json with them.")
    return tuple(cases)


def _labelled(entries: Any) -> bool:
    return isinstance(entries, list) and any(isinstance(entry, dict) and "label" in entry for entry in entries)


def _channels(image: Path) -> list[Path]:
    """The file itself, or the files of its channels, as nnU-Net 1 has them beside a Decathlon's ``dataset.json``."""
    ending = "".join(image.suffixes[-2:]) if image.suffix == ".gz" else image.suffix
    found: list[Path] = []
    while (channel := image.with_name(f"{image.name.removesuffix(ending)}_{len(found):04d}{ending}")).is_file():
        found.append(channel)
    return [image] if image.exists() or not found else found


def _check_first(cases: Sequence[Case], task: Task, convention: str | None) -> None:
    """Refuse a data set whose first case shows that it was made for another task, or follows another convention.

    Files that cannot be read, and all the other cases, are for the data check.
    """
    case, told = cases[0], None if convention else named_convention(task, cases)
    task = with_convention(task, convention or told)
    try:
        channels = len(read_image(case.images)[0]) + len(case.missing)
        values = [0] if case.label is None else np.unique(read_label(case.label)[0]).tolist()
    except DataError:
        return
    if channels != len(task.channels):
        raise DataError(
            f"{case.images[0]} has {channels} channel(s), but the task {task.name} needs {list(task.channels)}. "
            "Choose the task that this data set was made for."
        )
    try:
        check_values(task, case, values)
    except DataError as error:
        hint = f" The names of the images tell {told}; --convention states another for all files." if told else ""
        raise DataError(f"{error}{hint}") from None


def _without_ending(entry: str) -> str:
    """``labelsTr/case_1.nii.gz`` -> ``case_1``; folders stay where there are deeper ones, so that names stay unique."""
    parts = Path(os.path.normpath(entry)).parts
    inner = "/".join(parts[1:] if len(parts) > 1 else parts)
    return inner.removesuffix(".gz").removesuffix(".nii").removesuffix(".mha")


def _below(path: Path, entry: str) -> Path:
    return Path(os.path.normpath(path.parent / entry))


def _declared_labels(content: Mapping[str, Any]) -> dict[str, int]:
    """Class name -> value of a Decathlon ``labels`` object, in the words of the tasks here, background left out."""
    labels = content.get("labels")
    if not isinstance(labels, Mapping):
        return {}
    known = {_word(name): int(value) for value, name in labels.items() if re.fullmatch("[0-9]{1,9}", str(value))}
    return {name: value for name, value in known.items() if value}


def _word(name: Any) -> str:
    return _SYNONYMS.get(str(name).lower(), str(name).lower())


def _refuse_contradictions(content: Mapping[str, Any], path: Path, task: Task) -> None:
    """A data set that says plainly that its channels or labels mean something else must not slip through."""
    modality = content.get("modality")
    names = [_word(modality[key]) for key in sorted(modality, key=str)] if isinstance(modality, Mapping) else []
    if set(names) == set(task.channels) and names != list(task.channels):
        raise DataError(
            f"{path} has its channels in the order {names}, but the task {task.name} takes {list(task.channels)}. "
            "Write the channels in this order, or declare a task with yours."
        )
    for name, value in _declared_labels(content).items():
        if name in task.classes and all(c.values[name] != value for c in task.conventions):
            raise DataError(
                f"{path} gives {name} the label {value}, but the task {task.name} writes it as "
                f"{sorted({c.values[name] for c in task.conventions})}. Map the labels, or declare a task with yours."
            )
