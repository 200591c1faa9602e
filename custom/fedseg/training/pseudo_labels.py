"""Pseudo-labels: what networks find in cases with weak labels, held against what these say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage

from fedseg.data.supervision import Supervision
from fedseg.tasks.objective import objective_of
from fedseg.tasks.segmentation.labels import to_regions
from fedseg.tasks.task import Task
from fedseg.training.cache import CaseCache
from fedseg.training.prepare import PreparedCase, class_indices

EXTENT, VOXELS = "extent", "voxels"
BOX_FORMS = (EXTENT, VOXELS)


@dataclass(frozen=True)
class BoxRule:
    """When a pseudo-label fits a box.

    Attributes:
        least: overlap (Dice) with the boxes of a region, from 0 to 1, below which it does not.
        form: what is compared with the boxes: ``extent``, the boxes around what was found in each of them; or
            ``voxels``, what was found itself, as published for 2D. A structure that lies aslant fills little of its box
            in 3D: of the boxes around parts of a hippocampus 14 to 42 percent.
    """

    least: float = 0.5
    form: str = EXTENT

    def fits(self, found: np.ndarray, boxes: np.ndarray) -> bool:
        """Whether what was found [X, Y, Z] within boxes [X, Y, Z] fits them."""
        return overlap(_extents(found, boxes) if self.form == EXTENT else found, boxes) >= self.least


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """The Dice of two masks; 1 where both are empty."""
    size = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / size if size else 1.0


def _extents(found: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """In each connected part of ``boxes`` the box around what was found in it."""
    parts, _ = ndimage.label(boxes, structure=np.ones((3, 3, 3)))
    filled = np.zeros_like(boxes)
    for number, place in enumerate(ndimage.find_objects(parts), 1):
        inside = found[place] & (parts[place] == number)
        for extent in ndimage.find_objects(inside.astype(np.uint8)):
            filled[place][extent] = True
    return filled & boxes


def refined(
    task: Task, values: np.ndarray, possible: np.ndarray, said: Supervision, rule: BoxRule
) -> np.ndarray | None:
    """A pseudo-label that contradicts nothing of what is known of a case.

    A region is nowhere but where it may be: outside of its boxes, or where it is known to be absent, there is
    background in its place.

    Args:
        task: its regions.
        values: probabilities of the regions [R, X, Y, Z].
        possible: in which voxels each may be, [R, X, Y, Z] or [R, 1, 1, 1].
        said: what is known.
        rule: when a region fits its boxes.

    Returns:
        Class values [X, Y, Z], uint8; None where a region that is known to be there is not found, where one does not
        fit its boxes, or where nothing is found though something may be there.
    """
    classes = objective_of(task).decide(np.where(possible, values, 0))
    for region, where in zip(task.regions, possible, strict=True):
        # A class lies in several regions; all of them must be possible where it is.
        classes = np.where(np.isin(classes, task.region_values(region)) & ~where, 0, classes).astype(np.uint8)
    masks, there = to_regions(task, classes), said.there(task.region_names)
    if any(known and not mask.any() for known, mask in zip(there, masks, strict=True)):
        return None
    if not classes.any() and not all(known is False for known in there):
        return None
    boxed = {name for name, boxes in said.boxes if boxes}
    for name, mask, where in zip(task.region_names, masks, possible, strict=True):
        if name in boxed and not rule.fits(mask, where):
            return None
    return classes


def agreement(task: Task, one: np.ndarray, other: np.ndarray) -> float:
    """The mean Dice of two label maps [X, Y, Z] over the regions that either has; 1 where both are empty."""
    pairs = list(zip(to_regions(task, one), to_regions(task, other), strict=True))
    found = [overlap(a, b) for a, b in pairs if a.any() or b.any()]
    return float(np.mean(found)) if found else 1.0


@dataclass(frozen=True)
class PseudoLabel:
    """Pseudo-labels of one case, one for each network that learns from it, and where patches may be centred.

    Kept without the border in which there is background alone.
    """

    values: torch.Tensor
    start: tuple[int, ...]
    shape: tuple[int, ...]
    indices: tuple[torch.Tensor, ...]
    voxels: tuple[int, ...]

    @classmethod
    def of(cls, task: Task, labels: Sequence[np.ndarray]) -> PseudoLabel:
        """Of label maps [X, Y, Z] in the order of the networks."""
        whole = torch.from_numpy(np.stack(labels))
        count = len(task.classes) + 1
        found = whole.any(dim=0).nonzero()
        start = found.min(dim=0).values.tolist() if len(found) else [0, 0, 0]
        stop = (found.max(dim=0).values + 1).tolist() if len(found) else [0, 0, 0]
        place = (slice(None), *(slice(a, b) for a, b in zip(start, stop, strict=True)))
        voxels = tuple(torch.bincount(whole[0].flatten(), minlength=count).tolist())
        indices = class_indices(whole[:1], count)
        return cls(whole[place].clone(), tuple(start), tuple(whole.shape[1:]), indices, voxels)

    def whole(self) -> torch.Tensor:
        """The label maps [networks, X, Y, Z]."""
        filled = torch.zeros((len(self.values), *self.shape), dtype=torch.uint8)
        ends = (slice(a, a + n) for a, n in zip(self.start, self.values.shape[1:], strict=True))
        filled[(slice(None), *ends)] = self.values
        return filled


class TaughtCases(CaseCache):
    """The cases of a round: those that are labelled voxel by voxel, then those with pseudo-labels."""

    def __init__(self, labelled: CaseCache, weak: CaseCache, labels: Mapping[int, PseudoLabel], networks: int) -> None:
        """Join them.

        Args:
            labelled, weak: of the site.
            labels: by the index of a case of ``weak``; the others teach nothing.
            networks: how many learn, each from label maps of its own.
        """
        chosen = sorted(labels)
        super().__init__(labelled.task, (*labelled.cases, *(weak.cases[i] for i in chosen)), True)
        self._labelled, self._weak, self._labels = labelled, weak, [(index, labels[index]) for index in chosen]
        self._networks = networks

    def __getitem__(self, index: int) -> PreparedCase:
        count = len(self._labelled)
        if index < count:
            case = self._labelled[index]
            if not self._labels or case.classes is None:
                return case
            return replace(case, classes=case.classes.expand(self._networks, -1, -1, -1))
        place, label = self._labels[index - count]
        case = self._weak[place]
        return replace(case, classes=label.whole(), indices=label.indices, voxels=label.voxels, pseudo=True)
