"""Losses by name: hand-made answers, limits in which one is another, and MONAI's own."""

import itertools
import math

import pytest
import torch
from monai.losses import DiceFocalLoss, FocalLoss, GeneralizedDiceLoss, TverskyLoss

from fedseg.contract.plan import parse_plan
from fedseg.contract.settings import parse_training
from fedseg.errors import ConfigurationError
from fedseg.tasks.segmentation.loss_terms import LOSSES, GeneralisedDice, LossTerms, focal, generalised
from fedseg.tasks.segmentation.losses import SegmentationLoss, loss_of_settings, region_targets
from fedseg.tasks.task import parse_task
from fedseg.training.methods.class_weights import ClassWeights
from tiny import PLAN, TASK

OVERLAPPING = parse_task(TASK)
EXCLUSIVE = parse_task({**TASK, "regions": {"inner": ["inner"], "outer": ["outer"]}})
OF_TASKS = pytest.mark.parametrize(
    ("task", "name"),
    [
        (task, name)
        for task in (OVERLAPPING, EXCLUSIVE)
        for name in LOSSES
        if task.exclusive or name != "generalised_dice"
    ],
)
TASKS = pytest.mark.parametrize("task", [OVERLAPPING, EXCLUSIVE], ids=["overlapping", "exclusive"])
P = torch.tensor([1e-6, 0.01, 0.3, 0.5, 0.9, 0.999999], dtype=torch.float64)


def drawn(task, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, task.output_channels, 6, 6, 6, generator=generator)
    return logits, torch.randint(0, 3, (2, 1, 6, 6, 6), generator=generator).to(torch.uint8)


def loss(task, name, **options):
    return loss_of_settings(task, parse_training({"loss": name, **options}).to_dict())


def masks(task, classes):
    if not task.exclusive:
        return region_targets(task, classes)
    return torch.cat([classes == c for c in range(3)], dim=1).float()


@TASKS
def test_dice_and_cross_entropy_are_what_they_were(task):
    logits, classes = drawn(task)
    assert torch.equal(loss(task, "dice_ce")(logits, classes), SegmentationLoss(task)(logits, classes))


def test_terms_of_a_voxel_by_hand():
    """Of p = 1/4: -log p = 1.386294; (3/4)^2 times it; (1 - sqrt(1/4)) / (1/2) = 1; 1 - 1/4."""
    entropy = torch.tensor(math.log(4), dtype=torch.float64)
    assert float(focal(entropy, 2.0)) == pytest.approx(9 / 16 * 1.3862943611198906)
    assert float(generalised(entropy, 0.5)) == pytest.approx(1.0)
    assert float(generalised(entropy, 1.0)) == pytest.approx(0.75)


def test_the_generalised_cross_entropy_lies_between_cross_entropy_and_absolute_error():
    entropy = -P.log()
    assert torch.allclose(generalised(entropy, 1e-9), entropy, rtol=1e-6)
    both = torch.stack([P, 1 - P])
    absolute = (torch.tensor([[1.0], [0.0]]) - both).abs().sum(dim=0) / 2
    assert torch.allclose(generalised(entropy, 1.0), absolute, atol=1e-12)
    values = [generalised(entropy, q) for q in (0.01, 0.3, 0.7, 1.0)]
    assert all((larger >= smaller - 1e-12).all() for larger, smaller in itertools.pairwise(values))
    assert all((value <= 1 / q).all() for value, q in zip(values, (0.01, 0.3, 0.7, 1.0), strict=True))


