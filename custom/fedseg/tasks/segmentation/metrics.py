"""All scores of one case: overlap, distances, volumes, lesions and calibration, region by region."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fedseg import allowed
from fedseg.errors import ConfigurationError, DataError
from fedseg.tasks.segmentation.calibration import border_calibration_error
from fedseg.tasks.segmentation.distances import hd95, surface_dice, surface_distances
from fedseg.tasks.segmentation.labels import to_regions
from fedseg.tasks.segmentation.lesions import match_lesions
from fedseg.tasks.task import Task

Emptiness = Literal["neither", "both", "reference", "prediction"]
EMPTY_CONVENTIONS = ("brats", "exclude")
Numbers = dict[str, float | None]


@dataclass(frozen=True)
class CaseScore:
    """Scores of one case, per region; None where the convention leaves the case out, or where nothing is defined; {}
    where a score was not asked for.

    Attributes:
        dice: Dice coefficient from 0 to 1.
        hd95: 95th percentile Hausdorff distance in mm.
        nsd: normalised surface distance at the task's tolerance, from 0 to 1.
        volume_error: volume of the prediction minus that of the reference, over that of the reference; -1 or more.
        volume_difference: the same difference in ml.
        lesion_dice, lesion_hd95: lesion-wise Dice and HD95 (mm), see ``fedseg.tasks.segmentation.lesions``.
        lesion_f1: F1 of detection of lesions, from 0 to 1.
        lesions_found: share of the reference's lesions that were found.
        lesions_invented: how many predicted pieces belong to no lesion.
        ece: expected calibration error around the borders, from 0 to 1; also {} where no probabilities were given.
        empty: which of the two masks has no voxel.
        volumes: in ml: of the ``reference``, of the prediction (``predicted``), and what both have in ``common``.
        lesions: lesions of the reference that count (``lesions``), the ``found`` ones of these, ``invented`` pieces.
    """

    dice: Numbers = field(default_factory=dict)
    hd95: Numbers = field(default_factory=dict)
    nsd: Numbers = field(default_factory=dict)
    volume_error: Numbers = field(default_factory=dict)
    volume_difference: Numbers = field(default_factory=dict)
    lesion_dice: Numbers = field(default_factory=dict)
    lesion_hd95: Numbers = field(default_factory=dict)
    lesion_f1: Numbers = field(default_factory=dict)
    lesions_found: Numbers = field(default_factory=dict)
    lesions_invented: Numbers = field(default_factory=dict)
    ece: Numbers = field(default_factory=dict)
    empty: dict[str, Emptiness] = field(default_factory=dict)
    volumes: dict[str, dict[str, float]] = field(default_factory=dict)
    lesions: dict[str, dict[str, int]] = field(default_factory=dict)


def score_case(
    task: Task,
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, float, float],
    empty: str = "brats",
    distances: bool = True,
    form: str = "larger",
    probabilities: np.ndarray | None = None,
) -> CaseScore:
    """Compare a segmentation with its reference, region by region, on the image's own grid.

    What an empty region counts is a convention, and it moves means a lot:

    - ``brats`` (Baid et al., 2021, arXiv 2107.02314): both empty: Dice and NSD 1, HD95 0; only one empty: Dice and NSD
      0, HD95 the diagonal of the image in mm (373.1 for 240 x 240 x 155 voxels of 1 mm).
    - ``exclude``: a case whose reference is empty has no score (None). A region that the prediction misses entirely
      counts as in ``brats``, so that predicting nothing never pays.

    In both a volume error and a share of found lesions need a reference, and a calibration error needs a border.

    Args:
        task: names the regions; its ``tolerance`` and ``lesions`` say how distances and lesions count.
        predicted: internal class values, shape [X, Y, Z].
        reference: likewise, the same shape.
        spacing: size of a voxel in mm along X, Y, Z.
        empty: one of ``EMPTY_CONVENTIONS``.
        distances: also compute what takes long: everything but Dice and volumes.
        form: of HD95, one of ``distances.HD95_FORMS``.
        probabilities: of the regions, shape [R, X, Y, Z], for the calibration error; None: without it.

    Raises:
        DataError: the arrays differ in shape.
        ConfigurationError: an unknown convention, or a spacing that is not three positive numbers.
    """
    _check(predicted, reference, spacing, empty, probabilities)
    score = CaseScore()
    masks = zip(task.region_names, to_regions(task, predicted), to_regions(task, reference), strict=True)
    for index, (name, p, r) in enumerate(masks):
        state = emptiness(p, r)
        score.empty[name] = state
        score.volumes[name] = volumes(p, r, spacing)
        found = {"dice": dice(p, r), **_volume_errors(score.volumes[name])}
        if distances:
            found |= _surface_scores(p, r, spacing, state, task.tolerance, form)
            found |= _lesion_scores(score, name, p, r, spacing, task)
        if distances and probabilities is not None:
            found["ece"] = border_calibration_error(probabilities[index], p, r, spacing)
        left_out = empty == "exclude" and state in ("reference", "both")
        for metric, value in found.items():
            getattr(score, metric)[name] = None if left_out else value
    return score


def emptiness(predicted: np.ndarray, reference: np.ndarray) -> Emptiness:
    """Which of two boolean masks has no voxel."""
    if predicted.any():
        return "neither" if reference.any() else "reference"
    return "prediction" if reference.any() else "both"


def dice(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Dice coefficient 2|P & R| / (|P| + |R|) of two boolean masks; 1 where both are empty."""
    total = np.count_nonzero(predicted) + np.count_nonzero(reference)
    return 2.0 * np.count_nonzero(predicted & reference) / total if total else 1.0


