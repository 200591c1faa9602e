"""Losses by name: hand-made answers, limits in which one is another, and MONAI's own."""

import itertools
import math

import pytest
import torch
from monai.losses import DiceFocalLoss, FocalLoss, GeneralizedDiceLoss, TverskyLoss

from fedseg.contract.plan import parse_plan
from fedseg.contract.settings import parse_training
from fedseg.errors import ConfigurationError
from fedseg.tasks.segmentation.loss_terms import LOSSES, LossTerms, focal, generalised
from fedseg.tasks.segmentation.losses import SegmentationLoss, loss_of_settings, region_targets
from fedseg.tasks.task import parse_task
from fedseg.training.methods.class_weights import ClassWeights
from tiny import PLAN, TASK

OVERLAPPING = parse_task(TASK)
EXCLUSIVE = parse_task({**TASK, "regions": {"inner": ["inner"], "outer": ["outer"]}})
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
    whole = GeneralizedDiceLoss(**kinds)(logits, regions)
    assert torch.allclose(loss(task, "generalised_dice")(logits, classes), whole)
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


@TASKS
@pytest.mark.parametrize("name", LOSSES)
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
