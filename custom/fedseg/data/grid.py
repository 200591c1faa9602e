"""Voxel grids: where voxels lie, whether two grids are one, and bringing values from one to another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from fedseg.data.problems import Report, shown

# Shares of a voxel. Below the first, two grids are one: headers are rounded. Beyond the second, a voxel of one is no
# longer that of the other.
SHIFT_WARNING, SHIFT_ERROR = 0.001, 0.05
MOST_VOXELS = 2**40  # along an axis, which is more than anything could hold
INDEPENDENT = (
    1e-4  # determinant of the axes as unit vectors: 1 where they are perpendicular, 0 where they lie in a plane
)


@dataclass(frozen=True)
class Grid:
    """A voxel grid in patient space.

    Attributes:
        shape: voxels along each axis.
        affine: 4x4, voxel index to millimetres (NIfTI convention, RAS+).
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def decodable(self) -> bool:
        """Whether the affine says where the voxels lie: finite, and three independent axes."""
        axes = self.affine[:3, :3]
        if not np.isfinite(self.affine).all() or min(self.spacing) == 0:
            return False
        return abs(float(np.linalg.det(axes / self.spacing))) > INDEPENDENT

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis."""
        x, y, z = (float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))
        return (x, y, z)

    def voxels_at(self, spacing: Sequence[float] | None) -> int:
        """How many voxels the grid has once it is resampled to a voxel size in mm; None keeps its own."""
        if spacing is None:
            return math.prod(self.shape)
        # Axes are brought into the order of the body before they are resampled.
        lengths = (n * own / new for n, own, new in zip(*self.in_body, spacing, strict=True))
        return math.prod(math.ceil(min(length, MOST_VOXELS)) for length in lengths)

    @property
    def orientation(self) -> str:
        """The directions of the stored axes, e.g. ``RAS``."""
        return "".join(str(code) for code in nib.orientations.aff2axcodes(self.affine))

    @property
    def in_body(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Voxels, and their sizes in mm, along right-left, front-back and foot-head."""
        stored = np.argsort(nib.orientations.io_orientation(self.affine)[:, 0])
        return tuple(self.shape[axis] for axis in stored), tuple(self.spacing[axis] for axis in stored)

    @property
    def obliquity(self) -> float:
        """Largest angle in degrees between a stored axis and the nearest body axis."""
        return float(np.degrees(nib.affines.obliquity(self.affine).max()))

    def shift(self, other: Grid) -> tuple[float, float]:
        """Largest distance between the places of the same corner voxel in both grids, which have one shape.

        Returns:
            in voxels along an axis of this grid, and in mm.
        """
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(self.shape) - 1)
        apart = nib.affines.apply_affine(other.affine, corners) - nib.affines.apply_affine(self.affine, corners)
        voxels = apart @ np.linalg.inv(self.affine[:3, :3]).T
        return float(np.abs(voxels).max()), float(np.linalg.norm(apart, axis=1).max())


def compare_grids(grid: Grid, other_file: Path, other: Grid, report: Report) -> None:
    """Report where two files of one case do not have their voxels in the same places."""
    if grid.shape != other.shape:
        report(
            "shape-differs",
            "error",
            f"The shape {shown(grid.shape)} differs from {shown(other.shape)} of {other_file.name}.",
            "Resample the images of this case and the label to one grid.",
        )
        return
    voxels, millimetres = other.shift(grid)
    if voxels > SHIFT_WARNING:
        far = voxels > SHIFT_ERROR
        report(
            "affine-differs",
            "error" if far else "warning",
            f"The voxels lie up to {millimetres:.3g} mm ({voxels:.2g} voxels) away from those of {other_file.name}.",
            "Register or resample them to one grid; copy the header only if you know that the header is wrong."
            if far
            else "Fine if the header was rounded; the grid of the first image is used.",
        )


def write_mask(mask: np.ndarray, grid: Grid, path: Path) -> Path:
    """Write label values [X, Y, Z] as an 8-bit NIfTI file on ``grid``."""
    image = nib.Nifti1Image(mask.astype(np.uint8), grid.affine)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def to_grid(values: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Bring values [C, ...] from one grid to another; what lies outside the source becomes 0.

    Grids that differ by flips, axis order, cropping or padding only are mapped voxel by voxel without change;
    others by linear interpolation.
    """
    relation = np.linalg.inv(source.affine) @ target.affine
    matrix, offset = relation[:3, :3], relation[:3, 3]
    axes = np.abs(matrix).argmax(axis=0)
    signs = np.sign(matrix[axes, range(3)]).astype(int)
    exact = np.zeros((3, 3))
    exact[axes, range(3)] = signs
    on_voxels = np.allclose(matrix, exact, atol=1e-4) and np.allclose(offset, np.rint(offset), atol=1e-2)
    if on_voxels and len(set(axes.tolist())) == 3:
        return _remap(values, target.shape, axes, signs, np.rint(offset).astype(int))
    moved = [ndimage.affine_transform(v, matrix, offset, target.shape, order=1, mode="nearest") for v in values]
    return np.stack(moved) * _covered(source.shape, matrix, offset, target.shape)


def _covered(
    source: tuple[int, ...], matrix: np.ndarray, offset: np.ndarray, target: tuple[int, int, int]
) -> np.ndarray:
    """Which target voxels have their centre inside a source voxel (which reaches half a step beyond its own centre)."""
    inside = np.ones(target, bool)
    index = np.ogrid[tuple(slice(n) for n in target)]
    for axis in range(3):
        place = sum((matrix[axis, k] * index[k] for k in range(3)), offset[axis])
        inside &= (place >= -0.5) & (place <= source[axis] - 0.5)
    return inside


def _remap(
    values: np.ndarray, shape: tuple[int, int, int], axes: np.ndarray, signs: np.ndarray, offset: np.ndarray
) -> np.ndarray:
    """Copy voxels: target index i along axis a is source index ``signs[a] * i + offset`` along axis ``axes[a]``."""
    result = np.zeros((len(values), *shape), values.dtype)
    into: list[slice] = [slice(None)]
    take: list[slice] = [slice(None)]
    moved = np.transpose(values, (0, *(int(a) + 1 for a in axes)))
    for axis in range(3):
        size, start = moved.shape[axis + 1], int(offset[axes[axis]])
        if signs[axis] < 0:
            moved = np.flip(moved, axis + 1)
            start = size - 1 - start
        low, high = max(0, -start), min(shape[axis], size - start)
        into.append(slice(low, max(low, high)))
        take.append(slice(low + start, max(low, high) + start))
    result[tuple(into)] = moved[tuple(take)]
    return result
