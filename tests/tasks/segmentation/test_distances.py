"""Distances between surfaces against hand-computed values, a slow loop and MONAI."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from fedseg.errors import ConfigurationError
from fedseg.tasks.segmentation import distances
from fedseg.tasks.segmentation.distances import hd95, surface_dice, surface_distances, surface_points
from fedseg.tasks.segmentation.metrics import dice
from masks import blobs, cube

SPACING = (1.0, 2.0, 3.0)


def slow_hd95(
    predicted: np.ndarray, reference: np.ndarray, spacing: tuple[float, float, float], pooled: bool = False
) -> float:
    """The definition, voxel by voxel."""

    def surface(mask: np.ndarray) -> list[np.ndarray]:
        points = []
        for point in np.argwhere(mask):
            for axis in range(3):
                for step in (-1, 1):
                    q = point.copy()
                    q[axis] += step
                    if not (0 <= q[axis] < mask.shape[axis]) or not mask[tuple(q)]:
                        points.append(tuple(point))
        return [np.array(p) * spacing for p in sorted(set(points))]

    a, b = surface(predicted), surface(reference)
    there = [min(math.dist(p, q) for q in b) for p in a]
    back = [min(math.dist(p, q) for q in a) for p in b]
    return np.percentile(there + back, 95) if pooled else max(np.percentile(there, 95), np.percentile(back, 95))


@pytest.mark.parametrize(("axis", "shift", "distance"), [(0, 3, 3.0), (1, 3, 6.0), (2, 3, 9.0), (2, 0, 0.0)])
def test_shifted_cube_by_hand(axis: int, shift: int, distance: float) -> None:
    # A face of the 6-cube (36 of its 152 surface voxels, 24 %) lies `shift` voxels from the other cube's nearest
    # face; every 95th percentile above 76 % therefore is the shift itself in mm.
    corner = [2, 2, 2]
    corner[axis] += shift
    a, b = cube((16, 16, 16), (2, 2, 2), 6), cube((16, 16, 16), tuple(corner), 6)
    assert hd95(surface_distances(a, b, SPACING)) == pytest.approx(distance)
    assert dice(a, b) == pytest.approx((6 - shift) / 6)


def test_both_directions_count() -> None:
    # A small cube inside a large one: from the small one every distance is short, from the large one long.
    small, large = cube((20, 20, 20), (8, 8, 8), 2), cube((20, 20, 20), (2, 2, 2), 14)
    there, back = (hd95(surface_distances(*pair, (1, 1, 1))) for pair in ((small, large), (large, small)))
    assert there == back > 8


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("many_points", [0, 100_000], ids=["distance map", "tree"])
def test_hd95_equals_monai(seed: int, many_points: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "MANY_POINTS", many_points)
    a, b = blobs(seed), blobs(seed + 100, scatter=0.01)
    tensors = [torch.from_numpy(m)[None, None] for m in (a, b)]
    expected = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=SPACING)
    assert hd95(surface_distances(a, b, SPACING)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_hd95_equals_a_slow_loop(seed: int) -> None:
    a, b = blobs(seed, (7, 6, 5)), blobs(seed + 50, (7, 6, 5))
    assert hd95(surface_distances(a, b, (0.7, 1.0, 2.5))) == pytest.approx(slow_hd95(a, b, (0.7, 1.0, 2.5)))
    pooled = slow_hd95(a, b, (0.7, 1.0, 2.5), pooled=True)
    assert hd95(surface_distances(a, b, (0.7, 1.0, 2.5)), "pooled") == pytest.approx(pooled)


def test_forms_of_hd95_by_hand() -> None:
    """A single voxel and a row of eleven: 0 there, 0 to 10 mm back; MedPy and GaNDLF take one percentile of all."""
    point, row = np.zeros((1, 1, 11), bool), np.ones((1, 1, 11), bool)
    point[0, 0, 0] = True
    apart = surface_distances(point, row, (1, 1, 1))
    assert hd95(apart) == pytest.approx(9.5)  # of 0, 1 ... 10: at 0.95 * 10
    assert hd95(apart, "pooled") == pytest.approx(9.45)  # of 0, 0, 1 ... 10: at 0.95 * 11 = 10.45
    with pytest.raises(ConfigurationError, match="pooled"):
        hd95(apart, "mean")


@pytest.mark.parametrize("seed", range(3))
def test_pooled_is_the_percentile_of_distance_maps(seed: int) -> None:
    """By distance maps of the whole image instead of trees between surfaces."""
    a, b = blobs(seed), blobs(seed + 100, scatter=0.01)
    borders = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
    maps = [ndimage.distance_transform_edt(~border, sampling=SPACING) for border in borders]
    expected = np.percentile(np.concatenate([maps[1][borders[0]], maps[0][borders[1]]]), 95)
    assert hd95(surface_distances(a, b, SPACING), "pooled") == pytest.approx(expected)
    assert hd95(surface_distances(a, b, SPACING), "pooled") <= hd95(surface_distances(a, b, SPACING))


def test_surface_of_a_mask_that_touches_the_edge() -> None:
    assert len(surface_points(np.ones((4, 4, 4), bool))) == 64 - 8


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.5, 6.0])
def test_the_surface_distance_equals_monai(seed: int, tolerance: float) -> None:
    a, b = blobs(seed), blobs(seed + 100, scatter=0.01)
    tensors = [torch.from_numpy(m)[None, None] for m in (a, b)]
    expected = compute_surface_dice(*tensors, [tolerance], include_background=True, spacing=SPACING)
    assert surface_dice(surface_distances(a, b, SPACING), tolerance) == pytest.approx(float(expected), abs=1e-6)


def test_the_surface_distance_by_hand() -> None:
    """Two 6-cubes of 152 surface voxels each, one voxel (1 mm) apart, share 100 of them: five rings of 20 voxels."""
    apart = surface_distances(cube((16, 16, 16), (2, 2, 2), 6), cube((16, 16, 16), (3, 2, 2), 6), SPACING)
    assert surface_dice(apart, 0.9) == pytest.approx(200 / 304)
    assert surface_dice(apart, 1.0) == 1.0


@pytest.mark.parametrize(("axis", "distance"), [(0, 1.0), (1, 2.0), (2, 3.0)])
def test_the_tolerance_is_in_millimetres(axis: int, distance: float) -> None:
    corner = [2, 2, 2]
    corner[axis] += 1
    apart = surface_distances(cube((16, 16, 16), (2, 2, 2), 6), cube((16, 16, 16), tuple(corner), 6), SPACING)
    assert surface_dice(apart, distance - 0.01) < 1.0
    assert surface_dice(apart, distance) == 1.0


def test_borders_that_touch_are_a_voxel_apart() -> None:
    """Two cubes side by side: the faces that meet, 16 of 56 surface voxels each, lie 1 mm from the other cube."""
    apart = surface_distances(cube((12, 8, 8), (1, 1, 1), 4), cube((12, 8, 8), (5, 1, 1), 4), (1, 1, 1))
    assert surface_dice(apart, 0.0) == 0.0
    assert surface_dice(apart, 1.0) == pytest.approx(16 / 56)


def test_a_tolerance_is_not_missed_by_rounding() -> None:
    apart = surface_distances(cube((9, 9, 9), (0, 0, 0), 4), cube((9, 9, 9), (3, 0, 0), 4), (0.1, 0.1, 0.1))
    assert surface_dice(apart, 0.3) == 1.0
