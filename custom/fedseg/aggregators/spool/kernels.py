"""Inner loops over the updates of a round, compiled: each reads every site's numbers once.

Numbers of all sites lie in one long array; ``starts`` says where each site's begin. Sums are made in float64 and in the
order of ``starts``. Import this module where it is used: it brings the compiler, which takes a third of a second and
60 MB; a function's first call takes another second and 80 MB.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Elements whose running sums (4 KiB) stay in the nearest cache beside four sites' numbers.
_BLOCK = 512


@njit(nogil=True)
def add_weighted(data: np.ndarray, starts: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """out[k] = sum_j weights[j] * data[starts[j] + k].

    Every product and every sum is rounded to float64 and the last sum to the type of ``out``, so the result of an
    element depends neither on its neighbours nor on how the work is cut into pieces.

    Args:
        data: float32 or float64.
        starts: first element of each site [J] int64.
        weights: [J] float64.
        out: [K] float32 or float64.
    """
    sums = np.empty(_BLOCK)
    fours = starts.size // 4 * 4
    for low in range(0, out.size, _BLOCK):
        width = min(_BLOCK, out.size - low)
        for k in range(width):
            sums[k] = 0.0
        # Four sites in one pass, still one after the other: a quarter of the passes over the sums.
        for j in range(0, fours, 4):
            row0 = data[starts[j] + low : starts[j] + low + width]
            row1 = data[starts[j + 1] + low : starts[j + 1] + low + width]
            row2 = data[starts[j + 2] + low : starts[j + 2] + low + width]
            row3 = data[starts[j + 3] + low : starts[j + 3] + low + width]
            w0, w1, w2, w3 = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
            for k in range(width):
                sums[k] = (((sums[k] + w0 * row0[k]) + w1 * row1[k]) + w2 * row2[k]) + w3 * row3[k]
        for j in range(fours, starts.size):
            row0, w0 = data[starts[j] + low : starts[j] + low + width], weights[j]
            for k in range(width):
                sums[k] += w0 * row0[k]
        for k in range(width):
            out[low + k] = sums[k]


@njit(nogil=True, fastmath={"reassoc", "nsz"})
def add_pairs(data: np.ndarray, starts: np.ndarray, size: int, inner: np.ndarray, squared: np.ndarray) -> None:
    """Add all pairs' inner products and squared distances to the lower triangles of ``inner`` and ``squared``.

    Sums may be reordered, so that several are made at a time; always in the same way for the same ``size``.

    Args:
        data: float32 or float64.
        starts: first element of each site [J] int64.
        size: elements of each site.
        inner: [J, J] float64; inner[i, j] for j <= i.
        squared: [J, J] float64; squared[i, j] for j < i.
    """
    for i in range(starts.size):
        one = data[starts[i] : starts[i] + size]
        for j in range(i + 1):
            other = data[starts[j] : starts[j] + size]
            product, square = 0.0, 0.0
            for k in range(size):
                a, b = np.float64(one[k]), np.float64(other[k])
                product += a * b
                square += (a - b) * (a - b)
            inner[i, j] += product
            squared[i, j] += square
