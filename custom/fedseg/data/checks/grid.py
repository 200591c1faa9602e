"""Checks of the grids of one case: dimensions, agreement between files, spacing, orientation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from fedseg.data.checks.findings import Severity
from fedseg.data.datalist import Case
from fedseg.tasks.task import Task

Report = Callable[[str, Severity, str, str], None]
TOLERANCE_MM = 1e-3
OBLIQUE_DEGREES = 10.0


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie.

    Attributes:
        shape: as stored, channels last where there are several.
        affine: voxel index to mm (R, A, S), shape [4, 4].
        stated: whether the header states an orientation at all.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    stated: bool = True

    @classmethod
    def of(cls, image: Any) -> Grid:
        """The grid of a nibabel image."""
        header = image.header
        coded = "sform_code" in header and "qform_code" in header
        stated = not coded or int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
        return cls(tuple(int(n) for n in image.shape), np.asarray(image.affine, np.float64), stated)

    @property
    def decodable(self) -> bool:
        """Whether the affine says where the voxels lie: finite, and three independent axes."""
        return bool(np.isfinite(self.affine).all()) and abs(np.linalg.det(self.affine[:3, :3])) > 1e-9

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the stored axes."""
        x, y, z = nib.affines.voxel_sizes(self.affine)
        return float(x), float(y), float(z)

    @property
    def orientation(self) -> str:
        """The directions of the stored axes, e.g. ``RAS``; ``?`` where the affine says nothing."""
        return "".join(str(code) for code in nib.orientations.aff2axcodes(self.affine)) if self.decodable else "?"

    @property
    def obliquity(self) -> float:
        """Largest angle in degrees between a stored axis and the nearest body axis."""
        return float(np.degrees(nib.affines.obliquity(self.affine).max()))

    def distance(self, other: Grid) -> float:
        """Largest distance in mm between the places of the same corner voxel in both grids."""
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(self.shape[:3]) - 1)
        mine, yours = (nib.affines.apply_affine(g.affine, corners) for g in (self, other))
        return float(np.linalg.norm(mine - yours, axis=1).max())


def check_grids(task: Task, grids: Mapping[Path, Grid], case: Case, reporter: Callable[[Path], Report]) -> None:
    """Report what is wrong with the grids of the readable files of one case."""
    whole = {file: grid for file, grid in grids.items() if _check_dimensions(grid, file, case, reporter(file))}
    reference: tuple[Path, Grid] | None = None
    for file, grid in whole.items():
        if reference is None:
            reference = (file, grid)
            _check_place(task, grid, reporter(file))
        else:
            _compare(grid, *reference, reporter(file))


def _check_dimensions(grid: Grid, file: Path, case: Case, report: Report) -> bool:
    allowed = (3, 4) if len(case.images) == 1 and file != case.label else (3,)
    if len(grid.shape) in allowed and min(grid.shape) > 0:
        return True
    report(
        "dimensions",
        "error",
        f"The shape is {_shown(grid.shape)}, but a volume of three dimensions is needed.",
        "Store each image and each label as one 3-D volume.",
    )
    return False


def _compare(grid: Grid, other_file: Path, other: Grid, report: Report) -> None:
    if grid.shape[:3] != other.shape[:3]:
        report(
            "shape-differs",
            "error",
            f"The shape {_shown(grid.shape)} differs from {_shown(other.shape)} of {other_file.name}.",
            "Resample the images of this case and the label to one grid.",
        )
    elif grid.decodable and other.decodable and grid.distance(other) > TOLERANCE_MM:
        report(
            "affine-differs",
            "error",
            f"The voxels lie up to {grid.distance(other):.3g} mm away from those of {other_file.name}.",
            "Register or resample them to one grid; copy the header only if you know that the header is wrong.",
        )


def _check_place(task: Task, grid: Grid, report: Report) -> None:
    if not grid.decodable:
        remedy = "Convert the image again from DICOM; left and right cannot be told from this file."
        report("orientation", "error", "The affine does not say where the voxels lie.", remedy)
        return
    low, high = task.spacing_range
    if not (low <= min(grid.spacing) and max(grid.spacing) <= high):
        report(
            "spacing",
            "error",
            f"The voxel size {_shown(grid.spacing)} mm is outside {low:g} to {high:g} mm of the task {task.name}.",
            "Check the header's units and spacing; convert the image again from DICOM.",
        )
    if not grid.stated:
        message = "The header states no orientation, so left and right are a guess."
        report("orientation", "warning", message, "Convert the image again from DICOM, keeping its orientation.")
    elif grid.obliquity > OBLIQUE_DEGREES:
        report(
            "orientation",
            "warning",
            f"The axes are turned by {grid.obliquity:.0f} degrees against the body's axes.",
            "Usable; resample to body axes if most other images are not turned.",
        )


def _shown(values: tuple[float, ...]) -> str:
    return " x ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)
