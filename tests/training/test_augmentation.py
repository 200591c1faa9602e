"""Patches that are turned and zoomed in millimetres, and shown with other intensities."""

from math import cos, degrees, radians

import numpy as np
import pytest
import torch
from scipy import ndimage

from fedseg.tasks.registry import resolve_task
from fedseg.training.augmentation import Augmentation, flat_axis, turn_in_mm
from fedseg.training.cache import CaseCache
from fedseg.training.patches import PatchDataset, cut
from tiny import TASK, write_case

KINDS = ("intensity", "full")


def task(**changes):
    return resolve_task({**TASK, "flip_axes": [], **changes})


def turned_bar(axis, angle, zoom, spacing):
    """A bar of 24 x 6 x 6 mm through a patch's centre, turned; its direction and length in mm as moments tell."""
    patch, along = (40, 40, 24), 0
    place = [(np.arange(3 * n) - (3 * n - 1) / 2) * s for n, s in zip(patch, spacing, strict=True)]
    x, y, z = np.meshgrid(*place, indexing="ij")
    bar = torch.from_numpy(((abs(x) < 12) & (abs(y) < 3) & (abs(z) < 3)).astype(np.float32))[None]
    augmentation, angles = Augmentation(task(patch_size=patch), "full"), np.zeros(3)
    angles[axis] = angle
    matrix = turn_in_mm(angles, [zoom] * 3, spacing)
    margin = augmentation.margin(matrix)
    sample = {"image": cut(bar, patch, patch, margin), "classes": cut(bar, patch, patch, margin).to(torch.uint8)}
    result = augmentation.turn(sample, matrix)
    found = []
    for values in (result["image"][0], result["classes"][0].float()):
        index = np.argwhere(values.numpy() > 0.5)
        points = (index - (np.array(patch) - 1) / 2) * spacing
        _, size, directions = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
        found.append((directions[along], np.sqrt(12) * size[along] / np.sqrt(len(points))))
    return found


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.8, 2.0), (1.0, 2.0, 1.5)])
@pytest.mark.parametrize(("axis", "angle", "zoom"), [(2, 25, 1.0), (1, 25, 1.0), (1, -14.9, 1.25), (2, 10, 0.8)])
def test_a_bar_turns_by_the_angle_and_keeps_its_shape_in_mm(axis, angle, zoom, spacing):
    for direction, length in turned_bar(axis, radians(angle), zoom, spacing):
        assert degrees(np.arccos(min(1, abs(direction[0])))) == pytest.approx(abs(angle), abs=2.5)
        assert abs(direction[axis]) < 0.06
        # The bar's own 24 mm, seen larger by the zoom; a voxel is up to 2 mm.
        assert length == pytest.approx(24 * zoom, abs=1.6)


def test_a_turn_is_linear_interpolation_at_the_turned_places():
    """Written out with scipy's interpolation; classes by the largest interpolated share."""
    size, spacing = (9, 8, 7), (1.0, 1.3, 2.1)
    matrix = turn_in_mm(radians(17) * np.array([1, -0.5, 0.7]), [1.2, 1.2, 0.9], spacing)
    augmentation, draw = Augmentation(task(patch_size=size), "full"), np.random.default_rng(0)
    image, classes = draw.normal(size=(24, 24, 24)).astype(np.float32), draw.integers(0, 3, (24, 24, 24), np.uint8)
    corner = (8, 7, 9)
    sample = {"image": torch.from_numpy(image)[None], "classes": torch.from_numpy(classes)[None]}
    margin = augmentation.margin(matrix)
    found = augmentation.turn({n: cut(v, corner, size, margin) for n, v in sample.items()}, matrix)
    half = (np.array(size) - 1) / 2
    offsets = np.indices(size).reshape(3, -1) - half[:, None]
    places = matrix @ offsets + (half + corner)[:, None]
    expected = ndimage.map_coordinates(image, places, order=1).reshape(size)
    np.testing.assert_allclose(found["image"][0], expected, atol=1e-4)
    shares = np.stack([ndimage.map_coordinates((classes == c).astype(float), places, order=1) for c in range(3)])
    best = np.sort(shares, axis=0)
    clear = (best[-1] - best[-2] > 1e-3).reshape(size)
    np.testing.assert_array_equal(found["classes"][0].numpy()[clear], shares.argmax(axis=0).reshape(size)[clear])
    assert clear.mean() > 0.95


@pytest.mark.parametrize("angles", [(0.5, 0, 0), (0, 0, 0.5), (0.3, -0.4, 0.5)])
def test_a_turned_patch_has_no_blank_corner_where_the_image_goes_on(angles):
    size = (12, 16, 10)
    augmentation = Augmentation(task(patch_size=size), "full")
    matrix = turn_in_mm(angles, [1 / 1.4] * 3, (1, 1, 2.5))
    ones = torch.ones((1, 64, 64, 64))
    found = augmentation.turn({"image": cut(ones, (26, 24, 27), size, augmentation.margin(matrix))}, matrix)
    assert found["image"].shape == (1, *size)
    assert float(found["image"].min()) == pytest.approx(1, abs=1e-5)


