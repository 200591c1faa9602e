"""Kernels of convolutions as frequencies, of which PRR-FL shares the low ones (Chen et al., MICCAI 2021).

A kernel [N, C, d1, d2, d3] is seen as the matrix [C d1 d2, d3 N]. Low are its frequencies below ``width`` / 2 cycles an
element along both axes, of both signs.
"""

from __future__ import annotations

import numpy as np


def is_kernel(array: np.ndarray) -> bool:
    """Whether an array is a kernel of a convolution in two or three dimensions.

    An array of three, such as the position embedding [1, N, C] of a transformer, is none.

    >>> [is_kernel(np.zeros(shape)) for shape in ((4, 2, 3, 3, 3), (4, 2, 3, 3), (1, 8, 4), (4, 2), (4,))]
    [True, True, False, False, False]
    """
    return array.ndim >= 4


def spectrum(kernel: np.ndarray) -> np.ndarray:
    """The frequencies of a kernel that is real: those of its matrix [R, K] in double precision.

    Returns:
        [R, K // 2 + 1] complex; the other frequencies are the conjugates of these.
    """
    moved = np.moveaxis(np.asarray(kernel, np.float64), 0, -1)
    return np.fft.rfft2(moved.reshape(-1, _columns(kernel.shape)))


def from_spectrum(frequencies: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The reverse of ``spectrum``: a kernel of this shape, float64."""
    columns = _columns(shape)
    matrix = np.fft.irfft2(frequencies, s=(frequencies.shape[0], columns))
    return np.moveaxis(matrix.reshape((*shape[1:], shape[0])), -1, 0)


def low_frequencies(shape: tuple[int, ...], width: float) -> np.ndarray:
    """Which frequencies of a kernel are low.

    >>> low_frequencies((4, 2, 1, 1, 1), 1.0).all(), low_frequencies((4, 2, 1, 1, 1), 0.0).any()
    (np.True_, np.False_)

    Args:
        shape: of the kernel.
        width: from 0 (none) to 1 (all).

    Returns:
        [R, K // 2 + 1] bool, as ``spectrum`` has them.
    """
    columns = _columns(shape)
    rows = int(np.prod(shape)) // max(1, columns)
    axes = np.fft.fftfreq(rows), np.fft.rfftfreq(columns)
    return np.outer(*(np.abs(each) < width / 2 if width < 1 else np.ones(each.shape, bool) for each in axes))


def mix_frequencies(own: np.ndarray, shared: np.ndarray, width: float, own_phase: bool = False) -> np.ndarray:
    """A kernel with the low frequencies of ``shared`` and the high ones of ``own``; other arrays are ``shared``.

    >>> kernel = np.ones((2, 1, 3, 3, 3), np.float32)
    >>> bool(np.allclose(mix_frequencies(0 * kernel, kernel, 0.5), kernel))
    True

    Args:
        own, shared: of the same shape.
        width: from 0 (``own``) to 1 (``shared``, to the last bit).
        own_phase: whether low frequencies have the amplitude of ``shared`` only, and the phase of ``own``.

    Returns:
        In the type of ``shared``.
    """
    if not is_kernel(shared) or (width >= 1 and not own_phase):
        return shared
    if width <= 0:
        return own
    mixed, theirs = spectrum(own), spectrum(shared)
    low = low_frequencies(shared.shape, width)
    mixed[low] = np.abs(theirs[low]) * np.exp(1j * np.angle(mixed[low])) if own_phase else theirs[low]
    return np.ascontiguousarray(from_spectrum(mixed, shared.shape), dtype=shared.dtype)


def _columns(shape: tuple[int, ...]) -> int:
    """Columns of the matrix of a kernel."""
    return shape[0] * shape[-1]
