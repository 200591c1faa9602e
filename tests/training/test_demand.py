"""What training takes, counted by hand for a plan whose numbers are small."""

import numpy as np
import pytest

from fedseg.contract.plan import parse_plan
from fedseg.data.grid import Grid
from fedseg.errors import ConfigurationError
from fedseg.memory import GIB
from fedseg.networks.demand import demand
from fedseg.training.demand import cases_bytes, check_training, training_bytes
from tiny import PLAN, TASK

SLICES = Grid((100, 80, 10), np.diag([0.5, 1.0, 5.0, 1.0]))


def plan(task=(), **training):
    return parse_plan({**PLAN, "task": {**TASK, **dict(task)}, "training": {**PLAN["training"], **training}})


def test_a_batch_counts_as_many_patches_as_there_are_cases():
    needs = demand(plan().network, 1, 2, (16, 16, 16))
    for size, cases, batch in ((2, 10, 2), (4000, 10, 10), (2, 0, 1)):
        got = training_bytes(plan(batch_size=size, precision="float32"), cases)
        assert got == 4 * (5 * needs.weights + batch * needs.kept)
    sgd = training_bytes(plan(batch_size=1, precision="float32", optimizer="sgd"), 3)
    assert sgd == 4 * (4 * needs.weights + needs.kept)
    assert training_bytes(plan(batch_size=1), 3) == 4 * 5 * needs.weights + 2 * needs.kept


def test_images_count_at_the_voxel_size_of_the_task():
    """100 x 0.5, 80 x 1 and 10 x 5 mm are 50, 80 and 50 mm."""
    assert SLICES.voxels_at(None) == 100 * 80 * 10
    assert SLICES.voxels_at((1, 1, 1)) == 50 * 80 * 50
    assert SLICES.voxels_at((3, 3, 3)) == 17 * 27 * 17
    turned = Grid((10, 100, 80), np.array([[0, 0.5, 0, 0], [0, 0, 1.0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]]))
    assert turned.voxels_at((1, 2, 5)) == 50 * 40 * 10, "axes in the order of the body"


def test_all_images_count_where_they_stay_in_memory():
    small = Grid((10, 10, 10), np.eye(4))
    assert cases_bytes(plan({"spacing": [1, 1, 1]}), [SLICES, small]) == 4 * (200_000 + 1000)
    for largest in (
        plan({"spacing": [1, 1, 1]}, cache="disk"),
        plan({"spacing": [1, 1, 1], "crop_to_foreground": True}),
    ):
        assert cases_bytes(largest, [SLICES, small]) == 4 * 200_000
    assert cases_bytes(plan(), []) == 0


def test_the_finest_spacing_is_refused_by_its_images_and_the_largest_patch_by_itself():
    with pytest.raises(
        ConfigurationError, match=r"and the images is '.* GiB', but must be 64 GiB at most\. Take smaller"
    ):
        check_training(plan({"spacing": [0.01, 0.01, 0.01]}), [SLICES], limit=64 * GIB)
    with pytest.raises(ConfigurationError, match=r"batches of 2 patches of 1024x1024x1024 voxels is '.* GiB'"):
        check_training(plan({"patch_size": [1024] * 3}), [SLICES], limit=16 * GIB)
    check_training(plan(), [SLICES] * 20, limit=GIB)


def test_on_a_gpu_the_network_is_compared_with_the_gpu_and_the_images_with_the_site():
    network, images = training_bytes(plan(), 2), cases_bytes(plan(), [SLICES, SLICES])
    check_training(plan(), [SLICES, SLICES], limit=images, on_gpu=network)
    for limit, on_gpu, named in ((images - 1, network, "and the images"), (images, network - 1, "voxels is")):
        with pytest.raises(ConfigurationError, match=named):
            check_training(plan(), [SLICES, SLICES], limit=limit, on_gpu=on_gpu)
