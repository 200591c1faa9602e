"""Voxel grids: reading images with their affine, and bringing values back to the grid of the original image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from fedseg.errors import DataError


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
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis."""
        x, y, z = (float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))
        return (x, y, z)


def read_image(paths: Sequence[Path]) -> tuple[np.ndarray, Grid]:
    """Read the channels of one case.

    Args:
        paths: one file per channel, or a single file whose fourth axis holds the channels.

    Returns:
        Array [C, X, Y, Z] in float32 and its grid.

    Raises:
        DataError: a file cannot be read, or the files do not lie on one grid.
    """
    arrays, grids = zip(*(_read(path) for path in paths), strict=True)
    for path, grid in zip(paths, grids, strict=True):
        if grid.shape != grids[0].shape or not np.allclose(grid.affine, grids[0].affine, atol=1e-3):
            raise DataError(f"{path} does not lie on the grid of {paths[0]}. Register and resample the images first.")
    return np.concatenate(arrays), grids[0]


def read_label(path: Path) -> tuple[np.ndarray, Grid]:
    """Read a label file as it is: array [X, Y, Z] and its grid."""
    array, grid = _read(path)
    if len(array) != 1:
        raise DataError(f"{path} has {len(array)} channels, but a label file has one.")
    return array[0], grid


def _read(path: Path) -> tuple[np.ndarray, Grid]:
    try:
        image: Any = nib.load(path)
        array = np.asarray(image.get_fdata(dtype=np.float32))
        affine = np.asarray(image.affine, np.float64)
    except Exception as error:
        raise DataError(f"{path} cannot be read as an image ({type(error).__name__}: {error}).") from error
    if array.ndim not in (3, 4):
        raise DataError(f"{path} has {array.ndim} dimensions, but an image has three, or four with channels.")
    channels = array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
    x, y, z = (int(n) for n in channels.shape[1:])
    return channels, Grid((x, y, z), affine)


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
