"""Distances between the surfaces of two masks: the 95th percentile, and the share within a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from fedseg import allowed

HD95_FORMS = ("larger", "pooled")
PERCENTILE = 95.0
MANY_POINTS = 100_000  # surface voxels; a whole tumour has some 20 000
_ROUNDING = 1e-6  # share of a tolerance: three voxels of 0.1 mm are 0.3 mm apart, and 0.30000000000000004


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in mm from each surface voxel of one mask to the nearest surface voxel of the other.

    Attributes:
        there: from the first mask's surface, shape [N].
        back: from the second mask's surface, shape [M].
    """

    there: np.ndarray
    back: np.ndarray


def surface_distances(predicted: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> SurfaceDistances:
    """Distances between two boolean masks that both have voxels of this size in mm, see ``surface_points``."""
    a, b = surface_points(predicted), surface_points(reference)
    return SurfaceDistances(_nearest(a, b, spacing), _nearest(b, a, spacing))


def hd95(distances: SurfaceDistances, form: str = "larger") -> float:
    """95th percentile Hausdorff distance in mm.

    ``larger``: of each direction the 95th percentile (interpolated linearly), and the larger of the two; MONAI's
    ``compute_hausdorff_distance(percentile=95)``. ``pooled``: one percentile over the distances of both directions;
    that of MedPy and of GaNDLF, with which FeTS was scored. Others weight surface elements by their area.

    Raises:
        ConfigurationError: an unknown form.
    """
    allowed.one_of("hd95", form, HD95_FORMS)
    if form == "pooled":
        return float(np.percentile(np.concatenate([distances.there, distances.back]), PERCENTILE))
    return float(max(np.percentile(distances.there, PERCENTILE), np.percentile(distances.back, PERCENTILE)))


def surface_dice(distances: SurfaceDistances, tolerance: float) -> float:
    """Normalised surface distance (surface Dice; Nikolov et al., 2021, J Med Internet Res 23:e26151), from 0 to 1.

    The share of all surface voxels, of both masks together, that lie within the tolerance of the other surface: MONAI's
    ``compute_surface_dice``. DeepMind's ``surface-distance`` puts its surface between voxels and weights each element
    by its area (MONAI's ``use_subvoxels=True``), which gives other numbers.

    Args:
        distances: between the two surfaces.
        tolerance: distance in mm that does not matter, 0 or more.
    """
    every = np.concatenate([distances.there, distances.back])
    return float(np.mean(every <= tolerance * (1 + _ROUNDING)))


def surface_points(mask: np.ndarray) -> np.ndarray:
    """Indices, shape [N, 3], of the voxels of a boolean mask that face the outside (6-neighbourhood).

    The edge of the image counts as outside, as in MONAI.
    """
    # find_objects gives the bounding box of the voxels: erosion then touches few of the voxels of a whole image.
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    inside = mask[box]
    surface = inside & ~ndimage.binary_erosion(inside)
    return np.argwhere(surface) + np.array([axis.start for axis in box])


def _nearest(origins: np.ndarray, targets: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Exact distance in mm, shape [N], from each of the indices ``origins`` [N, 3] to the nearest of ``targets``."""
    if max(len(origins), len(targets)) <= MANY_POINTS:
        return KDTree(targets * np.asarray(spacing, float)).query(origins * np.asarray(spacing, float))[0]
    # Scattered predictions of an untrained network: a tree takes minutes, a distance map the same 2 s for any mask.
    low = np.minimum(origins.min(0), targets.min(0))
    outside = np.ones(np.maximum(origins.max(0), targets.max(0)) - low + 1, bool)
    outside[tuple((targets - low).T)] = False
    distances = ndimage.distance_transform_edt(outside, sampling=tuple(spacing))
    return distances[tuple((origins - low).T)]
