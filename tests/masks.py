"""Small masks for tests of scores: cubes, and blobs as a network makes them."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def cube(shape: tuple[int, int, int], corner: tuple[int, int, int], size: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(c, c + size) for c in corner)] = True
    return mask


def blobs(
    seed: int, shape: tuple[int, int, int] = (24, 20, 16), scatter: float = 0.0, share: float = 0.2
) -> np.ndarray:
    """Smooth blobs that fill a share of the image, and single voxels scattered besides."""
    generator = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(generator.normal(size=shape), 2.0)
    return (smooth > np.quantile(smooth, 1 - share)) | (generator.random(shape) < scatter)
