"""Kernels as frequencies, against the Fourier transform from its definition."""

import cmath
import itertools
import math

import numpy as np
import pytest

from fedseg.networks.frequencies import from_spectrum, low_frequencies, mix_frequencies, spectrum

SHAPES = [(3, 2, 2, 2, 2), (2, 3, 3, 3, 3), (5, 2, 1, 1, 1), (1, 1, 1, 1, 1), (2, 2, 3, 3)]


def slow_spectrum(matrix):
    """Two-dimensional discrete Fourier transform from its definition."""
    rows, columns = matrix.shape
    found = np.zeros(matrix.shape, complex)
    for u, v in itertools.product(range(rows), range(columns)):
        turns = ((u * y / rows + v * x / columns, matrix[y, x]) for y in range(rows) for x in range(columns))
        found[u, v] = sum(value * cmath.exp(-2j * math.pi * turn) for turn, value in turns)
    return found


def as_matrix(kernel):
    """[N, C, d1, d2, d3] as [C d1 d2, d3 N], value by value."""
    n, c, *d = kernel.shape
    matrix = np.zeros((c * d[0] * d[1], d[2] * n))
    for i, j, a, b, e in itertools.product(*map(range, kernel.shape)):
        matrix[(j * d[0] + a) * d[1] + b, e * n + i] = kernel[i, j, a, b, e]
    return matrix


@pytest.mark.parametrize("own_phase", [False, True])
@pytest.mark.parametrize("width", [0.1, 0.5, 0.9])
def test_low_frequencies_are_shared_and_high_ones_are_kept(width, own_phase):
    draw = np.random.default_rng(0)
    own, shared = (draw.normal(size=(3, 2, 2, 2, 2)).astype(np.float32) for _ in range(2))
    mixed, mine, theirs = (
        slow_spectrum(as_matrix(each)) for each in (mix_frequencies(own, shared, width, own_phase), own, shared)
    )
    rows, columns = mixed.shape
    low = 0
    for u, v in itertools.product(range(rows), range(columns)):
        inside = min(u, rows - u) / rows < width / 2 and min(v, columns - v) / columns < width / 2
        given = cmath.rect(abs(theirs[u, v]), cmath.phase(mine[u, v])) if own_phase else theirs[u, v]
        assert mixed[u, v] == pytest.approx(given if inside else mine[u, v], abs=1e-4)
        low += inside
    assert 0 < low < rows * columns


@pytest.mark.parametrize("shape", [(4, 3, 3, 3, 3), (5, 2, 1, 1, 1), (2, 2, 3, 3)])
@pytest.mark.parametrize("width", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("own_phase", [False, True])
def test_mixing_a_kernel_with_itself_changes_nothing(shape, width, own_phase):
    kernel = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    mixed = mix_frequencies(kernel, kernel, width, own_phase)
    assert (mixed.dtype, mixed.shape) == (kernel.dtype, kernel.shape)
    np.testing.assert_allclose(mixed, kernel, atol=1e-6)


def test_the_ends_are_exact_and_other_arrays_are_shared():
    draw = np.random.default_rng(2)
    own, shared = (draw.normal(size=(2, 2, 3, 3, 3)).astype(np.float32) for _ in range(2))
    np.testing.assert_array_equal(mix_frequencies(own, shared, 1.0), shared)
    np.testing.assert_array_equal(mix_frequencies(own, shared, 0.0), own)
    np.testing.assert_array_equal(mix_frequencies(own, shared, 0.0, own_phase=True), own)
    whole = [np.fft.fft2(as_matrix(each)) for each in (mix_frequencies(own, shared, 1.0, own_phase=True), own, shared)]
    np.testing.assert_allclose(np.abs(whole[0]), np.abs(whole[2]), atol=1e-5)
    np.testing.assert_allclose(np.exp(1j * np.angle(whole[0])), np.exp(1j * np.angle(whole[1])), atol=1e-4)
    np.testing.assert_array_equal(mix_frequencies(own[0, 0, 0], shared[0, 0, 0], 0.5), shared[0, 0, 0])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_spectrum_is_half_of_that_of_the_matrix_and_leads_back(shape):
    kernel = np.random.default_rng(4).normal(size=shape)
    found = spectrum(kernel)
    order = (*range(1, len(shape)), 0)
    matrix = kernel.transpose(order).reshape(-1, shape[0] * shape[-1])
    np.testing.assert_allclose(found, slow_spectrum(matrix)[:, : matrix.shape[1] // 2 + 1], atol=1e-10)
    np.testing.assert_allclose(from_spectrum(found, shape), kernel, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [0.0, 0.2, 0.5, 0.999, 1.0])
def test_low_are_the_frequencies_near_zero_along_both_axes(shape, width):
    low = low_frequencies(shape, width)
    columns = shape[0] * shape[-1]
    rows = math.prod(shape) // columns
    for u, v in itertools.product(range(rows), range(columns // 2 + 1)):
        near = min(u, rows - u) / rows < width / 2 and min(v, columns - v) / columns < width / 2
        assert low[u, v] == (near or width == 1)