def test_a_wrong_label_pulls_less_under_the_robust_loss():
    """The slope of a voxel's loss at its logit is p^q times that of the cross-entropy (Zhang and Sabuncu, eq. 7)."""
    logit = torch.tensor([-6.0, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    entropy = torch.nn.functional.softplus(-logit)
    (plain,) = torch.autograd.grad(entropy.sum(), logit, retain_graph=True)
    (robust,) = torch.autograd.grad(generalised(entropy, 0.7).sum(), logit)
    assert torch.allclose(robust, plain * logit.sigmoid() ** 0.7, rtol=1e-9)


@TASKS
def test_limits_in_which_one_loss_is_another(task):
    logits, classes = drawn(task)
    plain = loss(task, "dice_ce")(logits, classes)
    assert torch.allclose(loss(task, "dice_focal", focal_gamma=0.0)(logits, classes), plain, rtol=1e-5)
    assert torch.allclose(loss(task, "dice_gce", gce_q=1e-4)(logits, classes), plain, rtol=1e-3)
    halves = loss(task, "tversky_ce", tversky_alpha=0.5, tversky_beta=0.5)(logits, classes)
    assert torch.allclose(halves, plain, rtol=1e-5)


@TASKS
def test_they_are_those_of_monai(task):
    logits, classes = drawn(task)
    regions, soft = masks(task, classes), task.exclusive
    kinds = {"softmax": soft, "sigmoid": not soft, "batch": True}
    focus = FocalLoss(use_softmax=soft)(logits, regions) * (task.output_channels if soft else 1)
    tversky = TverskyLoss(include_background=not soft, alpha=0.2, beta=0.8, **kinds)(logits, regions)
    assert torch.allclose(loss(task, "tversky", tversky_alpha=0.2, tversky_beta=0.8)(logits, classes), tversky)
    for batch in (True, False):
        whole = GeneralizedDiceLoss(**{**kinds, "batch": batch}, smooth_nr=0, smooth_dr=0)(logits, regions)
        assert torch.allclose(GeneralisedDice(soft, batch)(logits, regions), whole, rtol=1e-5)
    dice = loss(task, "dice_ce")(logits, classes) - loss(task, "dice_gce", gce_q=1e-6)(logits, classes)
    assert abs(float(dice)) < 1e-4
    if not soft:
        both = DiceFocalLoss(**kinds, gamma=2.0)(logits, regions)
        assert torch.allclose(loss(task, "dice_focal")(logits, classes), both, rtol=1e-4)
    only = loss(task, "dice_focal", dice_weight=1e-9)(logits, classes)
    assert torch.allclose(only, focus, rtol=1e-5)


def test_the_tversky_index_by_hand():
    """One region of four voxels; predicted with certainty are one of its voxels and two others."""
    task = parse_task({**TASK, "labels": {"a": 1}, "regions": {"a": ["a"]}, "sampling": {}})
    classes = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0], dtype=torch.uint8).reshape(1, 1, 2, 2, 2)
    inside = torch.tensor([1, 0, 0, 0, 1, 1, 0, 0]).reshape(1, 1, 2, 2, 2) * 200.0 - 100
    logits = torch.cat([-inside, inside], dim=1)
    # 1 true positive, 2 false positives, 3 false negatives: 1 - 1 / (1 + 0.3 * 2 + 0.7 * 3)
    assert float(loss(task, "tversky")(logits, classes)) == pytest.approx(1 - 1 / 3.7, abs=1e-4)


def steep(task, name, logits, classes):
    """Loss and its gradient at logits."""
    logits = logits.double().requires_grad_()
    value = loss(task, name)(logits, classes)
    return float(value.detach()), torch.autograd.grad(value, logits)[0]


def test_the_generalised_dice_loss_by_hand():
    """Two regions of 1 and 2 voxels beside 5 of background, all probabilities 1/3: weights 1, 1/4 and 1/25."""
    classes = torch.tensor([1, 2, 2, 0, 0, 0, 0, 0], dtype=torch.uint8).reshape(1, 1, 2, 2, 2)
    overlap = (1 / 25) * 5 / 3 + 1 * 1 / 3 + (1 / 4) * 2 / 3
    size = (1 / 25) * (8 / 3 + 5) + 1 * (8 / 3 + 1) + (1 / 4) * (8 / 3 + 2)
    value, _ = steep(EXCLUSIVE, "generalised_dice", torch.zeros(1, 3, 2, 2, 2), classes)
    assert value == pytest.approx(1 - 2 * overlap / size, rel=1e-5)


