import numpy as np
import pytest
import torch

from fedseg.data.datalist import Case
from fedseg.errors import DataError
from fedseg.tasks.objective import objective_of
from fedseg.tasks.registry import resolve_task
from fedseg.training.cache import CaseCache
from fedseg.training.inference import infer_logits, predict_case
from fedseg.training.patches import PatchDataset, choose_corner
from fedseg.training.prepare import prepare_case
from tiny import TASK, make_image, write_case

AFFINES = {
    "RAS": np.eye(4),
    "LPS": np.diag([-1.0, -1.0, 1.0, 1.0]),
    "anisotropic": np.array([[0, 0, 2.0, 5], [-1.5, 0, 0, 7], [0, 1.0, 0, -3], [0, 0, 0, 1]]),
}


def one_hot(task, classes):
    """Logits [1, R, ...] that predict exactly these classes."""
    regions = [torch.isin(classes, torch.tensor(task.region_values(r))) for r in task.regions]
    return torch.cat(regions)[None].float() * 40 - 20


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_a_perfect_prediction_comes_back_to_the_original_grid_unchanged(tmp_path, affine):
    task = resolve_task({**TASK, "normalisation": "zscore_nonzero", "crop_to_foreground": True})
    case = write_case(tmp_path, "case", 1, affine)
    prepared = prepare_case(task, case, training=False)
    np.testing.assert_array_equal(
        predict_case(objective_of(task), prepared, one_hot(task, prepared.classes)), prepared.reference
    )


def test_resampling_and_back_keeps_the_structure(tmp_path):
    task = resolve_task({**TASK, "spacing": [1.0, 1.0, 1.0]})
    case = write_case(tmp_path, "case", 1, np.diag([1.3, 1.3, 0.8, 1.0]))
    prepared = prepare_case(task, case, training=False)
    assert prepared.grid.spacing == pytest.approx((1, 1, 1))
    back = predict_case(objective_of(task), prepared, one_hot(task, prepared.classes))
    assert back.shape == prepared.original.shape
    overlap = 2 * ((back > 0) & (prepared.reference > 0)).sum() / ((back > 0).sum() + (prepared.reference > 0).sum())
    assert overlap > 0.9


def test_nonzero_normalisation_ignores_the_background_and_leaves_it_zero(tmp_path):
    import nibabel as nib

    image = np.zeros((4, 4, 4), np.float32)
    image[1:3, 1:3, 1:3] = np.arange(1, 9).reshape(2, 2, 2)
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "i.nii")
    task = resolve_task({**TASK, "normalisation": "zscore_nonzero"})
    prepared = prepare_case(task, Case((tmp_path / "i.nii",), None, "p"), training=False)
    inside = prepared.image[0][torch.from_numpy(image) > 0].numpy()
    # 1..8: mean 4.5, sample standard deviation sqrt(6)
    np.testing.assert_allclose(inside, (np.arange(1, 9) - 4.5) / np.sqrt(6), rtol=1e-5)
    assert float(prepared.image[0][torch.from_numpy(image) == 0].abs().max()) == 0


def test_window_clips_and_scales(tmp_path):
    import nibabel as nib

    image = np.array([-2000, -100, 70, 240, 3000], np.float32).reshape(5, 1, 1)
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "i.nii")
    task = resolve_task({**TASK, "normalisation": "window", "window": [-100, 240]})
    prepared = prepare_case(task, Case((tmp_path / "i.nii",), None, "p"), training=False)
    np.testing.assert_allclose(prepared.image.flatten(), [0, 0, 0.5, 1, 1])


def test_a_case_with_the_wrong_number_of_channels_is_refused(tmp_path):
    task = resolve_task({**TASK, "channels": ["a", "b"]})
    with pytest.raises(DataError, match=r"1 image\(s\), but the task tiny takes 2: a, b"):
        prepare_case(task, write_case(tmp_path, "case", 1), training=False)


@pytest.mark.parametrize("folder", [None, "cache"])
def test_image_files_are_read_once(tmp_path, folder):
    task = resolve_task(TASK)
    cases = [write_case(tmp_path / "images", f"c{i}", i) for i in range(2)]
    place = None if folder is None else tmp_path / folder
    cache = CaseCache(task, cases, True, place)
    first = [cache[i].image.clone() for i in (0, 1)]
    again = CaseCache(task, cases, True, place) if place else cache
    if not place:
        for case in cases:
            case.images[0].unlink()
    for i in (0, 1):
        assert torch.equal(again[i].image, first[i])
    assert cache.reads == 2
    assert place is None or again.reads == 0


def test_the_disk_cache_notices_a_changed_file(tmp_path):
    task = resolve_task(TASK)
    case = write_case(tmp_path / "images", "c", 0)
    before = CaseCache(task, [case], True, tmp_path / "cache")[0].image.clone()
    write_case(tmp_path / "images", "c", 1)
    after = CaseCache(task, [case], True, tmp_path / "cache")[0].image
    assert not torch.equal(before, after)


