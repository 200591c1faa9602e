"""Patches for the inversion probe: what a site would send features of, without augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedseg.data.datalist import Case
from fedseg.tasks.task import Task
from fedseg.training.patches import choose_corner
from fedseg.training.prepare import PreparedCase, prepare_case

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class ProbePatch:
    """A patch as training cuts it.

    Attributes:
        image: normalised channels [C, X, Y, Z] float32, X, Y, Z the task's patch.
        classes: class values [1, X, Y, Z] uint8.
        inside: the part that lies in the image; the rest is the padding of images that are smaller than a patch.
        aspect: height of a voxel over its width in an axial slice.
    """

    image: torch.Tensor
    classes: torch.Tensor
    inside: Box
    aspect: float = 1.0


def draw_patches(task: Task, cases: Sequence[Case], count: int, generator: np.random.Generator) -> list[ProbePatch]:
    """Cut ``count`` patches where training would; no case gives two more than another one.

    Args:
        task: how to prepare the cases, and the size of a patch.
        cases: with labels, since patches are centred on classes as often as in training.
        count: of patches.
        generator: of the order of the cases and of the corners.

    Raises:
        DataError: a case cannot be read or is not of this task.
    """
    order = generator.permutation(len(cases))
    found = []
    for place, index in enumerate(order):
        share = count // len(order) + (place < count % len(order))
        if share:
            # Read once, and not kept: whole cases are many times larger than their patches.
            case = prepare_case(task, cases[int(index)], training=True)
            found += [_cut(task, case, generator) for _ in range(share)]
    return found


def _cut(task: Task, case: PreparedCase, generator: np.random.Generator) -> ProbePatch:
    assert case.classes is not None
    corner = choose_corner(task, case, generator)
    window = (slice(None), *(slice(c, c + s) for c, s in zip(corner, task.patch_size, strict=True)))
    x, y, z = (
        _inside(c, size, padded, real)
        for c, size, padded, real in zip(corner, task.patch_size, case.image.shape[1:], case.grid.shape, strict=True)
    )
    spacing = np.linalg.norm(case.grid.affine[:3, :3], axis=0)
    aspect = float(spacing[1] / spacing[0])
    return ProbePatch(case.image[window].clone(), case.classes[window].clone(), (x, y, z), aspect)


def _inside(corner: int, size: int, padded: int, real: int) -> slice:
    """Along one axis: where the image lies in a patch, of an image that was padded on both sides."""
    start = (padded - real) // 2 - corner
    return slice(max(0, start), min(size, start + real))
