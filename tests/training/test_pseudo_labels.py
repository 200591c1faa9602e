"""Pseudo-labels against slow loops: no voxel lies where a region may not be, and contradictions teach nothing."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from fedseg.data.datalist import read_datalist
from fedseg.data.supervision import Box, Supervision
from fedseg.tasks.segmentation.labels import to_regions
from fedseg.tasks.task import parse_task
from fedseg.training.cache import CaseCache
from fedseg.training.pseudo_labels import BoxRule, PseudoLabel, agreement, overlap, refined
from tiny import EXCLUSIVE, TASK, make_image, make_sites

NESTED, APART = parse_task(TASK), parse_task(EXCLUSIVE)
SHAPE = (6, 5, 4)
NOTHING = Supervision("none")


def probabilities(task, seed):
    draw = np.random.default_rng(seed)
    values = draw.random((2, *SHAPE)).astype(np.float32)
    return values / values.sum(axis=0) if task.exclusive else values


@pytest.mark.parametrize("task", [NESTED, APART], ids=["nested", "apart"])
@pytest.mark.parametrize("seed", range(5))
def test_no_voxel_outside_of_its_boxes_is_taught(task, seed):
    first, second = task.region_names
    box, other = Box((1, 0, 0), (3, 3, 2)), Box((0, 1, 1), (4, 4, 3))
    said = Supervision("boxes", ((first, (box,)), (second, (other,))))
    possible = said.possible(task.region_names, SHAPE)
    classes = refined(task, probabilities(task, seed), possible, said, BoxRule(0.0))
    masks = to_regions(task, classes)
    for region, each in enumerate((box, other)):
        assert masks[region].any()
        for voxel in np.argwhere(masks[region]).tolist():
            assert all(a <= v <= b for a, v, b in zip(each.first, voxel, each.last, strict=True))


@pytest.mark.parametrize("task", [NESTED, APART], ids=["nested", "apart"])
def test_where_all_is_possible_a_pseudo_label_is_the_prediction(task):
    from fedseg.tasks.objective import objective_of

    values = probabilities(task, 1)
    found = refined(task, values, NOTHING.possible(task.region_names, SHAPE), NOTHING, BoxRule())
    assert np.array_equal(found, objective_of(task).decide(values))


def test_what_is_known_to_be_absent_is_background_and_what_is_there_must_be_found():
    values = np.zeros((2, *SHAPE), np.float32)
    values[0, 1:3, 1:3, 1:3] = 0.9

    def label(said):
        return refined(APART, values, said.possible(APART.region_names, SHAPE), said, BoxRule())

    assert label(Supervision("image", present=(("inner", True), ("outer", False)))).max() == 1
    assert label(Supervision("image", present=(("outer", True),))) is None
    assert not label(Supervision("image", present=(("inner", False), ("outer", False)))).any()
    # Nothing is left, though something may be there: that teaches nothing.
    assert label(Supervision("image", present=(("inner", False),))) is None


def test_a_pseudo_label_fits_its_box_by_its_extent_or_by_its_voxels():
    boxes = np.zeros(SHAPE, bool)
    boxes[0:4, 0:4, 0:2] = True
    found = np.zeros(SHAPE, bool)
    found[0, 0, 0] = found[3, 3, 1] = True  # a diagonal: its extent is the whole box of 32 voxels
    assert overlap(found, boxes) == pytest.approx(2 * 2 / 34)
    assert BoxRule(1.0, "extent").fits(found, boxes)
    assert BoxRule(2 * 2 / 34, "voxels").fits(found, boxes)
    assert not BoxRule(2 * 2 / 34 + 1e-6, "voxels").fits(found, boxes)
    found[3, 3, 1] = False
    assert not BoxRule(0.5, "extent").fits(found, boxes)  # one voxel of 32: 2 / 33
    boxes[5, 4, 3] = True  # a second box, in which nothing is
    found[3, 3, 1] = True
    assert BoxRule(2 * 32 / 65, "extent").fits(found, boxes)
    assert not BoxRule(2 * 32 / 65 + 1e-6, "extent").fits(found, boxes)


def test_agreement_is_the_mean_dice_over_regions_that_either_has():
    one, other = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    assert agreement(APART, one, other) == 1
    one[0, 0, :2], other[0, 0, 1:4] = 1, 1
    assert agreement(APART, one, other) == pytest.approx(2 * 1 / 5)
    one[1, 1, 1] = other[1, 1, 1] = 2
    assert agreement(APART, one, other) == pytest.approx((2 / 5 + 1) / 2)


def test_a_kept_pseudo_label_is_what_it_was():
    draw = np.random.default_rng(0)
    labels = [np.where(draw.random(SHAPE) < 0.1, draw.integers(1, 3, SHAPE), 0).astype(np.uint8) for _ in range(2)]
    kept = PseudoLabel.of(APART, labels)
    assert torch.equal(kept.whole(), torch.from_numpy(np.stack(labels)))
    assert kept.voxels == tuple(int((labels[0] == value).sum()) for value in range(3))
    assert torch.equal(kept.indices[2], torch.from_numpy(np.flatnonzero(labels[0] == 2).astype(np.int32)))
    empty = PseudoLabel.of(APART, [np.zeros(SHAPE, np.uint8)])
    assert torch.equal(empty.whole(), torch.zeros((1, *SHAPE), dtype=torch.uint8))


@pytest.mark.parametrize("changes", [{}, {"spacing": [1.5, 1.0, 1.0]}, {"crop_to_foreground": True}])
def test_boxes_lie_where_the_masks_lie_that_they_are_around(changes, tmp_path):
    case = read_datalist(make_sites(tmp_path, {"a": (1, 1)}) / "a").training[0]
    image, label = make_image(0)
    image[:3] = image[:, :, 18:] = 0
    affine = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    for path, values in ((case.images[0], image), (case.label, label)):
        nib.save(nib.Nifti1Image(values, affine), path)
    task = parse_task({**EXCLUSIVE, **changes, "patch_size": [24, 16, 16]})
    boxes = []
    for value, name in ((1, "inner"), (2, "outer")):
        where = np.argwhere(label == value)
        boxes.append((name, (Box(tuple(where.min(axis=0).tolist()), tuple(where.max(axis=0).tolist())),)))
    weak = replace(case, label=None, supervision=Supervision("boxes", tuple(boxes)))
    (masks,), (prepared,) = ([CaseCache(task, [each], True, tmp_path / "cache")[0]] for each in (case, weak))
    again = CaseCache(task, [weak], True, tmp_path / "cache")[0]
    assert torch.equal(again.possible, prepared.possible)
    assert prepared.classes is None
    assert torch.equal(prepared.image, masks.image)
    for region, value in enumerate((1, 2)):
        where, place = (np.argwhere(each.numpy()) for each in (masks.classes[0] == value, prepared.possible[region]))
        # A voxel that is resampled may fall on either side of an edge.
        slack = 1 if "spacing" in changes else 0
        assert (np.abs(where.min(axis=0) - place.min(axis=0)) <= slack).all()
        assert (np.abs(where.max(axis=0) - place.max(axis=0)) <= slack).all()
        assert len(place) == np.prod(place.max(axis=0) - place.min(axis=0) + 1)
