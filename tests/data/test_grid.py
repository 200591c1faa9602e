import itertools

import nibabel as nib
import numpy as np
import pytest

from fedseg.data.grid import Grid, to_grid, write_mask
from fedseg.data.reading import read_image
from fedseg.errors import DataError


def world_values(grid: Grid) -> np.ndarray:
    """A linear function of the position in millimetres, sampled on a grid: [1, X, Y, Z]."""
    index = np.indices(grid.shape).reshape(3, -1)
    position = grid.affine[:3, :3] @ index + grid.affine[:3, 3:]
    return (np.array([1.0, 20.0, 300.0]) @ position).reshape(1, *grid.shape)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_flipped_and_permuted_grids_are_mapped_voxel_by_voxel(order, signs):
    source = Grid((5, 6, 7), np.diag([1.0, 2.0, 3.0, 1.0]))
    affine = np.eye(4)
    affine[:3, :3] = (np.diag([1.0, 2.0, 3.0]) @ np.diag(signs))[:, order]
    sizes = np.array(source.shape)
    affine[:3, 3] = [0 if s > 0 else (n - 1) * v for s, n, v in zip(signs, sizes, (1, 2, 3), strict=True)]
    target = Grid(tuple(int(sizes[o]) for o in order), affine)
    np.testing.assert_array_equal(to_grid(world_values(source), source, target), world_values(target))


def test_cropped_images_are_put_back_with_zeros_around():
    affine = np.eye(4)
    affine[:3, 3] = [2, 1, 3]
    inner, outer = Grid((3, 4, 2), affine), Grid((8, 7, 6), np.eye(4))
    result = to_grid(np.ones((2, 3, 4, 2)), inner, outer)
    expected = np.zeros((2, 8, 7, 6))
    expected[:, 2:5, 1:5, 3:5] = 1
    np.testing.assert_array_equal(result, expected)


def test_other_spacings_are_interpolated_linearly():
    source = Grid((9, 9, 9), np.diag([2.0, 2.0, 2.0, 1.0]))
    affine = np.diag([1.5, 1.0, 2.5, 1.0])
    affine[:3, 3] = [1, 2, 0.5]
    target = Grid((8, 9, 5), affine)
    np.testing.assert_allclose(to_grid(world_values(source), source, target), world_values(target), rtol=1e-9)


def test_a_resampled_mask_reaches_the_last_voxels_of_the_image():
    """Prepared voxels of 2 mm cover the original's 1 mm voxels to the very edge, and nothing beyond."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 0.5  # the first two original voxels, centred at 0 and 1, share the first prepared one
    source, target = Grid((4, 4, 4), affine), Grid((10, 8, 8), np.eye(4))
    result = to_grid(np.ones((1, 4, 4, 4)), source, target)[0]
    assert result[:8].min() == 1
    assert result[8:].max() == 0


def test_channels_come_from_files_or_from_the_fourth_axis(tmp_path):
    array = np.random.default_rng(0).normal(size=(3, 4, 5, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "both.nii.gz")
    for channel in range(2):
        nib.save(nib.Nifti1Image(array[..., channel], np.eye(4)), tmp_path / f"{channel}.nii.gz")
    one, _ = read_image([tmp_path / "both.nii.gz"])
    two, grid = read_image([tmp_path / "0.nii.gz", tmp_path / "1.nii.gz"])
    np.testing.assert_array_equal(one, two)
    assert grid.shape == (3, 4, 5)
    assert one.shape == (2, 3, 4, 5)


def test_files_on_different_grids_are_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.float32), np.eye(4)), tmp_path / "a.nii")
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.float32), np.diag([1, 1, 2, 1.0])), tmp_path / "b.nii")
    with pytest.raises(DataError, match=r"b\.nii: The voxels lie up to 2 mm \(2 voxels\) away from those of a\.nii"):
        read_image([tmp_path / "a.nii", tmp_path / "b.nii"])


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"broken\.nii\.gz cannot be read: The file is not packed with gzip"):
        read_image([tmp_path / "broken.nii.gz"])


def test_a_mask_keeps_the_grid(tmp_path):
    affine = np.diag([-0.8, 0.8, 5.0, 1.0])
    path = write_mask(np.ones((2, 3, 4)), Grid((2, 3, 4), affine), tmp_path / "new" / "mask.nii.gz")
    np.testing.assert_allclose(nib.load(path).affine, affine)
