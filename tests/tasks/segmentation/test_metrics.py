"""Metrics against hand-computed values, a slow loop, MONAI, and the two conventions for empty regions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from scipy import ndimage

from fedseg.errors import ConfigurationError, DataError
from fedseg.tasks.registry import BRATS, PANCREAS
from fedseg.tasks.segmentation import metrics
from fedseg.tasks.segmentation.metrics import CaseScore, count_lesions, hd95, score_case, surface_points
from fedseg.tasks.segmentation.objective import Segmentation

summarise, pool = Segmentation.summarise, Segmentation.pool

SPACING = (1.0, 2.0, 3.0)


def cube(shape: tuple[int, int, int], corner: tuple[int, int, int], size: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(c, c + size) for c in corner)] = True
    return mask


def blobs(seed: int, shape: tuple[int, int, int] = (24, 20, 16), scatter: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(generator.normal(size=shape), 2.0)
    return (smooth > np.quantile(smooth, 0.8)) | (generator.random(shape) < scatter)


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
    assert hd95(a, b, SPACING) == pytest.approx(distance)
    assert metrics.dice(a, b) == pytest.approx((6 - shift) / 6)


def test_both_directions_count() -> None:
    # A small cube inside a large one: from the small one every distance is short, from the large one long.
    small, large = cube((20, 20, 20), (8, 8, 8), 2), cube((20, 20, 20), (2, 2, 2), 14)
    assert hd95(small, large, (1, 1, 1)) == hd95(large, small, (1, 1, 1)) > 8


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("many_points", [0, 100_000], ids=["distance map", "tree"])
def test_equals_monai(seed: int, many_points: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MANY_POINTS", many_points)
    a, b = blobs(seed), blobs(seed + 100, scatter=0.01)
    tensors = [torch.from_numpy(m)[None, None] for m in (a, b)]
    expected = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=SPACING)
    assert hd95(a, b, SPACING) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_equals_a_slow_loop(seed: int) -> None:
    a, b = blobs(seed, (7, 6, 5)), blobs(seed + 50, (7, 6, 5))
    assert hd95(a, b, (0.7, 1.0, 2.5)) == pytest.approx(slow_hd95(a, b, (0.7, 1.0, 2.5)))
    pooled = slow_hd95(a, b, (0.7, 1.0, 2.5), pooled=True)
    assert hd95(a, b, (0.7, 1.0, 2.5), "pooled") == pytest.approx(pooled)


def test_forms_of_hd95_by_hand() -> None:
    """A single voxel and a row of eleven: 0 there, 0 to 10 mm back; MedPy and GaNDLF take one percentile of all."""
    point, row = np.zeros((1, 1, 11), bool), np.ones((1, 1, 11), bool)
    point[0, 0, 0] = True
    assert hd95(point, row, (1, 1, 1)) == pytest.approx(9.5)  # of 0, 1 ... 10: at 0.95 * 10
    assert hd95(point, row, (1, 1, 1), "pooled") == pytest.approx(9.45)  # of 0, 0, 1 ... 10: at 0.95 * 11 = 10.45
    with pytest.raises(ConfigurationError, match="pooled"):
        hd95(point, row, (1, 1, 1), "mean")


@pytest.mark.parametrize("seed", range(3))
def test_pooled_is_the_percentile_of_distance_maps(seed: int) -> None:
    """By distance maps of the whole image instead of trees between surfaces."""
    a, b = blobs(seed), blobs(seed + 100, scatter=0.01)
    borders = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
    maps = [ndimage.distance_transform_edt(~border, sampling=SPACING) for border in borders]
    expected = np.percentile(np.concatenate([maps[1][borders[0]], maps[0][borders[1]]]), 95)
    assert hd95(a, b, SPACING, "pooled") == pytest.approx(expected)
    assert hd95(a, b, SPACING, "pooled") <= hd95(a, b, SPACING)


def test_surface_of_a_mask_that_touches_the_edge() -> None:
    assert len(surface_points(np.ones((4, 4, 4), bool))) == 64 - 8


def test_brats_regions_are_nested() -> None:
    reference = np.zeros((8, 8, 8), np.uint8)
    reference[1:7, 1:7, 1:7], reference[2:6, 2:6, 2:6], reference[3:5, 3:5, 3:5] = 2, 1, 3
    predicted = np.where(reference == 3, 1, reference)  # the enhancing part called necrosis
    score = score_case(BRATS, predicted, reference, (1, 1, 1))
    assert score.dice == {"ET": 0.0, "TC": 1.0, "WT": 1.0}
    assert score.hd95 == {"ET": pytest.approx(math.sqrt(3 * 64)), "TC": 0.0, "WT": 0.0}
    assert score.empty == {"ET": "prediction", "TC": "neither", "WT": "neither"}


def test_penalty_of_the_challenge() -> None:
    reference = np.zeros((240, 240, 155), np.uint8)
    predicted = reference.copy()
    predicted[0, 0, 0] = 2
    assert score_case(BRATS, predicted, reference, (1, 1, 1)).hd95["WT"] == pytest.approx(373.13, abs=0.01)


@pytest.mark.parametrize(
    ("convention", "predicted", "reference", "dice", "distance", "state"),
    [
        ("brats", 0, 0, 1.0, 0.0, "both"),
        ("brats", 2, 0, 0.0, 14.0, "reference"),
        ("brats", 0, 2, 0.0, 14.0, "prediction"),
        ("exclude", 0, 0, None, None, "both"),
        ("exclude", 2, 0, None, None, "reference"),
        ("exclude", 0, 2, 0.0, 14.0, "prediction"),
        ("exclude", 2, 2, 1.0, 0.0, "neither"),
    ],
)
def test_empty_regions(
    convention: str, predicted: int, reference: int, dice: float | None, distance: float | None, state: str
) -> None:
    # 4 x 6 x 4 voxels of 1 x 2 x 1.5 mm: the diagonal of 4 x 12 x 6 mm is 14 mm.
    p, r = np.zeros((4, 6, 4), np.uint8), np.zeros((4, 6, 4), np.uint8)
    p[1, 1, 1], r[1, 1, 1] = predicted, reference
    score = score_case(PANCREAS, p, r, (1.0, 2.0, 1.5), empty=convention)
    assert (score.dice["tumour"], score.hd95["tumour"], score.empty["tumour"]) == (dice, distance, state)


def test_without_distances() -> None:
    score = score_case(PANCREAS, np.ones((3, 3, 3)), np.ones((3, 3, 3)), (1, 1, 1), distances=False)
    assert score.hd95 == {}
    assert summarise([score])["hd95"] == {}


def test_wrong_input_is_refused() -> None:
    array = np.zeros((3, 3, 3), np.uint8)
    with pytest.raises(DataError, match=r"\(3, 3, 3\).*\(3, 3, 2\)"):
        score_case(PANCREAS, array, array[..., :2], (1, 1, 1))
    with pytest.raises(ConfigurationError, match="exclude"):
        score_case(PANCREAS, array, array, (1, 1, 1), empty="skip")
    with pytest.raises(ConfigurationError, match="spacing"):
        score_case(PANCREAS, array, array, (1, 1, 0))


def test_summary_by_hand() -> None:
    scores = [
        CaseScore({"a": 0.5, "b": None}, {"a": 2.0, "b": None}, {"a": "neither", "b": "both"}),
        CaseScore({"a": 0.7, "b": None}, {"a": 4.0, "b": None}, {"a": "prediction", "b": "reference"}),
    ]
    summary = summarise(scores)
    assert summary["cases"] == 2
    assert summary["dice"] == {"a": pytest.approx(0.6), "b": None, "mean": pytest.approx(0.6)}
    assert summary["hd95"] == {"a": 3.0, "b": None}
    assert summary["defined"] == {"a": 2, "b": 0}
    assert summary["empty"]["b"] == {"both": 1, "reference": 1, "prediction": 0}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def random_scores(seed: int, count: int) -> list[CaseScore]:
    generator = np.random.default_rng(seed)
    scores = []
    for _ in range(count):
        shape = (10, 9, 8)
        predicted, reference = (np.where(blobs(int(generator.integers(1e6)), shape), 1, 0) for _ in range(2))
        reference[:5] *= 2
        predicted[:5] *= int(generator.integers(0, 3))
        if generator.random() < 0.4:
            reference[reference == 2] = 0
        scores.append(score_case(PANCREAS, predicted, reference, SPACING, empty="exclude"))
    return scores


def assert_close(a: object, b: object) -> None:
    if isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_close(a[key], b[key])
    else:
        assert a == (pytest.approx(b) if isinstance(b, float) else b)


def test_pool_equals_the_summary_of_all_cases() -> None:
    sites = [random_scores(1, 3), random_scores(2, 7), [], random_scores(3, 1)]
    everything = [score for site in sites for score in site]
    assert 0 < summarise(everything)["defined"]["tumour"] < 11, "the comparison needs cases that are left out"
    assert_close(pool(summarise(site) for site in sites), summarise(everything))


def test_no_cases_at_all() -> None:
    nothing = {"cases": 0, "dice": {"mean": None}, "hd95": {}, "defined": {}, "empty": {}}
    assert summarise([]) == pool([]) == pool([summarise([])]) == nothing


def test_volumes_in_millilitres_by_hand():
    """27 voxels of 6 mm3, of which 12 are shared by a cube that is moved by one voxel along two axes."""
    reference, predicted = (cube((8, 8, 8), corner, 3) for corner in ((1, 1, 1), (2, 2, 1)))
    task = PANCREAS
    score = score_case(task, predicted.astype(np.uint8), reference.astype(np.uint8), SPACING)
    expected = {"reference": 27 * 6 / 1000, "predicted": 27 * 6 / 1000, "common": 12 * 6 / 1000}
    assert score.volumes["pancreas"] == pytest.approx(expected)
    assert score.volumes["tumour"] == {"reference": 0, "predicted": 0, "common": 0}
    sensitivity = score.volumes["pancreas"]["common"] / score.volumes["pancreas"]["reference"]
    assert score.dice["pancreas"] == pytest.approx(sensitivity), "equal volumes: Dice is the sensitivity"


def test_lesions_by_hand():
    """Three lesions, one of which is two voxels that touch by a corner; two are met, and two pieces are invented."""
    reference, predicted = np.zeros((2, 12, 12, 4), bool)
    reference[1, 1, 1] = reference[2, 2, 2] = True
    reference[6:8, 1, 1] = reference[1:3, 8:10, 1] = True
    predicted[2, 2, 2] = predicted[7, 1, 1] = predicted[10, 10, 3] = predicted[0, 0, 0] = True
    assert count_lesions(predicted, reference) == {"lesions": 3, "found": 2, "invented": 2}
    assert count_lesions(~reference & False, reference) == {"lesions": 3, "found": 0, "invented": 0}
    assert count_lesions(predicted, reference & False) == {"lesions": 0, "found": 0, "invented": 4}


def test_lesions_are_what_a_slow_search_finds():
    generator = np.random.default_rng(5)
    reference, predicted = (generator.random((2, 9, 8, 7)) < 0.08).astype(bool)

    def pieces(mask):
        left, found = {tuple(place) for place in np.argwhere(mask)}, []
        while left:
            piece, edge = set(), [left.pop()]
            while edge:
                place = edge.pop()
                piece.add(place)
                near = [p for p in left if max(abs(a - b) for a, b in zip(p, place, strict=True)) <= 1]
                edge += near
                left -= set(near)
            found.append(piece)
        return found

    ours, theirs = pieces(predicted), pieces(reference)
    touched = {tuple(place) for place in np.argwhere(predicted & reference)}
    expected = {"lesions": len(theirs), "found": sum(bool(p & touched) for p in theirs)}
    assert count_lesions(predicted, reference) == {**expected, "invented": sum(not p & touched for p in ours)}
