"""Which patches make a batch: several of a case, of several sizes, and with foreground where it is forced."""

from collections import Counter

import numpy as np
import pytest
import torch

from fedseg.contract.patch_sizes import forced_count
from fedseg.contract.plan import parse_plan
from fedseg.contract.round_settings import RoundSettings, round_steps
from fedseg.contract.settings import parse_training
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.networks.weights import get_weights
from fedseg.tasks.registry import resolve_task
from fedseg.training.batches import epoch_batches
from fedseg.training.cache import CaseCache
from fedseg.training.hooks import TrainingHook
from fedseg.training.patches import PatchDataset, PatchItem
from fedseg.training.patient_dp_sgd import PatientDPSGD
from hooked import assert_same, check_seeded_and_restarted, make_trainer, plain_rounds
from tiny import PLAN, TASK, make_sites, write_case

SIZES = [{"size": [16, 16, 16], "share": 3}, {"size": [8, 8, 16], "share": 1}]
CASES = [(3, (0,)), (1, (1,)), (2, (2,))]
WHERE = (0, "a", 0, 0)


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (3, 1)}) / "a")


def batches(cases=CASES, where=WHERE, **training):
    return epoch_batches(resolve_task(TASK), parse_training(training), cases, where)


def test_patches_of_a_case_follow_one_another_and_the_first_is_what_it_was():
    one, three = batches(batch_size=4), batches(batch_size=4, patches_per_case=3)
    assert [len(batch) for batch in three] == [4, 4, 1]
    flat = [item for batch in three for item in batch]
    assert [item.case for item in flat] == [3, 3, 3, 1, 1, 1, 2, 2, 2]
    assert len({item.seed for item in flat}) == 9
    assert flat[::3] == one[0]


@pytest.mark.parametrize(("patches", "batch", "cases", "most"), [(1, 2, 5, None), (3, 4, 5, None), (3, 2, 5, 2)])
def test_steps_of_a_round_are_the_batches_that_there_are(patches, batch, cases, most):
    settings = {"patches_per_case": patches, "batch_size": batch, "local_epochs": 2}
    made = batches([(i, (i,)) for i in range(min(cases, most or cases))], **settings)
    assert round_steps(parse_training(settings), cases, most) == 2 * len(made)


def test_a_batch_has_one_size_and_sizes_come_by_their_shares():
    drawn = batches([(i, (i,)) for i in range(2000)], patch_sizes=SIZES)
    assert all(len({item.size for item in batch}) == 1 for batch in drawn)
    counts = Counter(batch[0].size for batch in drawn)
    # 1000 batches: 4 standard errors of a share of 3/4 are 0.055
    assert counts[16, 16, 16] / 1000 == pytest.approx(0.75, abs=0.055)
    assert drawn == batches([(i, (i,)) for i in range(2000)], patch_sizes=SIZES)


@pytest.mark.parametrize(("share", "batch", "forced"), [(0.33, 2, 1), (0.33, 3, 1), (0.33, 12, 4), (1.0, 5, 5)])
def test_the_last_patches_of_a_batch_are_forced_as_many_as_nnunet_forces(share, batch, forced):
    """nnU-Net: a sample is forced unless its place is below round(batch * (1 - share))."""
    expected = [not place < round(batch * (1 - share)) for place in range(batch)]
    (made,) = batches([(i, (i,)) for i in range(batch)], batch_size=batch, forced_foreground=share)
    assert [item.foreground for item in made] == expected
    assert sum(expected) == forced == forced_count(share, batch)
    assert {item.foreground for item in batches()[0]} == {None}


@pytest.mark.parametrize("share", [0.2, 0.33, 0.5, 0.9])
@pytest.mark.parametrize("size", [3, 4, 7])
def test_no_batch_has_a_smaller_share_of_forced_patches_than_a_whole_one(share, size):
    """Whatever number of patches an epoch has; nor more than one patch above that share."""
    for count in range(1, 2 * size + 2):
        made = batches([(i, (i,)) for i in range(count)], batch_size=size, forced_foreground=share)
        for batch in made:
            forced = sum(item.foreground for item in batch)
            least = forced_count(share, size) * len(batch) / size
            assert least <= forced < least + 1
            assert [item.foreground for item in batch] == sorted(item.foreground for item in batch)


def test_a_site_with_a_single_patch_in_an_epoch_trains_on_the_foreground():
    (batch,) = batches([(0, (0,))], batch_size=2, forced_foreground=0.33)
    assert [item.foreground for item in batch] == [True]


def test_forced_patches_have_each_class_in_their_centre_as_often_and_others_lie_anywhere(tmp_path):
    task = resolve_task({**TASK, "patch_size": [5, 5, 5], "sampling": {}, "flip_axes": []})
    dataset = PatchDataset(task, CaseCache(task, [write_case(tmp_path, "a", 5)], True), "none")

    def centres(foreground):
        items = [PatchItem(0, seed, None, foreground) for seed in range(300)]
        return Counter(int(dataset[item]["classes"][0, 2, 2, 2]) for item in items)

    forced, free = centres(True), centres(False)
    assert forced[0] == 0
    # 300 draws of one half: 4 standard errors are 0.115
    assert forced[1] / 300 == pytest.approx(0.5, abs=0.12)
    inside = float((dataset.cases[0].classes > 0).float().mean())
    assert 1 - free[0] / 300 == pytest.approx(inside, abs=0.15)


