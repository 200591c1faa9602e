"""Connected parts of a prediction that a task keeps: the largest one, or those of some volume."""

from __future__ import annotations

from math import prod

import numpy as np
from scipy import ndimage

from fedseg.tasks.segmentation.labels import paint_regions, to_regions
from fedseg.tasks.task import FOREGROUND, LARGEST, Task

_NEIGHBOURS = np.ones((3, 3, 3), bool)


def keep_components(task: Task, classes: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Apply the task's rules to a prediction.

    What a region loses falls to the region around it (enhancing tumour becomes the rest of the core), or to the
    background; what a region around it loses is lost to the regions inside as well.

    Args:
        task: its ``components`` say what is kept of each region, and of the foreground as a whole.
        classes: internal class values [X, Y, Z].
        spacing: size of a voxel in mm.

    Returns:
        Internal class values; the array itself where nothing is to be removed.
    """
    rules = dict(task.components)
    if not rules:
        return classes
    voxel = prod(spacing) / 1000
    if FOREGROUND in rules:
        classes = np.where(_kept(classes > 0, rules.pop(FOREGROUND), voxel), classes, 0).astype(classes.dtype)
    if not rules:
        return classes
    masks = to_regions(task, classes)
    sizes = [set(region.classes) for region in task.regions]
    for index in sorted(range(len(sizes)), key=lambda i: -len(sizes[i])):
        name = task.regions[index].name
        if name not in rules:
            continue
        lost = masks[index] & ~_kept(masks[index], rules[name], voxel)
        for inner, classes_of_inner in enumerate(sizes):
            if classes_of_inner <= sizes[index]:
                masks[inner] &= ~lost
    return paint_regions(task, masks)


def count_components(mask: np.ndarray) -> int:
    """How many connected parts a mask [X, Y, Z] has; voxels touch at corners too."""
    return int(ndimage.label(mask, _NEIGHBOURS)[1])


def _kept(mask: np.ndarray, rule: str | float, voxel: float) -> np.ndarray:
    """The parts of a mask that stay: the largest one, or all that reach a volume in ml; voxels touch at corners too."""
    parts, count = ndimage.label(mask, _NEIGHBOURS)
    if not count:
        return mask
    volumes = np.bincount(parts.ravel()) * voxel
    volumes[0] = 0
    stays = np.arange(count + 1) == volumes.argmax() if rule == LARGEST else volumes >= float(rule)
    stays[0] = False
    kept: np.ndarray = stays[parts]
    return kept