def test_outside_the_image_there_is_nothing():
    values = torch.arange(1.0, 28.0).reshape(1, 3, 3, 3)
    found = cut(values, (0, 1, 1), (2, 2, 2), (1, 0, 2))
    expected = np.pad(values.numpy(), ((0, 0), (1, 0), (0, 0), (1, 2)))[:, 0:4, 1:3, 0:6]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("size", "spacing", "axis"),
    [
        ((64, 64, 64), (1, 1, 1), None),
        ((96, 96, 64), (1.5, 1.5, 2.5), None),
        ((64, 64, 64), (0.8, 0.8, 5), 2),
        ((16, 64, 64), (1, 1, 1), 0),
        ((128, 128, 16), (2, 2, 1), 2),
        ((20, 64, 64), (3.0, 1, 1), None),
    ],
)
def test_flat_patches_and_thick_slices_turn_in_their_plane(size, spacing, axis):
    assert flat_axis(size, spacing) == axis
    augmentation, draw = Augmentation(task(patch_size=size), "full"), np.random.default_rng(1)
    drawn = [m for m in (augmentation.draw_turn(spacing, draw) for _ in range(60)) if m is not None]
    # Turned or zoomed with probability 1 - 0.8 * 0.8 = 0.36: 60 draws, 4 standard errors
    assert len(drawn) / 60 == pytest.approx(0.36, abs=0.25)
    fixed = [np.allclose(m[i], np.eye(3)[i]) and np.allclose(m[:, i], np.eye(3)[i]) for m in drawn for i in range(3)]
    assert np.reshape(fixed, (-1, 3)).all(axis=0).tolist() == [i == axis for i in range(3)]


@pytest.mark.parametrize("angle", [0.0, radians(30)])
def test_the_margin_is_what_the_turn_needs(angle):
    """A square patch of 2h + 1 voxels, turned by 30 degrees: its corner lies h (cos 30 + sin 30) from the centre."""
    augmentation = Augmentation(task(patch_size=(21, 21, 5)), "full")
    margin = augmentation.margin(turn_in_mm((0, 0, angle), (1, 1, 1), (1, 1, 1)))
    assert margin == ((0, 0, 0) if angle == 0 else (4, 4, 0))
    assert 3 < 10 * (cos(radians(30)) + 0.5) - 10 < 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("normalisation", "stays"), [("zscore_nonzero", True), ("zscore", False)])
def test_nothing_stays_nothing_where_zero_means_that(kind, normalisation, stays):
    augmentation = Augmentation(task(normalisation=normalisation), kind)
    image = torch.zeros((2, 16, 16, 16))
    image[:, 4:12] = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 8, 16, 16))).float()
    draws = map(np.random.default_rng, range(12))
    changed = [augmentation.change({"image": image.clone()}, draw)["image"] for draw in draws]
    assert sum(not torch.equal(one, image) for one in changed) > 6
    assert all(torch.equal(one == 0, image == 0) for one in changed) == stays


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalisation", ["zscore_nonzero", "zscore"])
def test_a_channel_that_a_case_lacks_stays_zero(normalisation, kind):
    augmentation = Augmentation(task(normalisation=normalisation), kind)
    image = torch.stack([torch.ones(16, 16, 16), torch.zeros(16, 16, 16)])
    image[0, 3] = 2
    for draw in map(np.random.default_rng, range(12)):
        changed = augmentation.change({"image": image.clone()}, draw)["image"]
        assert not changed[1].any()
        assert changed[0].any()


def test_channels_change_by_themselves():
    same = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 16, 16, 16))).float().repeat(2, 1, 1, 1)
    full, draws = Augmentation(task(), "full"), (np.random.default_rng(seed) for seed in range(5))
    changed = [full.change({"image": same.clone()}, draw)["image"] for draw in draws]
    assert not all(torch.equal(c[0], c[1]) for c in changed)


@pytest.mark.parametrize("kind", KINDS)
def test_image_and_classes_are_mirrored_together(tmp_path, kind):
    """The brightest voxels are the inner class before and after."""
    cases = CaseCache(task(flip_axes=[0, 1, 2]), [write_case(tmp_path, "case", 1)], True)
    dataset = PatchDataset(cases.task, cases, kind)
    for seed in range(6):
        sample = dataset[(0, seed)]
        image, inner = sample["image"][0], sample["classes"][0] == 1
        assert sample["classes"].dtype == torch.uint8
        if inner.any():
            assert float(image[inner].median()) > float(image[~inner].median()) + 1


def test_whether_a_patch_is_mirrored_says_nothing_of_its_intensities():
    """Mirrored and scaled with probability 1/2 each: of 400 patches about a quarter is both, and so on."""
    augmentation, image = Augmentation(task(flip_axes=[0]), "intensity"), torch.zeros((1, 4, 4, 4))
    image[:, 0] = 1
    counts = np.zeros((2, 2))
    for draw in map(np.random.default_rng, range(400)):
        first, *_, last = augmentation.change({"image": image.clone()}, draw)["image"][0]
        if float(first.std() + last.std()) < 1e-6:  # without noise
            counts[int(last.mean() > first.mean()), int(abs(abs(last - first).mean() - 1) > 1e-6)] += 1
    np.testing.assert_allclose(counts / counts.sum(), 0.25, atol=0.1)