def test_a_case_without_foreground_gives_a_patch_from_anywhere(tmp_path):
    task = resolve_task(TASK)
    cases = CaseCache(task, [write_case(tmp_path, "a", 5)], True)
    cases[0].classes.zero_()
    nothing = tuple(torch.zeros(0, dtype=torch.int32) for _ in range(2))
    object.__setattr__(cases[0], "indices", (cases[0].indices[0], *nothing))
    assert PatchDataset(task, cases, "none")[PatchItem(0, 1, None, True)]["image"].shape == (1, 16, 16, 16)


def test_a_patch_larger_than_the_image_has_it_in_its_middle(tmp_path):
    task = resolve_task({**TASK, "flip_axes": []})
    dataset = PatchDataset(task, CaseCache(task, [write_case(tmp_path, "a", 5)], True), "none")
    patch, image = dataset[(0, 1, (28, 16, 20))]["image"], dataset.cases[0].image
    assert patch.shape == (1, 28, 16, 20)
    assert not patch[:, :4].any()
    assert not patch[:, 24:].any()
    assert any(torch.equal(patch[0, 4:24], image[0, :, y : y + 16]) for y in range(5))


@pytest.mark.parametrize(
    "changes",
    [{"patches_per_case": 3}, {"patch_sizes": SIZES}, {"forced_foreground": 0.33, "patches_per_case": 2}],
)
def test_training_is_seeded_and_goes_on_after_the_site_died(datalist, changes, tmp_path):
    check_seeded_and_restarted(datalist, PlainHook, tmp_path, changes=changes)


class PlainHook(TrainingHook):
    pass


def test_one_size_that_is_the_tasks_is_training_without_sizes_to_the_bit(datalist):
    sizes = [{"size": TASK["patch_size"]}]
    assert_same(plain_rounds(datalist, {"patch_sizes": sizes}), plain_rounds(datalist))


def test_a_round_has_the_steps_that_the_server_expects(datalist):
    trainer = make_trainer(datalist, changes={"patches_per_case": 3, "batch_size": 2})
    weights = get_weights(trainer.plan.build_network())
    settings = RoundSettings(epoch_cases=2)
    found = trainer.train_round(weights, 0, 2, settings=settings)
    assert found.num_steps == round_steps(trainer.plan.training, 3, 2) == 3
    assert np.isfinite(found.train_loss)


@pytest.mark.parametrize(
    ("training", "name"),
    [
        ({"forced_foreground": 0.33, "batch_size": 1}, "training.forced_foreground"),
        ({"patch_sizes": [{"size": [16, 16, 18]}]}, "training.patch_sizes[0].size"),
        ({"patch_sizes": [{"size": [16, 16, 16]}, {"size": [4, 4, 4]}]}, "training.patch_sizes[1].size"),
        ({"patch_sizes": [{"size": [16, 16, 16]}] * 2}, "training.patch_sizes"),
        ({"patch_sizes": [{"size": [16, 16, 16], "share": 0}]}, "training.patch_sizes[0].share"),
        ({"patch_sizes": [[16, 16, 16]]}, "training.patch_sizes[0]"),
        ({"patches_per_case": 0}, "training.patches_per_case"),
    ],
)
def test_patches_that_cannot_be_are_refused(training, name):
    with pytest.raises(ConfigurationError) as raised:
        parse_plan({**PLAN, "training": {**PLAN["training"], **training}})
    assert raised.value.name == name


def test_sizes_are_refused_where_one_is_needed():
    parts = {**PLAN["network"], "parts": [{"name": "amplitude"}]}
    plan = {**PLAN, "network": parts, "training": {**PLAN["training"], "patch_sizes": SIZES}}
    with pytest.raises(ConfigurationError, match="The part amplitude of the network is made for one size"):
        parse_plan(plan)
    split = {"split": {}, "training": {**PLAN["training"], "batch_dice": False, "patches_per_case": 2}}
    with pytest.raises(ConfigurationError, match=r"training\.patches_per_case is 2, but must be left out in split"):
        parse_plan({**PLAN, **split})


@pytest.mark.parametrize("training", [{"patches_per_case": 2}, {"patch_sizes": SIZES}, {"forced_foreground": 0.5}])
def test_with_dp_sgd_no_patch_follows_from_its_place_in_the_batch(training):
    plan = parse_plan({**PLAN, "training": {**PLAN["training"], **training}})
    with pytest.raises(ConfigurationError, match="with DP-SGD"):
        PatientDPSGD(1.0, 1.0).check_plan(plan)


def test_sizes_travel_with_the_plan():
    plan = parse_plan({**PLAN, "training": {**PLAN["training"], "patch_sizes": SIZES}})
    assert parse_plan(plan.to_dict()) == plan
    assert plan.largest_patch == (16, 16, 16)
