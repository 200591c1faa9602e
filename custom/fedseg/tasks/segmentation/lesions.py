"""Lesion by lesion: which were found, which were invented, and how well those that there are were segmented."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fedseg.tasks.lesion_rule import LesionRule
from fedseg.tasks.segmentation.distances import hd95, surface_distances

Box = tuple[slice, ...]
_TOUCHING = np.ones((3, 3, 3), bool)  # by faces, edges or corners
_GROWING = ndimage.generate_binary_structure(3, 2)  # by faces or edges


@dataclass(frozen=True)
class Lesion:
    """One lesion of a reference, beside what was predicted of it.

    Attributes:
        volume: in mm3.
        dice: Dice coefficient with all predicted pieces that touch the grown lesion; 0 without one.
        distance: HD95 in mm to these; None without one, or where it was not asked for.
        found: whether there is such a piece.
    """

    volume: float
    dice: float
    distance: float | None
    found: bool


@dataclass(frozen=True)
class LesionMatch:
    """The lesions of one region of one case.

    Attributes:
        lesions: of the reference, those that the rule leaves out excepted.
        invented: predicted pieces, of any size, that touch no lesion of the reference, not even one left out.
        penalty: distance in mm that counts for a missed or invented lesion.
    """

    lesions: tuple[Lesion, ...]
    invented: int
    penalty: float

    @property
    def found(self) -> int:
        """How many of the lesions were found."""
        return sum(lesion.found for lesion in self.lesions)

    @property
    def dice(self) -> float:
        """Lesion-wise Dice: the mean over lesions and invented pieces, which count 0; 1 where there is neither."""
        count = len(self.lesions) + self.invented
        return math.fsum(lesion.dice for lesion in self.lesions) / count if count else 1.0

    @property
    def hd95(self) -> float:
        """Lesion-wise HD95 in mm: likewise, where missed and invented ones count the penalty; 0 without either."""
        far = [self.penalty if each.distance is None else each.distance for each in self.lesions]
        far += [self.penalty] * self.invented
        return math.fsum(far) / len(far) if far else 0.0

    @property
    def f1(self) -> float:
        """F1 of detection, 2 found / (2 found + missed + invented); 1 where there is neither lesion nor piece."""
        wrong = len(self.lesions) - self.found + self.invented
        return 2 * self.found / (2 * self.found + wrong) if self.lesions or self.invented else 1.0

    @property
    def sensitivity(self) -> float | None:
        """Share of the lesions that were found; None without a lesion."""
        return self.found / len(self.lesions) if self.lesions else None


def match_lesions(
    predicted: np.ndarray, reference: np.ndarray, spacing: Sequence[float], rule: LesionRule
) -> LesionMatch:
    """Compare two boolean masks [X, Y, Z] lesion by lesion, as the BraTS 2023 challenges do.

    1. Pieces of the reference (26-neighbourhood) that touch after growing by ``rule.dilation`` are one lesion.
    2. Predicted pieces (26-neighbourhood) that touch a grown lesion belong to it, as a whole and possibly to several.
    3. Each lesion above ``rule.smallest`` is compared with the pieces that belong to it.
    4. Predicted pieces that belong to no lesion are invented.

    HD95 is that of this package (the larger of both directions, surface voxels alike), where the challenge weights
    surface elements by their area; see ``fedseg.tasks.segmentation.distances``.

    Args:
        predicted, reference: the masks, either may be empty.
        spacing: size of a voxel in mm.
        rule: which lesions count.
    """
    pieces, count = ndimage.label(predicted, _TOUCHING)
    lesions = _grown(reference, rule.dilation)
    piece_boxes, claimed = ndimage.find_objects(pieces), np.zeros(count + 1, bool)
    found = []
    for number, box in enumerate(ndimage.find_objects(lesions), start=1):
        touched = np.unique(pieces[box][lesions[box] == number])
        touched = touched[touched > 0]
        claimed[touched] = True
        around = _around([box, *(piece_boxes[piece - 1] for piece in touched)])
        lesion = (lesions[around] == number) & reference[around]
        volume = int(np.count_nonzero(lesion)) * math.prod(spacing)
        if volume > rule.smallest:
            found.append(_compare(np.isin(pieces[around], touched), lesion, volume, spacing))
    penalty = rule.penalty
    if penalty is None:
        penalty = float(math.ceil(math.dist([0.0] * 3, [n * s for n, s in zip(reference.shape, spacing, strict=True)])))
    return LesionMatch(tuple(found), count - int(np.count_nonzero(claimed)), penalty)


def _compare(predicted: np.ndarray, lesion: np.ndarray, volume: float, spacing: Sequence[float]) -> Lesion:
    """One lesion and the predicted pieces that belong to it, cut out of the image."""
    if not predicted.any():
        return Lesion(volume, 0.0, None, False)
    shared, sizes = np.count_nonzero(predicted & lesion), np.count_nonzero(predicted) + np.count_nonzero(lesion)
    return Lesion(volume, 2 * shared / sizes, hd95(surface_distances(predicted, lesion, spacing)), True)


def _grown(reference: np.ndarray, dilation: int) -> np.ndarray:
    """Labels from 1 of the grown lesions of a mask, shape [X, Y, Z]."""
    if not dilation:
        return np.asarray(ndimage.label(reference, _TOUCHING)[0])
    grown = np.zeros_like(reference)
    boxes = ndimage.find_objects(reference.astype(np.uint8))
    if boxes:
        box = tuple(slice(max(0, axis.start - dilation), axis.stop + dilation) for axis in boxes[0])
        grown[box] = ndimage.binary_dilation(reference[box], _GROWING, dilation)
    return np.asarray(ndimage.label(grown, _TOUCHING)[0])


def _around(boxes: Sequence[Box]) -> Box:
    """The smallest box around boxes."""
    return tuple(slice(min(a.start for a in axis), max(a.stop for a in axis)) for axis in zip(*boxes, strict=True))
