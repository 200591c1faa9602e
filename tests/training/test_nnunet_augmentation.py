"""The changes of nnU-Net: how often, how far, and what each makes of a patch, against written-out answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.transforms import AdjustContrast

from fedseg.data.datalist import read_datalist
from fedseg.tasks.registry import resolve_task
from fedseg.training.cache import CaseCache
from fedseg.training.hooks import TrainingHook
from fedseg.training.nnunet_augmentation import (
    NnunetAugmentation,
    Shown,
    around_one,
    at_low_resolution,
    blurred,
    contrasted,
    draw_shown,
    show,
    with_gamma,
)
from fedseg.training.patches import PatchDataset
from hooked import check_seeded_and_restarted
from tiny import TASK, make_sites, write_case

DRAWS = 4000
NOTHING = Shown(None, (None,), (None,), (None,), (None,), (None,), (None,), ())


def task(**changes):
    return resolve_task({**TASK, "flip_axes": [], **changes})


def image(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.fixture(scope="module")
def drawn():
    generator = np.random.default_rng(0)
    return [draw_shown(generator, 2, (0, 2)) for _ in range(DRAWS)]


@pytest.mark.parametrize(
    ("name", "probability"),
    [
        ("noise", 0.1),
        ("blur", 0.2 * 0.5),
        ("brightness", 0.15),
        ("contrast", 0.15),
        ("resolution", 0.25 * 0.5),
        ("inverted_gamma", 0.1),
        ("gamma", 0.3),
    ],
)
def test_each_change_comes_as_often_as_in_nnunet(drawn, name, probability):
    """Of the first channel; 4 standard errors."""
    found = [getattr(each, name) if name == "noise" else getattr(each, name)[0] for each in drawn]
    share = sum(value is not None for value in found) / DRAWS
    assert share == pytest.approx(probability, abs=4 * (probability * (1 - probability) / DRAWS) ** 0.5)


def test_changes_go_as_far_as_in_nnunet(drawn):
    def values(name):
        return np.array([v for each in drawn for v in getattr(each, name) if v is not None]).ravel()

    noise = np.array([each.noise[0] for each in drawn if each.noise])
    bounds = {"blur": (0.5, 1), "brightness": (0.75, 1.25), "contrast": (0.75, 1.25), "resolution": (0.5, 1)}
    for name, (low, high) in (bounds | {"inverted_gamma": (0.7, 1.5), "gamma": (0.7, 1.5)}).items():
        found = values(name)
        assert low <= found.min() < low + 0.03
        assert high - 0.03 < found.max() <= high
    assert 0 <= noise.min() < noise.max() <= 0.1
    # Below 1 as often as above, though the range above is wider.
    assert (values("gamma") < 1).mean() == pytest.approx(0.5, abs=0.05)
    assert 0.7 <= around_one(np.random.default_rng(3), (0.7, 1.5)) <= 1.5


def test_mirrors_are_along_the_tasks_axes_one_by_one(drawn):
    shares = [np.mean([axis in each.mirrored for each in drawn]) for axis in range(3)]
    assert shares == pytest.approx([0.5, 0, 0.5], abs=0.04)
    assert np.mean([each.mirrored == (0, 2) for each in drawn]) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(("spacing", "across", "largest"), [((1, 1, 1), None, 30), ((1, 1, 5), 2, 180)])
def test_turns_and_zooms_are_drawn_as_in_nnunet_and_thick_slices_stay_in_their_plane(spacing, across, largest):
    augmentation, generator = NnunetAugmentation(task(patch_size=(32, 32, 32)), "nnunet"), np.random.default_rng(1)
    drawn = [augmentation.draw_turn(spacing, generator) for _ in range(2000)]
    matrices = [matrix for matrix in drawn if matrix is not None]
    assert len(matrices) / len(drawn) == pytest.approx(1 - 0.8 * 0.8, abs=0.045)
    size = np.diag(spacing)
    inside = [size @ matrix @ np.linalg.inv(size) for matrix in matrices]
    # Columns are orthogonal, and as long as the grid is larger.
    scales = np.array([np.linalg.norm(matrix, axis=0) for matrix in inside])
    assert scales.min() > 0.7 - 1e-9
    assert scales.max() < 1.4 + 1e-9
    assert np.isclose(scales[:, 0], 1).mean() == pytest.approx(0.16 / 0.36, abs=0.08)
    about = 2 if across is None else across
    u, v = (axis for axis in range(3) if axis != about)
    angles = np.degrees([np.arctan2(matrix[v, u], matrix[u, u]) for matrix in inside])
    assert largest * 0.9 < np.abs(angles).max() < max(largest, 45) + 1e-9
    if across is not None:
        fixed = np.eye(3)[across]
        assert all(np.allclose(m[across], fixed) and np.allclose(m[:, across], fixed) for m in inside)


def test_blur_is_a_normalised_gaussian_along_each_axis():
    """Of a single voxel: the product of three kernels, written out."""
    channel = torch.zeros(11, 11, 11)
    channel[5, 5, 5] = 1
    kernels = []
    for deviation in (0.5, 0.8, 1.0):
        radius = int(3 * deviation + 0.5)
        places = np.arange(-5, 6)
        kernel = np.exp(-0.5 * (places / deviation) ** 2) * (abs(places) <= radius)
        kernels.append(kernel / kernel.sum())
    expected = np.einsum("i,j,k->ijk", *kernels)
    np.testing.assert_allclose(blurred(channel, (0.5, 0.8, 1.0)), expected, atol=1e-6)


def test_contrast_keeps_mean_and_range():
    channel = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).reshape(5, 1, 1)
    assert contrasted(channel, 0.5).flatten().tolist() == [1, 1.5, 2, 2.5, 3]
    assert contrasted(channel, 1.5).flatten().tolist() == [0, 0.5, 2, 3.5, 4]


def test_low_resolution_keeps_what_is_smooth_and_the_axis_across():
    ramp = torch.arange(16.0).reshape(16, 1, 1).expand(16, 16, 16).contiguous()
    inner = slice(2, 14)
    # Of two voxels the second is kept: half a voxel further up.
    np.testing.assert_allclose(at_low_resolution(ramp, 0.5, None)[inner], ramp[inner] + 0.5, atol=1e-5)
    noise = image(16, 16, 16)
    assert torch.equal(at_low_resolution(noise, 1.0, None), noise)
    assert torch.equal(at_low_resolution(ramp, 0.5, 0), ramp)
    assert not torch.allclose(at_low_resolution(noise, 0.6, 0), noise)


@pytest.mark.parametrize("gamma", [0.7, 1.0, 1.4])
def test_gamma_keeps_mean_and_deviation_and_is_that_of_monai(gamma):
    channel = image(6, 7, 8)
    found = with_gamma(channel, gamma)
    assert float(found.mean()) == pytest.approx(float(channel.mean()), abs=1e-6)
    assert float(found.std()) == pytest.approx(float(channel.std()), rel=1e-5)
    np.testing.assert_allclose(found, AdjustContrast(gamma, retain_stats=True)(channel[None])[0], atol=1e-4)
    flat = torch.full((4, 4, 4), 3.0)
    assert torch.equal(with_gamma(flat, gamma), flat)


def test_what_is_not_drawn_changes_nothing_and_the_input_stays_as_it_is():
    before = image(1, 8, 8, 8)
    given = before.clone()
    assert torch.equal(show(given, NOTHING), before)
    for changes in ({"noise": (0.1, 3)}, {"brightness": (1.2,)}, {"inverted_gamma": (0.8,)}, {"blur": ((1, 1, 1),)}):
        assert not torch.equal(show(given, replace(NOTHING, **changes)), before)
    assert torch.equal(given, before)


def test_noise_has_its_deviation_and_inverted_gamma_is_gamma_of_the_negative():
    flat = torch.zeros(1, 32, 32, 32)
    assert float(show(flat, replace(NOTHING, noise=(0.08, 1))).std()) == pytest.approx(0.08, rel=0.02)
    given = image(1, 8, 8, 8)
    inverted = show(given, replace(NOTHING, inverted_gamma=(1.3,)))
    assert torch.allclose(inverted, -show(-given, replace(NOTHING, gamma=(1.3,))))


def test_all_channels_have_the_same_noise():
    """As batchgeneratorsv2 draws it with ``synchronize_channels``, which the trainer sets: [1, X, Y, Z], expanded."""
    given = image(3, 16, 16, 16)
    nothing = Shown((0.08, 1), *[(None,) * 3] * 6, ())
    added = show(given, nothing) - given
    assert float(added[0].std()) == pytest.approx(0.08, rel=0.05)
    assert torch.allclose(added[0], added[1], atol=1e-6)
    assert torch.allclose(added[0], added[2], atol=1e-6)


@pytest.mark.parametrize(("normalisation", "stays"), [("zscore_nonzero", True), ("zscore", False)])
def test_nothing_stays_nothing_where_zero_means_that(normalisation, stays):
    augmentation = NnunetAugmentation(task(normalisation=normalisation), "nnunet")
    given = torch.zeros(2, 16, 16, 16)
    given[0, 4:12] = image(8, 16, 16)
    changed = [augmentation.change({"image": given.clone()}, np.random.default_rng(s))["image"] for s in range(30)]
    assert not any(one[1].any() for one in changed)
    assert all(torch.equal(one[0] == 0, given[0] == 0) for one in changed) == stays


def test_image_and_classes_are_mirrored_together(tmp_path):
    cases = CaseCache(task(flip_axes=[0, 1, 2]), [write_case(tmp_path, "case", 1)], True)
    dataset = PatchDataset(cases.task, cases, "nnunet")
    for seed in range(12):
        sample = dataset[(0, seed)]
        inner = sample["classes"][0] == 1
        if inner.any():
            assert float(sample["image"][0][inner].median()) > float(sample["image"][0][~inner].median()) + 1
        again = dataset[(0, seed)]
        assert all(torch.equal(sample[name], again[name]) for name in sample)


def test_training_is_seeded_and_goes_on_after_the_site_died(tmp_path):
    datalist = read_datalist(make_sites(tmp_path / "data", {"a": (2, 1)}) / "a")
    check_seeded_and_restarted(datalist, Plain, tmp_path, changes={"augmentation": "nnunet"})


class Plain(TrainingHook):
    pass
