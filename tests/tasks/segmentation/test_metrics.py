"""All scores of a case by hand, the two conventions for empty regions, and summaries."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from fedseg.errors import ConfigurationError, DataError
from fedseg.tasks.registry import BRATS, PANCREAS, resolve_task
from fedseg.tasks.segmentation.metrics import CaseScore, score_case
from fedseg.tasks.segmentation.objective import Segmentation
from masks import blobs, cube

summarise, pool = Segmentation.summarise, Segmentation.pool

SPACING = (1.0, 2.0, 3.0)


def test_brats_regions_are_nested() -> None:
    reference = np.zeros((8, 8, 8), np.uint8)
    reference[1:7, 1:7, 1:7], reference[2:6, 2:6, 2:6], reference[3:5, 3:5, 3:5] = 2, 1, 3
    predicted = np.where(reference == 3, 1, reference)  # the enhancing part called necrosis
    score = score_case(BRATS, predicted, reference, (1, 1, 1))
    assert score.dice == {"ET": 0.0, "TC": 1.0, "WT": 1.0}
    assert score.hd95 == {"ET": pytest.approx(math.sqrt(3 * 64)), "TC": 0.0, "WT": 0.0}
    assert score.nsd == {"ET": 0.0, "TC": 1.0, "WT": 1.0}
    assert score.volume_error == {"ET": -1.0, "TC": 0.0, "WT": 0.0}
    assert score.empty == {"ET": "prediction", "TC": "neither", "WT": "neither"}


def test_penalty_of_the_challenge() -> None:
    reference = np.zeros((240, 240, 155), np.uint8)
    predicted = reference.copy()
    predicted[0, 0, 0] = 2
    assert score_case(BRATS, predicted, reference, (1, 1, 1)).hd95["WT"] == pytest.approx(373.13, abs=0.01)


@pytest.mark.parametrize(
    ("convention", "predicted", "reference", "dice", "distance", "state"),
    [
        ("brats", 0, 0, 1.0, 0.0, "both"),
        ("brats", 2, 0, 0.0, 14.0, "reference"),
        ("brats", 0, 2, 0.0, 14.0, "prediction"),
        ("exclude", 0, 0, None, None, "both"),
        ("exclude", 2, 0, None, None, "reference"),
        ("exclude", 0, 2, 0.0, 14.0, "prediction"),
        ("exclude", 2, 2, 1.0, 0.0, "neither"),
    ],
)
def test_empty_regions(
    convention: str, predicted: int, reference: int, dice: float | None, distance: float | None, state: str
) -> None:
    # 4 x 6 x 4 voxels of 1 x 2 x 1.5 mm: the diagonal of 4 x 12 x 6 mm is 14 mm.
    p, r = np.zeros((4, 6, 4), np.uint8), np.zeros((4, 6, 4), np.uint8)
    p[1, 1, 1], r[1, 1, 1] = predicted, reference
    score = score_case(PANCREAS, p, r, (1.0, 2.0, 1.5), empty=convention)
    assert (score.dice["tumour"], score.hd95["tumour"], score.empty["tumour"]) == (dice, distance, state)


def test_without_distances() -> None:
    score = score_case(PANCREAS, np.ones((3, 3, 3)), np.ones((3, 3, 3)), (1, 1, 1), distances=False)
    assert score.hd95 == score.nsd == score.lesion_dice == score.ece == score.lesions == {}
    assert summarise([score])["hd95"] == {}
    assert set(summarise([score])["scored"]) == {"volume_error", "volume_difference"}


def test_wrong_input_is_refused() -> None:
    array = np.zeros((3, 3, 3), np.uint8)
    with pytest.raises(DataError, match=r"\(3, 3, 3\).*\(3, 3, 2\)"):
        score_case(PANCREAS, array, array[..., :2], (1, 1, 1))
    with pytest.raises(ConfigurationError, match="exclude"):
        score_case(PANCREAS, array, array, (1, 1, 1), empty="skip")
    with pytest.raises(ConfigurationError, match="spacing"):
        score_case(PANCREAS, array, array, (1, 1, 0))
    with pytest.raises(DataError, match="probabilities"):
        score_case(PANCREAS, array, array, (1, 1, 1), probabilities=np.zeros((2, 3, 3, 2)))


def test_summary_by_hand() -> None:
    scores = [
        CaseScore({"a": 0.5, "b": None}, {"a": 2.0, "b": None}, empty={"a": "neither", "b": "both"}),
        CaseScore({"a": 0.7, "b": None}, {"a": 4.0, "b": None}, empty={"a": "prediction", "b": "reference"}),
    ]
    summary = summarise(scores)
    assert summary["cases"] == 2
    assert summary["dice"] == {"a": pytest.approx(0.6), "b": None, "mean": pytest.approx(0.6)}
    assert summary["hd95"] == {"a": 3.0, "b": None}
    assert summary["defined"] == {"a": 2, "b": 0}
    assert summary["empty"]["b"] == {"both": 1, "reference": 1, "prediction": 0}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def random_scores(seed: int, count: int, empty: str) -> list[CaseScore]:
    generator = np.random.default_rng(seed)
    scores = []
    for _ in range(count):
        shape = (10, 9, 8)
        predicted, reference = (np.where(blobs(int(generator.integers(1e6)), shape), 1, 0) for _ in range(2))
        reference[:5] *= 2
        predicted[:5] *= int(generator.integers(0, 3))
        if generator.random() < 0.4:
            reference[reference == 2] = 0
        scores.append(score_case(PANCREAS, predicted, reference, SPACING, empty=empty))
    return scores


def assert_close(a: object, b: object) -> None:
    if isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_close(a[key], b[key])
    else:
        assert a == (pytest.approx(b) if isinstance(b, float) else b)


@pytest.mark.parametrize("empty", ["brats", "exclude"])
def test_pool_equals_the_summary_of_all_cases(empty: str) -> None:
    sites = [random_scores(1, 3, empty), random_scores(2, 7, empty), [], random_scores(3, 1, empty)]
    everything = [score for site in sites for score in site]
    assert 0 < summarise(everything)["scored"]["volume_error"]["tumour"] < 11, "some cases have to be left out"
    assert (summarise(everything)["defined"]["tumour"] < 11) is (empty == "exclude")
    assert_close(pool(summarise(site) for site in sites), summarise(everything))


def test_no_cases_at_all() -> None:
    nothing = {"cases": 0, "dice": {"mean": None}, "defined": {}, "scored": {}, "empty": {}}
    nothing |= {score.name: {} for score in Segmentation.scores[1:]}
    assert summarise([]) == pool([]) == pool([summarise([])]) == nothing


def test_volumes_in_millilitres_by_hand():
    """27 voxels of 6 mm3, of which 12 are shared by a cube that is moved by one voxel along two axes."""
    reference, predicted = (cube((8, 8, 8), corner, 3) for corner in ((1, 1, 1), (2, 2, 1)))
    task = PANCREAS
    score = score_case(task, predicted.astype(np.uint8), reference.astype(np.uint8), SPACING)
    expected = {"reference": 27 * 6 / 1000, "predicted": 27 * 6 / 1000, "common": 12 * 6 / 1000}
    assert score.volumes["pancreas"] == pytest.approx(expected)
    assert score.volumes["tumour"] == {"reference": 0, "predicted": 0, "common": 0}
    sensitivity = score.volumes["pancreas"]["common"] / score.volumes["pancreas"]["reference"]
    assert score.dice["pancreas"] == pytest.approx(sensitivity), "equal volumes: Dice is the sensitivity"


@pytest.mark.parametrize(
    ("convention", "predicted", "reference", "expected"),
    [
        ("brats", 0, 0, {"nsd": 1, "volume_error": None, "volume_difference": 0, "lesion_dice": 1, "lesion_hd95": 0,
                         "lesion_f1": 1, "lesions_found": None, "lesions_invented": 0, "ece": None}),
        ("brats", 2, 0, {"nsd": 0, "volume_error": None, "volume_difference": 0.192, "lesion_dice": 0,
                         "lesion_hd95": 27, "lesion_f1": 0, "lesions_found": None, "lesions_invented": 1, "ece": 1}),
        ("brats", 0, 2, {"nsd": 0, "volume_error": -1, "volume_difference": -0.192, "lesion_dice": 0,
                         "lesion_hd95": 27, "lesion_f1": 0, "lesions_found": 0, "lesions_invented": 0, "ece": 1}),
        ("brats", 2, 2, {"nsd": 1, "volume_error": 0, "volume_difference": 0, "lesion_dice": 1, "lesion_hd95": 0,
                         "lesion_f1": 1, "lesions_found": 1, "lesions_invented": 0, "ece": 1}),
        ("exclude", 0, 0, {}),
        ("exclude", 2, 0, {}),
        ("exclude", 0, 2, {"nsd": 0, "volume_error": -1, "lesion_dice": 0, "lesion_f1": 0, "ece": 1}),
    ],
)  # fmt: skip
def test_empty_regions_of_further_scores(
    convention: str, predicted: int, reference: int, expected: dict[str, float | None]
) -> None:
    """A cube of 64 voxels of 3 mm3 in an image with a diagonal of 26.5 mm, and probabilities that are all wrong."""
    p, r = (np.where(cube((8, 8, 8), (2, 2, 2), 4), value, 0) for value in (predicted, reference))
    wrong = np.stack([1 - (r == value) for value in (1, 2)]).astype(np.float32)
    score = score_case(PANCREAS, p, r, (1.0, 1.0, 3.0), convention, probabilities=wrong)
    told = {name: getattr(score, name)["tumour"] for name in expected}
    assert told == {name: value if value is None else pytest.approx(value, abs=1e-9)
                    for name, value in expected.items()}  # fmt: skip
    if not expected:
        left_out = [getattr(score, each.name)["tumour"] for each in Segmentation.scores]
        assert left_out == [None] * len(Segmentation.scores)


def test_volume_errors_by_hand() -> None:
    """A cube of 27 voxels for one of 64, each of 6 mm3; and the other way round."""
    small, large = (cube((8, 8, 8), (1, 1, 1), size).astype(np.uint8) for size in (3, 4))
    missed, invented = score_case(PANCREAS, small, large, SPACING), score_case(PANCREAS, large, small, SPACING)
    assert missed.volume_error["pancreas"] == pytest.approx(27 / 64 - 1)
    assert missed.volume_difference["pancreas"] == pytest.approx(-37 * 6 / 1000)
    assert invented.volume_error["pancreas"] == pytest.approx(64 / 27 - 1)
    assert invented.volume_difference["pancreas"] == pytest.approx(37 * 6 / 1000)


def test_every_score_of_the_kind_is_a_field_of_the_case() -> None:
    fields = set(CaseScore.__dataclass_fields__)
    assert {score.name for score in Segmentation.scores} == fields - {"empty", "volumes", "lesions"}
    assert [score.name for score in Segmentation.scores if score.main] == ["dice", "hd95"]


def test_the_task_says_what_distances_and_lesions_count() -> None:
    p, r = (cube((16, 16, 16), corner, 6).astype(np.uint8) for corner in ((2, 2, 2), (4, 2, 2)))
    near = resolve_task({"name": "pancreas", "tolerance": 2, "lesions": {"dilation": 0, "smallest": 216}})
    far = resolve_task({"name": "pancreas", "tolerance": 1.9})
    assert score_case(near, p, r, (1, 1, 1)).nsd["pancreas"] == 1.0
    assert score_case(far, p, r, (1, 1, 1)).nsd["pancreas"] < 1.0
    assert score_case(near, p, r, (1, 1, 1)).lesions["pancreas"] == {"lesions": 0, "found": 0, "invented": 0}
    assert score_case(far, p, r, (1, 1, 1)).lesions["pancreas"] == {"lesions": 1, "found": 1, "invented": 0}
