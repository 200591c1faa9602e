"""Losses of partial labels: slow loops over voxels, limits in which all is drawn, and directions without a slope."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.contract.settings import parse_training
from fedseg.errors import ConfigurationError
from fedseg.tasks.objective import objective_of
from fedseg.tasks.segmentation.loss_terms import LOSSES
from fedseg.tasks.segmentation.losses import SegmentationLoss, loss_of_settings
from fedseg.tasks.segmentation.partial_loss import exclusion, join_targets, marginal_logits, split_targets
from fedseg.tasks.task import parse_task
from tiny import TASK

CLASSES = {"labels": {"a": 1, "b": 2, "c": 3}, "sampling": {}}
EXCLUSIVE = parse_task({**TASK, **CLASSES, "regions": {"A": ["a"], "B": ["b"], "C": ["c"]}})
OVERLAPPING = parse_task({**TASK, **CLASSES, "regions": {"A": ["a"], "AB": ["a", "b"], "ABC": ["a", "b", "c"]}})
TASKS = pytest.mark.parametrize("task", [OVERLAPPING, EXCLUSIVE], ids=["overlapping", "exclusive"])
OF_TASKS = pytest.mark.parametrize(
    ("task", "name"),
    [
        (task, name)
        for task in (OVERLAPPING, EXCLUSIVE)
        for name in LOSSES
        if task.exclusive or name != "generalised_dice"
    ],
)
# Three cases: everything drawn, without the second region, the third alone.
DRAWN = torch.tensor([[True, True, True], [True, False, True], [False, False, True]])
SHAPE = (3, 4, 3)
SMOOTH = 1e-5


def batch(task, drawn=DRAWN, seed=0):
    """Logits in float64, and labels in which a class that nobody drew is background where regions exclude."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(len(drawn), task.output_channels, *SHAPE, generator=generator, dtype=torch.float64)
    classes = torch.randint(0, 4, (len(drawn), 1, *SHAPE), generator=generator).to(torch.uint8)
    if task.exclusive:
        for case, row in enumerate(drawn):
            for region in torch.nonzero(~row).flatten():
                classes[case][classes[case] == region + 1] = 0
    return logits, classes


def loss(task, name="dice_ce", **options):
    return loss_of_settings(task, parse_training({"loss": name, **options}).to_dict())


def probabilities(task, logits, drawn, case, voxel):
    """Probabilities of the channels that a case tells of, by channel, as plain floats."""
    values = [float(logits[(case, channel, *voxel)]) for channel in range(task.output_channels)]
    if not task.exclusive:
        return {r: 1 / (1 + math.exp(-values[r])) for r in range(3) if drawn[case][r]}
    total = sum(map(math.exp, values))
    p = [math.exp(v) / total for v in values]
    known = {r + 1: p[r + 1] for r in range(3) if drawn[case][r]}
    return {0: 1 - sum(known.values()), **known}


def truth(task, classes, case, voxel):
    """Which channels are true of a voxel."""
    value = int(classes[(case, 0, *voxel)])
    if task.exclusive:
        return {value}
    return {r for r in range(3) if value and value <= r + 1}


def slow(task, logits, classes, drawn, batch_dice):
    """Dice loss and cross-entropy of what is drawn, voxel by voxel."""
    voxels = list(itertools.product(*map(range, SHAPE)))
    sums, entropies = {}, []
    for case in range(len(drawn)):
        for voxel in voxels:
            p, true = probabilities(task, logits, drawn, case, voxel), truth(task, classes, case, voxel)
            for channel, value in p.items():
                is_true = channel in true
                if not task.exclusive:
                    entropies.append(-math.log(value if is_true else 1 - value))
                elif is_true:
                    entropies.append(-math.log(value))
                if task.exclusive and channel == 0:
                    continue
                key = channel if batch_dice else (case, channel)
                both, size = sums.get(key, (0.0, 0.0))
                sums[key] = both + value * is_true, size + value + is_true
    dice = [1 - (2 * both + SMOOTH) / (size + SMOOTH) for both, size in sums.values()]
    return sum(dice) / len(dice), sum(entropies) / len(entropies)


@TASKS
@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("rows", [[0, 1, 2], [1], [1, 2], [2, 2]])
def test_dice_and_cross_entropy_against_a_slow_loop(task, batch_dice, rows):
    drawn = DRAWN[rows]
    logits, classes = batch(task, drawn)
    dice, entropy = slow(task, logits, classes, drawn, batch_dice)
    targets = join_targets(classes, drawn)
    for weight in (1.0, 0.25):
        found = loss(task, dice_weight=weight, batch_dice=batch_dice)(logits, targets)
        assert float(found) == pytest.approx(weight * dice + entropy, rel=1e-6)


@OF_TASKS
def test_where_all_is_drawn_the_loss_is_the_ordinary_one_to_the_bit(task, name):
    everything = torch.ones_like(DRAWN)
    logits, classes = batch(task, everything)
    assert join_targets(classes, everything) is classes
    assert torch.equal(loss(task, name)(logits, classes), loss(task, name)(logits, classes.long()))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch_dice", [True, False])
def test_without_its_undrawn_class_a_case_is_one_of_a_smaller_task(name, batch_dice):
    """Whose background has the probability of its own background and of the undrawn class."""
    drawn = torch.tensor([[True, False, True]] * 2)
    options = {"batch_dice": batch_dice}
    logits, classes = batch(EXCLUSIVE, drawn)
    less = parse_task({**TASK, "labels": {"a": 1, "c": 2}, "sampling": {}, "regions": {"A": ["a"], "C": ["c"]}})
    merged = torch.stack([logits[:, [0, 2]].logsumexp(dim=1), logits[:, 1], logits[:, 3]], dim=1)
    renamed = torch.where(classes == 3, torch.tensor(2, dtype=torch.uint8), classes)
    expected = loss(less, name, **options)(merged, renamed)
    assert torch.allclose(loss(EXCLUSIVE, name, **options)(logits, join_targets(classes, drawn)), expected)


