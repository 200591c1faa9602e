"""Geometry of phantoms: a voxel grid in millimetres, smooth random fields, and shapes as signed distances.

Every shape is an array of distances in mm, positive inside, so that shapes join by ``np.maximum``, cut by
``np.minimum``, become masks by ``> 0`` and become partial volumes by ``soft``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

Vector = tuple[float, float, float]
Coordinates = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Grid:
    """Voxels of size ``spacing`` (mm; right, anterior, superior) in an array of ``shape``, centred on the origin."""

    spacing: Vector
    shape: tuple[int, int, int]

    @classmethod
    def covering(cls, extent: Vector, spacing: Vector) -> Grid:
        """The grid whose edges are as near as possible to ``extent`` mm."""
        x, y, z = (round(e / s) for e, s in zip(extent, spacing, strict=True))
        return cls(spacing, (x, y, z))

    @property
    def axes(self) -> Coordinates:
        """Positions of the voxel centres in mm along each axis: shapes [X, 1, 1], [1, Y, 1] and [1, 1, Z]."""
        x, y, z = (
            ((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(self.shape, self.spacing, strict=True)
        )
        return x[:, None, None], y[None, :, None], z[None, None, :]

    @property
    def affine(self) -> np.ndarray:
        """From voxel indices to mm in RAS, shape [4, 4]."""
        result = np.diag([*self.spacing, 1.0])
        result[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(self.shape, self.spacing, strict=True)]
        return result


def smooth_noise(rng: np.random.Generator, grid: Grid, length: float) -> np.ndarray:
    """A smooth random field with root mean square 1.

    A cosine series with random phases; its power spectrum is that of the covariance exp(-r² / (2 length²)), and its
    pattern does not depend on the voxel size.

    Args:
        length: correlation length in mm.

    Returns:
        float32, shape of the grid.
    """
    bases, damping = [], []
    for axis, n, step in zip(grid.axes, grid.shape, grid.spacing, strict=True):
        frequency = np.arange(1 + max(2, int(3.0 / length * n * step / np.pi))) * np.pi / (n * step)
        phase = rng.uniform(0, 2 * np.pi, frequency.size)
        bases.append(np.cos(axis.ravel()[:, None] * frequency + phase).astype(np.float32))
        damping.append(np.exp(-((frequency * length) ** 2) / 4))
    field = rng.standard_normal([d.size for d in damping]) * np.einsum("i,j,k->ijk", *damping)
    # one axis at a time, last axis first; einsum and not BLAS, so that the bits do not depend on the thread count
    field = np.einsum("ijc,zc->ijz", field.astype(np.float32), bases[2])
    field = np.einsum("ibz,yb->iyz", field, bases[1])
    field = np.einsum("ayz,xa->xyz", field, bases[0])
    return field / np.sqrt(np.mean(field**2))


def pose(rng: np.random.Generator, grid: Grid, tilt: float, size: float, shift: float, bend: float) -> Coordinates:
    """Coordinates of one patient: where in the standard anatomy each voxel lies, in mm.

    Args:
        tilt: standard deviation of the rotation about each axis, degrees.
        size: standard deviation of the relative size along each axis.
        shift: standard deviation of the position along each axis, mm.
        bend: root mean square of a smooth deformation along each axis, mm.
    """
    turn: np.ndarray = reduce(np.matmul, (_rotation(a, np.deg2rad(rng.normal(0, tilt))) for a in range(3)))
    turn = turn / (1 + np.clip(rng.normal(0, size, 3), -2 * size, 2 * size))[:, None]
    x, y, z = (
        sum((row[i] * axis for i, axis in enumerate(grid.axes)), start=np.float32(rng.normal(0, shift)))
        + np.float32(bend) * smooth_noise(rng, grid, 35.0)
        for row in turn.astype(np.float32)
    )
    return x, y, z


def _rotation(axis: int, angle: float) -> np.ndarray:
    i, j = [a for a in range(3) if a != axis]
    result = np.eye(3)
    result[i, i] = result[j, j] = np.cos(angle)
    result[i, j], result[j, i] = -np.sin(angle), np.sin(angle)
    return result


def ellipsoid(at: Coordinates, centre: ArrayLike, semi: ArrayLike) -> np.ndarray:
    """Distance to the surface of an ellipsoid with semi-axes ``semi`` mm (first order near the surface)."""
    middle, size = np.asarray(centre, np.float32), np.asarray(semi, np.float32)
    offsets = [(a - c) / s for a, c, s in zip(at, middle, size, strict=True)]
    inner = np.sqrt(sum(o * o for o in offsets))
    outer = np.sqrt(sum((o / s) ** 2 for o, s in zip(offsets, size, strict=True)))
    return np.where(outer > 1e-6, inner * (1 - inner) / np.maximum(outer, 1e-6), size.min())


def tube(at: Coordinates, points: ArrayLike, radii: ArrayLike) -> np.ndarray:
    """Distance to the surface of a tube along straight pieces between ``points``, whose radius changes linearly."""
    return tube_with_position(at, points, radii)[0]


def tube_with_position(at: Coordinates, points: ArrayLike, radii: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """As ``tube``, with the position along it: 0 at the first point, i at point i."""
    line, radius = np.asarray(points, np.float32), np.asarray(radii, np.float32)
    best = np.full(np.broadcast_shapes(*(a.shape for a in at)), -np.inf, np.float32)
    position = np.zeros_like(best)
    for i, (start, end) in enumerate(pairwise(line)):
        way = end - start
        offsets = [a - s for a, s in zip(at, start, strict=True)]
        along = np.clip(sum(o * w for o, w in zip(offsets, way, strict=True)) / (way @ way), 0, 1)
        gap = np.sqrt(sum((o - along * w) ** 2 for o, w in zip(offsets, way, strict=True)))
        inside = radius[i] + along * (radius[i + 1] - radius[i]) - gap
        position = np.where(inside > best, along + np.float32(i), position)
        best = np.maximum(best, inside)
    return best, position


def soft(distance: np.ndarray, width: float) -> np.ndarray:
    """Part of a voxel (0 to 1) that lies inside, where the edge is ``width`` mm wide."""
    return np.clip(distance / np.float32(width) + np.float32(0.5), 0, 1)