def test_patches_are_centred_on_the_classes_as_often_as_asked(tmp_path):
    task = resolve_task({**TASK, "patch_size": [4, 4, 4], "sampling": {"background": 1, "inner": 3}})
    prepared = prepare_case(task, write_case(tmp_path, "case", 1), training=True)
    generator = np.random.default_rng(0)
    centres = [tuple(c + 2 for c in choose_corner(task, prepared, generator)) for _ in range(400)]
    inner = np.mean([prepared.classes[0][c] == 1 for c in centres])
    # three draws in four go to the inner class; 3 standard errors of 400 draws are 0.065
    assert inner == pytest.approx(0.75, abs=0.07)


def test_a_patch_follows_from_its_seed_alone(tmp_path):
    task = resolve_task(TASK)
    cache = CaseCache(task, [write_case(tmp_path, "case", 1)], True)
    dataset = PatchDataset(task, cache, "full")
    first = dataset[(0, 7)]["image"].clone()
    dataset[(0, 8)]
    assert torch.equal(torch.as_tensor(dataset[(0, 7)]["image"]), torch.as_tensor(first))
    assert not torch.equal(torch.as_tensor(dataset[(0, 8)]["image"]), torch.as_tensor(first))


def test_augmentation_never_touches_the_cache(tmp_path):
    task = resolve_task(TASK)
    cache = CaseCache(task, [write_case(tmp_path, "case", 1)], True)
    before = cache[0].image.clone()
    dataset = PatchDataset(task, cache, "full")
    for seed in range(20):
        dataset[(0, seed)]
    assert torch.equal(cache[0].image, before)


def test_small_images_are_padded_to_a_patch(tmp_path):
    task = resolve_task({**TASK, "patch_size": [32, 32, 32]})
    prepared = prepare_case(task, write_case(tmp_path, "case", 1), training=True)
    assert prepared.image.shape == (1, 32, 32, 32)
    _, label = make_image(1)
    assert int((prepared.classes > 0).sum()) == int((label > 0).sum())


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 2.6, 1.7), (0.9, 1.4, 3.0)])
def test_a_resampled_voxel_gets_the_class_with_the_largest_share(tmp_path, spacing):
    """Shares written out: each voxel's place in the file, and the linear weights of the voxels around it."""
    task = resolve_task({**TASK, "spacing": list(spacing)})
    case = write_case(tmp_path, "case", 1, np.diag([1.3, 1.1, 2.0, 1.0]))
    prepared = prepare_case(task, case, training=False)
    relation = np.linalg.inv(prepared.original.affine) @ prepared.grid.affine
    reference, classes = prepared.reference, prepared.classes[0].numpy()
    last = np.array(reference.shape) - 1
    checked = 0
    for index in np.ndindex(classes.shape):
        place = np.clip(relation[:3, :3] @ index + relation[:3, 3], 0, last)
        low = np.floor(place).astype(int)
        shares = np.zeros(3)
        for step in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(step, place - low, 1 - (place - low)))
            shares[reference[tuple(np.minimum(low + step, last))]] += weight
        first, second = np.sort(shares)[[-1, -2]]
        if first - second > 1e-3:
            assert classes[index] == shares.argmax()
            checked += second > 0
    assert checked > 20


def test_voxels_of_the_classes_are_counted_before_padding(tmp_path):
    """20 x 20 x 20 voxels in a patch of 32 x 32 x 32."""
    task = resolve_task({**TASK, "patch_size": [32, 32, 32]})
    case = write_case(tmp_path, "case", 1)
    _, label = make_image(1)
    expected = [int((label == value).sum()) for value in range(3)]
    assert sum(expected) == 8000
    assert list(prepare_case(task, case, training=True).voxels) == expected
    stored = CaseCache(task, [case], True, tmp_path / "cache")
    assert list(stored[0].voxels) == list(stored[0].voxels) == expected


@pytest.mark.parametrize(("axes", "views"), [([], 1), ([0], 2), ([1, 2, 1], 4)])
def test_a_mirrored_prediction_is_the_mean_over_mirror_images(axes, views):
    """A network that looks at its first neighbour: each mirror image shows it another one."""
    task = resolve_task({**TASK, "flip_axes": axes, "mirrored": True, "patch_size": [6, 6, 6]})
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 6, 6, 6))).float()
    seen = []

    def network(window):
        seen.append(window)
        return torch.cat([window, window.roll((1, 1, 1), (2, 3, 4))], dim=1)

    found = infer_logits(network, task, image, 0.0, torch.device("cpu"))[0]
    neighbours = [
        image.roll([-1 if axis in flipped else 1 for axis in range(3)], (1, 2, 3))
        for flipped in ([], [0], [1], [2], [1, 2])
        if set(flipped) <= set(axes)
    ]
    assert len(seen) == len(neighbours) == views
    torch.testing.assert_close(found[0], image[0])
    torch.testing.assert_close(found[1], sum(neighbours)[0] / views)
