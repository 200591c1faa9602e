"""Dice and 95th percentile Hausdorff distance of one case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from fedseg import allowed
from fedseg.errors import ConfigurationError, DataError
from fedseg.tasks.segmentation.labels import to_regions
from fedseg.tasks.task import Task

Emptiness = Literal["neither", "both", "reference", "prediction"]
EMPTY_CONVENTIONS = ("brats", "exclude")
HD95_FORMS = ("larger", "pooled")
PERCENTILE = 95.0
MANY_POINTS = 100_000  # surface voxels; a whole tumour has some 20 000


@dataclass(frozen=True)
class CaseScore:
    """Scores of one case.

    Attributes:
        dice: Dice coefficient in [0, 1] per region; None where the convention leaves the case out.
        hd95: 95th percentile Hausdorff distance in mm per region; None likewise; {} where it was not asked for.
        empty: per region, which of the two masks has no voxel.
        volumes: per region, in ml: of the ``reference``, of the prediction (``predicted``), and what both have in
            ``common``.
        lesions: per region, pieces that touch by faces, edges or corners: of the reference (``lesions``), of these
            those that share a voxel with the prediction (``found``), and those of the prediction that share none
            with the reference (``invented``); {} where HD95 was not asked for.
    """

    dice: dict[str, float | None]
    hd95: dict[str, float | None] = field(default_factory=dict)
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
) -> CaseScore:
    """Compare a segmentation with its reference, region by region, on the image's own grid.

    What an empty region counts is a convention, and it moves means a lot:

    - ``brats`` (Baid et al., 2021, arXiv 2107.02314): both empty: Dice 1, HD95 0; only one empty: Dice 0, HD95 the
      diagonal of the image in mm (373.1 for 240 x 240 x 155 voxels of 1 mm).
    - ``exclude``: a case whose reference is empty has no score (None). A region that the prediction misses entirely
      counts as in ``brats``, so that predicting nothing never pays.

    Args:
        task: names the regions.
        predicted: internal class values, shape [X, Y, Z].
        reference: likewise, the same shape.
        spacing: size of a voxel in mm along X, Y, Z.
        empty: one of ``EMPTY_CONVENTIONS``.
        distances: also compute HD95, and count lesions.
        form: one of ``HD95_FORMS``, see ``hd95``.

    Raises:
        DataError: the two arrays differ in shape.
        ConfigurationError: an unknown convention, or a spacing that is not three positive numbers.
    """
    _check(predicted, reference, spacing, empty)
    diagonal = math.dist((0.0, 0.0, 0.0), [n * s for n, s in zip(predicted.shape, spacing, strict=True)])
    millilitres = math.prod(spacing) / 1000
    score = CaseScore({})
    for name, p, r in zip(task.region_names, to_regions(task, predicted), to_regions(task, reference), strict=True):
        state = emptiness(p, r)
        left_out = empty == "exclude" and state in ("reference", "both")
        score.empty[name] = state
        score.dice[name] = None if left_out else dice(p, r)
        sizes = {"reference": r, "predicted": p, "common": p & r}
        score.volumes[name] = {of: millilitres * np.count_nonzero(mask) for of, mask in sizes.items()}
        if distances:
            score.lesions[name] = count_lesions(p, r)
        if distances and left_out:
            score.hd95[name] = None
        elif distances:
            score.hd95[name] = {"neither": None, "both": 0.0}.get(state, diagonal)
            if state == "neither":
                score.hd95[name] = hd95(p, r, spacing, form)
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


def count_lesions(predicted: np.ndarray, reference: np.ndarray) -> dict[str, int]:
    """Pieces of two boolean masks; see ``CaseScore.lesions``."""
    pieces, total = ndimage.label(reference, np.ones((3,) * reference.ndim))
    others, claimed = ndimage.label(predicted, np.ones((3,) * predicted.ndim))
    found, confirmed = np.unique(pieces[predicted & reference]), np.unique(others[predicted & reference])
    return {"lesions": int(total), "found": len(found), "invented": int(claimed) - len(confirmed)}


def hd95(predicted: np.ndarray, reference: np.ndarray, spacing: Sequence[float], form: str = "larger") -> float:
    """95th percentile Hausdorff distance in mm of two boolean masks that both have voxels.

    The distances from each surface voxel of one mask to the nearest surface voxel of the other, in both directions.
    ``larger``: of each direction the 95th percentile (interpolated linearly), and the larger of the two; MONAI's
    ``compute_hausdorff_distance(percentile=95)``. ``pooled``: one percentile over the distances of both directions;
    that of MedPy and of GaNDLF, with which FeTS was scored. Others weight surface elements by their area.

    Raises:
        ConfigurationError: an unknown form.
    """
    allowed.one_of("hd95", form, HD95_FORMS)
    a, b = surface_points(predicted), surface_points(reference)
    there, back = _nearest(a, b, spacing), _nearest(b, a, spacing)
    if form == "pooled":
        return float(np.percentile(np.concatenate([there, back]), PERCENTILE))
    return float(max(np.percentile(there, PERCENTILE), np.percentile(back, PERCENTILE)))


def surface_points(mask: np.ndarray) -> np.ndarray:
    """Indices, shape [N, 3], of the voxels of a boolean mask that face the outside (6-neighbourhood).

    The edge of the image counts as outside, as in MONAI.
    """
    # find_objects gives the bounding box of the voxels: erosion then touches few of the voxels of a whole image.
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    inside = mask[box]
    surface = inside & ~ndimage.binary_erosion(inside)
    return np.argwhere(surface) + np.array([axis.start for axis in box])


def _nearest(origins: np.ndarray, targets: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Exact distance in mm, shape [N], from each of the indices ``origins`` [N, 3] to the nearest of ``targets``."""
    if max(len(origins), len(targets)) <= MANY_POINTS:
        return KDTree(targets * np.asarray(spacing, float)).query(origins * np.asarray(spacing, float))[0]
    # Scattered predictions of an untrained network: a tree takes minutes, a distance map the same 2 s for any mask.
    low = np.minimum(origins.min(0), targets.min(0))
    outside = np.ones(np.maximum(origins.max(0), targets.max(0)) - low + 1, bool)
    outside[tuple((targets - low).T)] = False
    distances = ndimage.distance_transform_edt(outside, sampling=tuple(spacing))
    return distances[tuple((origins - low).T)]


def _check(predicted: np.ndarray, reference: np.ndarray, spacing: Sequence[float], empty: str) -> None:
    if predicted.shape != reference.shape:
        raise DataError(f"the prediction has shape {predicted.shape}, but its reference has {reference.shape}.")
    allowed.one_of("empty", empty, EMPTY_CONVENTIONS)
    if len(spacing) != predicted.ndim or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise ConfigurationError("spacing", tuple(spacing), f"{predicted.ndim} positive numbers of mm")
