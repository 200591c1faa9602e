"""Lesions by hand, by a slow search, and by the challenge's steps over whole images with MONAI's distance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from scipy import ndimage

from fedseg.errors import ConfigurationError
from fedseg.tasks.lesion_rule import LesionRule
from fedseg.tasks.registry import BRATS, resolve_task
from fedseg.tasks.segmentation.lesions import LesionMatch, match_lesions
from masks import blobs, cube

ONE, RULE, PLAIN = (1.0, 1.0, 1.0), LesionRule(), LesionRule(dilation=0, smallest=0)
SHAPE = (40, 20, 20)
NOTHING = np.zeros(SHAPE, bool)


def counts(match: LesionMatch) -> dict[str, int]:
    return {"lesions": len(match.lesions), "found": match.found, "invented": match.invented}


def test_lesions_without_growing_by_hand() -> None:
    """Three lesions, one of which is two voxels that touch by a corner; two are met, and two pieces are invented."""
    reference, predicted = np.zeros((2, 12, 12, 4), bool)
    reference[1, 1, 1] = reference[2, 2, 2] = True
    reference[6:8, 1, 1] = reference[1:3, 8:10, 1] = True
    predicted[2, 2, 2] = predicted[7, 1, 1] = predicted[10, 10, 3] = predicted[0, 0, 3] = True
    assert counts(match_lesions(predicted, reference, ONE, PLAIN)) == {"lesions": 3, "found": 2, "invented": 2}
    assert counts(match_lesions(predicted & False, reference, ONE, PLAIN)) == {"lesions": 3, "found": 0, "invented": 0}
    assert counts(match_lesions(predicted, reference & False, ONE, PLAIN)) == {"lesions": 0, "found": 0, "invented": 4}


def test_lesions_are_what_a_slow_search_finds():
    generator = np.random.default_rng(5)
    reference, predicted = (generator.random((2, 9, 8, 7)) < 0.08).astype(bool)

    def pieces(mask):
        left, found = {tuple(place) for place in np.argwhere(mask)}, []
        while left:
            piece, edge = set(), [left.pop()]
            while edge:
                place = edge.pop()
                piece.add(place)
                near = [p for p in left if max(abs(a - b) for a, b in zip(p, place, strict=True)) <= 1]
                edge += near
                left -= set(near)
            found.append(piece)
        return found

    ours, theirs = pieces(predicted), pieces(reference)
    touched = {tuple(place) for place in np.argwhere(predicted & reference)}
    expected = {"lesions": len(theirs), "found": sum(bool(p & touched) for p in theirs)}
    match = match_lesions(predicted, reference, ONE, PLAIN)
    assert counts(match) == {**expected, "invented": sum(not p & touched for p in ours)}


def test_found_missed_and_invented_lesions_by_hand() -> None:
    """A 4-cube that is predicted one voxel aside (48 of 64 voxels shared), one that is missed, one voxel invented."""
    reference = cube(SHAPE, (2, 2, 2), 4) | cube(SHAPE, (30, 2, 2), 4)
    predicted = cube(SHAPE, (3, 2, 2), 4) | cube(SHAPE, (20, 15, 15), 1)
    match = match_lesions(predicted, reference, ONE, RULE)
    penalty = math.ceil(math.sqrt(40**2 + 20**2 + 20**2))
    assert counts(match) == {"lesions": 2, "found": 1, "invented": 1}
    assert match.dice == pytest.approx((0.75 + 0 + 0) / 3)
    assert match.hd95 == pytest.approx((1.0 + penalty + penalty) / 3)
    assert (match.f1, match.sensitivity) == (pytest.approx(2 / 4), 0.5)


@pytest.mark.parametrize(("gap", "lesions"), [(6, 1), (7, 2)])
def test_pieces_that_touch_after_growing_are_one_lesion(gap: int, lesions: int) -> None:
    """Each grows by three voxels: over a gap of six they touch, over one of seven a voxel lies between them."""
    reference = cube(SHAPE, (2, 2, 2), 4) | cube(SHAPE, (6 + gap, 2, 2), 4)
    match = match_lesions(cube(SHAPE, (2, 2, 2), 4), reference, ONE, RULE)
    assert len(match.lesions) == lesions
    assert match.dice == pytest.approx(2 * 64 / (64 + 128) if lesions == 1 else 0.5)


@pytest.mark.parametrize(("gap", "found"), [(2, 1), (3, 0)])
def test_a_piece_is_found_where_it_touches_the_grown_lesion(gap: int, found: int) -> None:
    predicted = cube(SHAPE, (6 + gap, 2, 2), 4)
    match = match_lesions(predicted, cube(SHAPE, (2, 2, 2), 4), ONE, RULE)
    assert counts(match) == {"lesions": 1, "found": found, "invented": 1 - found}
    assert match.dice == 0.0, "what is found beside the lesion shares no voxel with it"


@pytest.mark.parametrize(("spacing", "scored"), [(ONE, 0), ((1.0, 1.0, 2.0), 1)])
def test_small_lesions_are_not_scored_and_what_meets_them_is_not_invented(
    spacing: tuple[float, float, float], scored: int
) -> None:
    """27 voxels are 27 mm3, which is too small, or 54 mm3."""
    small = cube(SHAPE, (2, 2, 2), 3)
    match = match_lesions(small, small, spacing, RULE)
    assert counts(match) == {"lesions": scored, "found": scored, "invented": 0}
    assert (match.dice, match.hd95, match.f1) == (1.0, 0.0, 1.0)
    missed = match_lesions(NOTHING, small, spacing, RULE)
    assert missed.dice == (0.0 if scored else 1.0)


def test_the_smallest_volume_itself_is_too_small() -> None:
    eight = cube(SHAPE, (2, 2, 2), 2)
    assert len(match_lesions(eight, eight, ONE, LesionRule(smallest=8)).lesions) == 0
    assert len(match_lesions(eight, eight, ONE, LesionRule(smallest=7.9)).lesions) == 1


def test_a_piece_may_belong_to_several_lesions() -> None:
    """One long piece over two 4-cubes of 64 voxels that lie 16 apart: with each it has a Dice of 2 64 / (64 + 384)."""
    reference = cube(SHAPE, (2, 2, 2), 4) | cube(SHAPE, (22, 2, 2), 4)
    predicted = NOTHING.copy()
    predicted[2:26, 2:6, 2:6] = True
    match = match_lesions(predicted, reference, ONE, RULE)
    assert counts(match) == {"lesions": 2, "found": 2, "invented": 0}
    assert match.dice == pytest.approx(2 * 64 / (64 + 384))


def test_empty_masks() -> None:
    something = cube(SHAPE, (2, 2, 2), 4)
    both, missed, invented = (
        match_lesions(p, r, ONE, RULE) for p, r in ((NOTHING, NOTHING), (NOTHING, something), (something, NOTHING))
    )
    assert (both.dice, both.hd95, both.f1, both.sensitivity) == (1.0, 0.0, 1.0, None)
    assert (missed.dice, missed.hd95, missed.f1, missed.sensitivity) == (0.0, 49.0, 0.0, 0.0)
    assert (invented.dice, invented.hd95, invented.f1, invented.sensitivity) == (0.0, 49.0, 0.0, None)


def test_the_penalty_is_that_of_the_challenge_or_what_the_task_says() -> None:
    image, voxel = np.zeros((240, 240, 155), bool), np.zeros((240, 240, 155), bool)
    voxel[:5, :5, :5] = True
    assert match_lesions(image, voxel, ONE, BRATS.lesions).hd95 == 374.0
    assert match_lesions(image, voxel, ONE, LesionRule(penalty=99.5)).hd95 == 99.5


def test_a_lesion_at_the_edge_of_the_image() -> None:
    corner = cube(SHAPE, (36, 16, 16), 4)
    match = match_lesions(corner, corner, ONE, RULE)
    assert counts(match) == {"lesions": 1, "found": 1, "invented": 0}
    assert match.dice == 1.0


def slow_lesion_scores(
    predicted: np.ndarray, reference: np.ndarray, spacing: tuple[float, float, float], rule: LesionRule
) -> tuple[float, float]:
    """The challenge's steps, each over the whole image, with MONAI's distance."""
    touching, growing = np.ones((3, 3, 3)), ndimage.generate_binary_structure(3, 2)
    pieces, _ = ndimage.label(predicted, touching)
    zones, total = ndimage.label(ndimage.binary_dilation(reference, growing, rule.dilation), touching)
    dices, far, met = [], [], set()
    penalty = math.ceil(math.sqrt(sum((n * s) ** 2 for n, s in zip(reference.shape, spacing, strict=True))))
    for number in range(1, total + 1):
        lesion = reference & (zones == number)
        grown = ndimage.binary_dilation(lesion, growing, rule.dilation)
        mine = set(pieces[grown]) - {0}
        met |= mine
        if lesion.sum() * math.prod(spacing) <= rule.smallest:
            continue
        guess = np.isin(pieces, list(mine))
        dices.append(2 * (guess & lesion).sum() / (guess.sum() + lesion.sum()))
        tensors = [torch.from_numpy(m)[None, None] for m in (guess, lesion)]
        found = mine and compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing)
        far.append(float(found) if mine else penalty)
    invented = len(set(pieces.ravel()) - {0} - met)
    dices, far = dices + [0.0] * invented, far + [penalty] * invented
    return float(np.mean(dices)) if dices else 1.0, float(np.mean(far)) if far else 0.0


@pytest.mark.parametrize("seed", range(8))
def test_scores_are_those_of_the_steps_over_whole_images(seed: int) -> None:
    spacing, rule = (1.0, 1.5, 2.0), LesionRule(dilation=1, smallest=20.0)
    shape = (30, 26, 20)
    reference, predicted = blobs(seed, shape, share=0.06), blobs(seed, shape, 0.002, share=0.04)
    if seed % 2:
        predicted |= blobs(seed + 50, shape, share=0.03)
    match = match_lesions(predicted, reference, spacing, rule)
    assert len(match.lesions) > 1
    dice, distance = slow_lesion_scores(predicted, reference, spacing, rule)
    assert match.dice == pytest.approx(dice)
    assert match.hd95 == pytest.approx(distance, rel=1e-6)


def test_a_task_sets_the_rule() -> None:
    assert BRATS.lesions == LesionRule(3, 50.0, None)
    assert "lesions" not in BRATS.to_dict(), "digests of plans stay as they were"
    task = resolve_task({"name": "brats", "lesions": {"dilation": 1, "smallest": 2}})
    assert task.lesions == LesionRule(1, 2, None)
    assert resolve_task(task.to_dict()) == task


@pytest.mark.parametrize(
    ("lesions", "said"),
    [({"dilation": 1.5}, "dilation"), ({"smallest": -1}, "smallest"), ({"size": 3}, "size"), (3, "lesions")],
)
def test_a_wrong_rule_is_refused(lesions: object, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        resolve_task({"name": "brats", "lesions": lesions})