def volumes(predicted: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """Volumes in ml, see ``CaseScore.volumes``."""
    millilitres = math.prod(spacing) / 1000
    sizes = {"reference": reference, "predicted": predicted, "common": predicted & reference}
    return {of: millilitres * np.count_nonzero(mask) for of, mask in sizes.items()}


def _volume_errors(sizes: dict[str, float]) -> Numbers:
    difference = sizes["predicted"] - sizes["reference"]
    relative = difference / sizes["reference"] if sizes["reference"] else None
    return {"volume_error": relative, "volume_difference": difference}


def _surface_scores(
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, float, float],
    state: Emptiness,
    tolerance: float,
    form: str,
) -> Numbers:
    if state == "both":
        return {"hd95": 0.0, "nsd": 1.0}
    if state != "neither":
        diagonal = math.dist((0.0, 0.0, 0.0), [n * s for n, s in zip(predicted.shape, spacing, strict=True)])
        return {"hd95": diagonal, "nsd": 0.0}
    found = surface_distances(predicted, reference, spacing)
    return {"hd95": hd95(found, form), "nsd": surface_dice(found, tolerance)}


def _lesion_scores(
    score: CaseScore,
    region: str,
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, float, float],
    task: Task,
) -> Numbers:
    """Lesion-wise scores of a region, whose counts go into the case's score."""
    match = match_lesions(predicted, reference, spacing, task.lesions)
    score.lesions[region] = {"lesions": len(match.lesions), "found": match.found, "invented": match.invented}
    return {
        "lesion_dice": match.dice,
        "lesion_hd95": match.hd95,
        "lesion_f1": match.f1,
        "lesions_found": match.sensitivity,
        "lesions_invented": float(match.invented),
    }


def _check(
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    empty: str,
    probabilities: np.ndarray | None,
) -> None:
    if predicted.shape != reference.shape:
        raise DataError(f"the prediction has shape {predicted.shape}, but its reference has {reference.shape}.")
    if probabilities is not None and probabilities.shape[1:] != reference.shape:
        raise DataError(f"the probabilities have shape {probabilities.shape[1:]}, not that of the reference.")
    allowed.one_of("empty", empty, EMPTY_CONVENTIONS)
    if len(spacing) != predicted.ndim or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise ConfigurationError("spacing", tuple(spacing), f"{predicted.ndim} positive numbers of mm")
