"""The check of one case: its files, their grids, and (unless quick) what their voxels hold."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage

from fedseg.data.checks.findings import Finding, Severity
from fedseg.data.checks.grid import Grid, check_grids
from fedseg.data.checks.voxels import check_image, check_label, content_hash
from fedseg.data.datalist import Case
from fedseg.tasks.objective import objective_of
from fedseg.tasks.task import Task

# What nibabel, gzip and numpy raise for files that are truncated, damaged or something else than an image.
READ_ERRORS = (OSError, EOFError, zlib.error, ValueError, ImageFileError, HeaderDataError)


@dataclass
class CaseFacts:
    """What is known of one case after looking at it.

    Attributes:
        split, case: where it stands in the datalist.
        findings: what a person should know.
        grid: the grid of the first image that could be read.
        contents: file -> key that is equal for files with equal voxels (for equal paths, when quick).
        conventions: names of the label conventions that the label file fits; None where it was not read or fits none.
        classes: classes of the task that occur in the label.
    """

    split: str
    case: Case
    findings: list[Finding] = field(default_factory=list)
    grid: Grid | None = None
    contents: dict[Path, str] = field(default_factory=dict)
    conventions: tuple[str, ...] | None = None
    classes: tuple[str, ...] = ()

    def reporter(self, file: Path | None) -> Callable[[str, Severity, str, str], None]:
        """A function ``(code, severity, message, remedy)`` that notes a finding about ``file``."""

        def report(code: str, severity: Severity, message: str, remedy: str) -> None:
            named = str(file) if file else ""
            self.findings.append(Finding(code, severity, message, remedy, named, self.split, self.case.patient))

        return report


def inspect_case(task: Task, case: Case, split: str, quick: bool = False) -> CaseFacts:
    """Look at all files of one case; holds one image in memory at a time.

    Args:
        task: what the case is checked against.
        case: its files.
        split: where it stands.
        quick: look at files and headers only, read no voxel.
    """
    facts = CaseFacts(split, case)
    headers = {file: _open(file, facts) for file in case.images}
    _check_channel_count(task, case, headers, facts)
    label = _open(case.label, facts) if case.label else None
    if case.label is None and objective_of(task).needs_label:
        _report_missing_label(facts)
    grids = {file: Grid.of(image) for file, image in headers.items() if image is not None}
    if case.label and label is not None:
        grids[case.label] = Grid.of(label)
    check_grids(task, grids, case, facts.reporter)
    facts.grid = next((grids[file] for file in case.images if file in grids), None)
    for file, image in headers.items():
        if quick:
            facts.contents[file] = os.path.realpath(file)
        elif image is not None:
            _look_into_image(task, file, image, facts)
    if case.label and label is not None and task.classes and not quick:
        voxels = _read(case.label, label, facts)
        if voxels is not None:
            facts.conventions, facts.classes = check_label(task, voxels, facts.reporter(case.label))
    return facts


def _open(file: Path, facts: CaseFacts) -> Any:
    """The image with its header read, or None with a finding."""
    report = facts.reporter(file)
    if not file.is_file():
        report("missing-file", "error", "The file does not exist.", "Copy it there, or correct the path.")
        return None
    try:
        image = nib.load(file)
        np.asarray(image.shape), np.asarray(image.affine)  # type: ignore[attr-defined]
    except READ_ERRORS as error:
        _report_unreadable(file, report, error)
        return None
    if not isinstance(image, SpatialImage):
        report("unreadable", "error", "The file is no image of voxels.", "Convert the image to NIfTI (.nii.gz).")
        return None
    return image


def _read(file: Path, image: Any, facts: CaseFacts) -> np.ndarray | None:
    """All voxels, scaled; the whole file is unpacked, so that a damaged end is noticed as well."""
    try:
        if hasattr(image, "from_bytes"):
            unpack = gzip.open if file.name.lower().endswith(".gz") else open
            with unpack(file, "rb") as stream:
                image = type(image).from_bytes(stream.read())
        return np.asanyarray(image.dataobj)
    except READ_ERRORS as error:
        _report_unreadable(file, facts.reporter(file), error)
        return None


def _is_damaged(file: Path) -> bool:
    """Whether a file is compressed, but cut off or changed since."""
    if not file.name.lower().endswith(".gz"):
        return False
    try:
        with gzip.open(file, "rb") as stream:
            while stream.read(1 << 22):
                pass
    except (EOFError, zlib.error):
        return True
    except gzip.BadGzipFile as error:
        return "Not a gzipped file" not in str(error)
    return False


def _report_unreadable(file: Path, report: Callable[[str, Severity, str, str], None], error: Exception) -> None:
    damaged = _is_damaged(file)
    why = "is damaged or was cut off" if damaged else "cannot be read as an image"
    remedy = "Copy it again from where it came from." if damaged else "Copy it again, or convert it to NIfTI (.nii.gz)."
    report("unreadable", "error", f"The file {why} ({type(error).__name__}).", remedy)


def _look_into_image(task: Task, file: Path, image: Any, facts: CaseFacts) -> None:
    voxels = _read(file, image, facts)
    if voxels is None:
        return
    if check_image(task, voxels, facts.reporter(file)):
        facts.contents[file] = content_hash(voxels)


def _check_channel_count(task: Task, case: Case, headers: dict[Path, Any], facts: CaseFacts) -> None:
    wanted, names = len(task.channels), ", ".join(task.channels)
    found = len(case.images)
    first = headers[case.images[0]]
    if found == 1 and first is not None:
        found = first.shape[3] if len(first.shape) == 4 else 1
    elif first is None and found == 1:
        return
    if found != wanted:
        facts.reporter(case.images[0])(
            "channel-count",
            "error",
            f"The case has {found} image(s), but the task {task.name} takes {wanted}: {names}.",
            "List one file for each of them, in this order (or one 4-D file with them in its last axis).",
        )


def _report_missing_label(facts: CaseFacts) -> None:
    scored = facts.split == "test"
    facts.reporter(facts.case.images[0])(
        "label-missing",
        "warning" if scored else "error",
        "The case has no label" + (", so it cannot be scored." if scored else "."),
        "Name its label file in the datalist, or take the case out.",
    )