@given(st.lists(st.booleans(), min_size=3, max_size=3).filter(any), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_loss_does_not_care_how_the_rest_is_split(row, seed):
    """Probability moved between background and undrawn classes changes nothing, and there is no slope in it."""
    drawn = torch.tensor([row])
    logits, classes = batch(EXCLUSIVE, drawn, seed)
    targets, undrawn = join_targets(classes, drawn), [0, *(1 + i for i, known in enumerate(row) if not known)]
    logits.requires_grad_(True)
    value = loss(EXCLUSIVE)(logits, targets)
    (slope,) = torch.autograd.grad(value, logits)
    p = logits.detach().softmax(dim=1)[:, undrawn]
    # dz with sum(p dz) = 0 keeps the merged probability: the slope must be in proportion to p within the group.
    shares = p / p.sum(dim=1, keepdim=True)
    assert torch.allclose(slope[:, undrawn], shares * slope[:, undrawn].sum(dim=1, keepdim=True), atol=1e-12)
    moved = logits.detach().clone()
    total = moved[:, undrawn].logsumexp(dim=1, keepdim=True)
    other = torch.randn(moved[:, undrawn].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    moved[:, undrawn] = total + other.log_softmax(dim=1)
    assert torch.allclose(loss(EXCLUSIVE)(moved, targets), value, rtol=1e-9)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"generalised_dice"}))
def test_undrawn_channels_of_overlapping_regions_have_no_gradient(name):
    logits, classes = batch(OVERLAPPING)
    logits.requires_grad_(True)
    loss(OVERLAPPING, name)(logits, join_targets(classes, DRAWN)).backward()
    assert bool((logits.grad[~DRAWN] == 0).all())
    assert bool((logits.grad[DRAWN] != 0).any())


@OF_TASKS
def test_every_loss_of_a_mixed_batch_is_finite_with_its_gradient(task, name):
    logits, classes = batch(task)
    logits = (100 * logits.float()).requires_grad_(True)
    value = loss(task, name)(logits, join_targets(classes, DRAWN))
    value.backward()
    assert bool(torch.isfinite(value))
    assert bool(torch.isfinite(logits.grad).all())


def test_a_voxel_of_a_class_that_nobody_drew_counts_as_background():
    logits, classes = batch(EXCLUSIVE)
    said = classes.clone()
    said[1][classes[1] == 0] = 2
    targets, same = join_targets(said, DRAWN), join_targets(classes, DRAWN)
    assert torch.equal(loss(EXCLUSIVE)(logits, targets), loss(EXCLUSIVE)(logits, same))


def test_exclusion_against_a_slow_loop():
    logits, classes = batch(EXCLUSIVE)
    voxels, terms = list(itertools.product(*map(range, SHAPE))), []
    for case, region in torch.nonzero(~DRAWN).tolist():
        both = size = entropy = 0.0
        for voxel in voxels:
            values = [math.exp(float(v)) for v in logits[(case, slice(None), *voxel)]]
            p, e = values[region + 1] / sum(values), int(classes[(case, 0, *voxel)] > 0)
            both, size, entropy = both + p * e, size + p + e, entropy + e * math.log(1 + p)
        terms.append(0.5 * 2 * both / (size + SMOOTH) + entropy / len(voxels))
    foreground = (classes > 0).double()
    assert float(exclusion(logits, foreground, ~DRAWN, 0.5)) == pytest.approx(sum(terms) / len(terms))
    plain, more = (loss(EXCLUSIVE, undrawn=u, dice_weight=0.5) for u in ("marginal", "exclusion"))
    targets = join_targets(classes, DRAWN)
    assert float(more(logits, targets) - plain(logits, targets)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_exclusion_is_for_regions_that_exclude_and_weights_for_labels_that_are_whole():
    with pytest.raises(ConfigurationError, match=r"training\.undrawn"):
        loss(OVERLAPPING, undrawn="exclusion")
    logits, classes = batch(EXCLUSIVE)
    weighted = SegmentationLoss(EXCLUSIVE, class_weights=torch.ones(4))
    with pytest.raises(ValueError, match="every region is drawn"):
        weighted(logits, join_targets(classes, DRAWN))


@given(st.integers(1, 40), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_targets_come_apart_as_they_were_joined(regions, seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(2, regions, generator=generator) < 0.5
    classes = torch.randint(0, 256, (2, 1, 4, 4, 4), generator=generator).to(torch.uint8)
    found, undrawn = split_targets(join_targets(classes, drawn), regions)
    assert torch.equal(found.to(torch.uint8), classes)
    assert bool(drawn.all()) if undrawn is None else torch.equal(undrawn, ~drawn)


def test_targets_of_a_coarser_output_say_what_is_drawn():
    kind = objective_of(EXCLUSIVE)
    _, classes = batch(EXCLUSIVE)
    joined = kind.coarser(join_targets(classes, DRAWN), (2, 2, 2))
    found, undrawn = split_targets(joined, 3)
    assert torch.equal(found, kind.coarser(classes, (2, 2, 2)).long())
    assert torch.equal(undrawn, ~DRAWN)


def test_a_case_with_everything_drawn_keeps_its_logits_in_a_mixed_batch():
    logits, _ = batch(EXCLUSIVE)
    assert torch.equal(marginal_logits(logits, ~DRAWN)[0], logits[0])