def test_the_generalised_dice_loss_of_large_regions_is_not_that_of_its_constant():
    """A half of 64^3 voxels each: the loss is that of the same halves of 4^3, and so is the slope of all together."""
    found = []
    for side in (4, 64):
        classes = torch.ones(1, 1, side, side, side, dtype=torch.uint8)
        classes[:, :, : side // 2] = 2
        value, slope = steep(EXCLUSIVE, "generalised_dice", torch.zeros(1, 3, side, side, side), classes)
        found.append((value, float(slope.abs().sum())))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[1][0] > 0.5


def test_a_region_that_a_patch_lacks_still_has_a_slope_in_the_generalised_dice_loss():
    classes = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
    value, slope = steep(EXCLUSIVE, "generalised_dice", torch.zeros(1, 3, 8, 8, 8), classes)
    assert value == pytest.approx(1 - 1 / 3, rel=1e-5)
    assert bool((slope[:, 0] < 0).all())
    assert bool((slope[:, 1:] > 0).all())
    classes[0, 0, 0, 0, :4] = 1
    _, slope = steep(EXCLUSIVE, "generalised_dice", torch.zeros(1, 3, 8, 8, 8), classes)
    assert bool((slope[:, 2] > 0).all())
    # Overlapping regions: the whole is there, the inner one is not.
    classes[:] = 0
    classes[0, 0, 0, 0, :4] = 2
    term = GeneralisedDice(exclusive=False, batch=True)
    logits, regions = torch.zeros(1, 2, 8, 8, 8, requires_grad=True), region_targets(OVERLAPPING, classes)
    term(logits, regions).backward()
    empty = int(regions.sum((0, 2, 3, 4)).argmin())
    assert regions[:, empty].sum() == 0 < regions.sum()
    assert bool((logits.grad[:, empty] > 0).all())


def test_without_cross_entropy_the_generalised_dice_loss_is_for_regions_that_exclude_each_other():
    training = {**PLAN["training"], "loss": "generalised_dice"}
    with pytest.raises(
        ConfigurationError, match=r"training\.loss is 'generalised_dice', but must be 'generalised_dice_ce'"
    ):
        parse_plan({**PLAN, "training": training})
    parse_plan({**PLAN, "training": {**training, "loss": "generalised_dice_ce"}})
    classes = torch.zeros(1, 1, 4, 4, 4, dtype=torch.uint8)
    _, slope = steep(OVERLAPPING, "generalised_dice_ce", torch.zeros(1, 2, 4, 4, 4), classes)
    assert bool((slope > 1e-3).all())


@OF_TASKS
def test_every_loss_has_finite_slopes_where_the_network_is_sure(task, name):
    logits, classes = drawn(task)
    logits = (100 * logits).requires_grad_()
    value = loss(task, name)(logits, classes)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
    low, high = 0.0, 1000.0
    assert low <= float(value.detach()) <= high


def test_class_weights_need_the_cross_entropy():
    plan = parse_plan({**PLAN, "training": {**PLAN["training"], "loss": "dice_focal"}})
    with pytest.raises(ConfigurationError, match=r"training\.loss is 'dice_focal', but must be one of \['dice_ce'"):
        ClassWeights().check_plan(plan)
    with pytest.raises(ValueError, match="takes no class weights"):
        SegmentationLoss(EXCLUSIVE, class_weights=torch.ones(3), terms=LossTerms("gce"))


@pytest.mark.parametrize(("name", "value"), [("gce_q", 0.0), ("gce_q", 1.1), ("focal_gamma", -1.0), ("loss", "dice")])
def test_what_no_loss_can_be_is_refused(name, value):
    with pytest.raises(ConfigurationError, match=rf"training\.{name}"):
        parse_training({name: value})
