"""Landmarks of a histogram (Nyul and Udupa, Magn Reson Med 1999; Nyul, Udupa and Zhang, IEEE TMI 2000).

The landmarks of an image are percentiles of its counted voxels: the 1st, the deciles, and the 99th. The method maps
them to those of a standard scale, piecewise linearly, and the values beyond the outer ones along the outer pieces. Here
it goes in two steps with the same pieces, whose composition it is: from the landmarks of the image to those of a normal
distribution (``to_normal``, which needs the image alone), and from these to the standard scale, which is one for all
images (the part ``standard_scale`` of a network).
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

LEVELS = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
MEDIAN = LEVELS.index(0.5)
NORMAL: np.ndarray = norm.ppf(LEVELS)
"""The landmarks of a normal distribution with mean 0 and deviation 1."""
_TINY = 1e-6


def landmarks(values: np.ndarray) -> np.ndarray:
    """The landmarks of the counted voxels of an image, float64, at least one value."""
    return np.quantile(np.asarray(values, np.float64), LEVELS)


def relative(of_image: np.ndarray) -> np.ndarray:
    """Landmarks where the first is 0 and the last 1, as the method averages them over images; None-free for any image
    whose first and last landmark differ.

    >>> relative(np.array([2.0, 3.0, 6.0]))
    array([0.  , 0.25, 1.  ])
    """
    first, last = of_image[0], of_image[-1]
    found: np.ndarray = (of_image - first) / (last - first)
    return found


def to_normal(values: np.ndarray) -> np.ndarray:
    """Values of counted voxels so that their landmarks become those of a normal distribution; none of them becomes 0.

    The median would become 0, which stands for voxels that do not count; it becomes 1e-6. Where neighbouring landmarks
    are equal, they have no piece between them.
    """
    found = piecewise(np.asarray(values, np.float64), landmarks(values), NORMAL)
    return np.where(found == 0, _TINY, found)


def piecewise(values: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Values mapped so that ``before`` becomes ``after``: linear in between, and beyond along the outer pieces.

    Args:
        values: of any shape.
        before: places that do not fall; an outer piece without width is not prolonged.
        after: as many places.
    """
    found = np.interp(values, before, after)
    for outer, inner, beyond in ((0, 1, values < before[0]), (-1, -2, values > before[-1])):
        width = before[outer] - before[inner]
        slope = (after[outer] - after[inner]) / width if width else 0.0
        found = np.where(beyond, after[outer] + slope * (values - before[outer]), found)
    return found
