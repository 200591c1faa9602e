"""Whether a probability means what it says, near the borders, where it is not plain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from fedseg.tasks.segmentation.distances import surface_points

BAND = 3.0
"""Distance in mm from a border within which voxels count."""
BINS = 20


def border_calibration_error(
    probabilities: np.ndarray, predicted: np.ndarray, reference: np.ndarray, spacing: Sequence[float]
) -> float | None:
    """Expected calibration error of a region's probabilities on the voxels around its borders, from 0 to 1.

    Far from a border every network is sure and right, and voxels of background would make any error look small. So
    those voxels count that lie within ``BAND`` mm of a surface voxel of the reference or of the prediction.

    Args:
        probabilities: of the region, from 0 to 1, shape [X, Y, Z], on the image's own grid.
        predicted, reference: boolean masks of the region.
        spacing: size of a voxel in mm.

    Returns:
        The error; None where both masks are empty, so that there is no border.
    """
    surfaces = [surface_points(mask) for mask in (predicted, reference) if mask.any()]
    if not surfaces:
        return None
    points = np.concatenate(surfaces)
    margin = [math.ceil(BAND / size) for size in spacing]
    low = np.maximum(points.min(0) - margin, 0)
    high = np.minimum(points.max(0) + margin + 1, reference.shape)
    away = np.ones(high - low, bool)
    away[tuple((points - low).T)] = False
    band = ndimage.distance_transform_edt(away, sampling=tuple(spacing)) <= BAND
    box = tuple(slice(*ends) for ends in zip(low, high, strict=True))
    return calibration_error(probabilities[box][band], reference[box][band])


def calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Expected calibration error (Naeini et al., AAAI 2015) with ``BINS`` bins of equal width: MONAI's
    ``CalibrationErrorMetric`` of one channel.

    Of each bin the distance between the mean probability and the share that is true, weighted by how many voxels the
    bin has.

    Args:
        probabilities: shape [N], N at least 1, from 0 to 1.
        truth: booleans of the same shape.
    """
    bins = np.minimum((probabilities.astype(np.float64) * BINS).astype(int), BINS - 1)
    told = np.bincount(bins, weights=probabilities, minlength=BINS)
    true = np.bincount(bins, weights=truth, minlength=BINS)
    return float(np.abs(told - true).sum() / len(bins))
