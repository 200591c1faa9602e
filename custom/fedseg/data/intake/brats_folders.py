"""BraTS folders: one folder a case, one file a sequence, in the names of the challenges up to 2021 and from 2023."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from fedseg.data.datalist import Case
from fedseg.errors import DataError
from fedseg.files.folders import walk
from fedseg.tasks.task import Task

SEQUENCES = ("t1", "t1ce", "t2", "flair")
_OF_SUFFIX = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"} | {s: s for s in (*SEQUENCES, "seg")}
_FILE = re.compile(rf"(?P<id>[^.].*)[-_](?P<suffix>{'|'.join(_OF_SUFFIX)})\.nii(\.gz)?", re.IGNORECASE)
# BraTS-GLI-00001-000: the last group counts the time points of one patient.
_TIME_POINT = re.compile(r"(?P<patient>BraTS-(?:[A-Za-z]+-)+\d+)-\d+", re.IGNORECASE)


def holds_brats(folder: Path) -> bool:
    """Whether some folder below holds a file with a BraTS name."""
    return any(_FILE.fullmatch(name) for _, folders, names in walk(folder) for name in (*folders, *names))


def patient_of(case_id: str) -> str:
    """The patient of a BraTS case: time points of the 2023 challenges share one, else the case is the patient."""
    match = _TIME_POINT.fullmatch(case_id)
    return match["patient"] if match else case_id


def read_brats(folder: Path, task: Task) -> tuple[Case, ...]:
    """The cases below ``folder``, sorted by id.

    Raises:
        DataError: cases lack their segmentation, or a sequence that the task does not call optional; all are named. Or
            a case has a sequence twice, or the task takes other images.
    """
    other = [channel for channel in task.channels if channel not in SEQUENCES]
    if other:
        raise DataError(
            f"{folder} holds BraTS cases ({', '.join(SEQUENCES)}), but the task {task.name} takes {', '.join(other)}. "
            "Choose the task brats, or declare one with these channels."
        )
    found: dict[tuple[Path, str], dict[str, Path]] = {}
    for place, folders, names in walk(folder):
        packed = [name for name in folders if _FILE.fullmatch(name)]
        folders[:] = [name for name in folders if name not in packed]  # their files have names of their own
        _collect(
            {name: place / name for name in names} | {name: _only_file(place / name) for name in packed}, place, found
        )
        if not folders and place.name.startswith("BraTS") and not any(map(_FILE.fullmatch, (*packed, *names))):
            raise DataError(f"{place} holds no sequence at all. Complete or remove this folder.")
    cases = sorted(found.items(), key=lambda item: item[0][1])
    _refuse_incomplete(folder, found, task)
    return tuple(
        Case(
            tuple(files[channel] for channel in task.channels if channel in files),
            files["seg"],
            patient_of(case_id),
            tuple(i for i, channel in enumerate(task.channels) if channel not in files),
        )
        for (_, case_id), files in cases
    )


def _refuse_incomplete(folder: Path, cases: Mapping[tuple[Path, str], Collection[str]], task: Task) -> None:
    needed = [name for name in (*task.channels, "seg") if name not in task.optional_channels]
    lacks = {case: [name for name in needed if name not in files] for case, files in cases.items()}
    lacks |= {case: list(task.channels) for case, files in cases.items() if not set(files) & set(task.channels)}
    incomplete = [f"{place}: {case} lacks {', '.join(names)}" for (place, case), names in lacks.items() if names]
    if incomplete:
        raise DataError(
            f"{len(incomplete)} of {len(cases)} cases in {folder} are incomplete: {'; '.join(incomplete)}. "
            "Complete the copy, remove these folders, or let the task list the sequences that cases may lack in "
            "optional_channels."
        )


def _only_file(folder: Path) -> Path:
    """The image in a folder that has an image's name (``x_t1.nii/00001_final_t1.nii``), as some archives unpack.

    Raises:
        DataError: there is none, or several.
    """
    files = [path for path in sorted(folder.iterdir()) if path.name.lower().endswith((".nii", ".nii.gz"))]
    if len(files) != 1:
        raise DataError(f"{folder} has an image's name and should hold one image, but holds {len(files)}. Move it out.")
    return files[0]


def _collect(files_of: dict[str, Path], place: Path, found: dict[tuple[Path, str], dict[str, Path]]) -> None:
    for name, path in sorted(files_of.items()):
        match = _FILE.fullmatch(name)
        if not match:
            continue
        files = found.setdefault((place, match["id"]), {})
        sequence = _OF_SUFFIX[match["suffix"].lower()]
        if sequence in files:
            raise DataError(f"{place} has {sequence} twice: {files[sequence].name} and {name}. Remove one.")
        files[sequence] = path
