"""Random training patches, each reproducible from its own seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from fedseg.tasks.task import Task
from fedseg.training.augmentation import Augmentation, Sample
from fedseg.training.cache import CaseCache
from fedseg.training.prepare import PreparedCase


class PatchDataset(Dataset[Sample]):
    """Patches from cached cases; an item is asked for by ``(case index, seed)``."""

    def __init__(self, task: Task, cases: CaseCache, augmentation: str) -> None:
        self.task, self.cases = task, cases
        self.augmentation = Augmentation(task, augmentation)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        """``image`` [C, *patch] float32 and, where there is a reference, ``classes`` [1, *patch] (uint8 in
        segmentation), cut and augmented as the seed says."""
        index, seed = item
        case = self.cases[index]
        generator = np.random.default_rng(seed)
        corner, size = choose_corner(self.task, case, generator), self.task.patch_size
        matrix = self.augmentation.draw_turn(case.grid.spacing, generator)
        margin = (0, 0, 0) if matrix is None else self.augmentation.margin(matrix)
        sample = {name: cut(values[0], corner, size, margin) for name, values in case.batch().items()}
        if matrix is not None:
            sample = self.augmentation.turn(sample, matrix)
        return self.augmentation.change(sample, generator)


def cut(values: torch.Tensor, corner: Sequence[int], size: Sequence[int], margin: Sequence[int]) -> torch.Tensor:
    """A copy of a patch with a margin on every side; what lies outside the image is 0.

    Args:
        values: the image [C, X, Y, Z].
        corner, size: the patch's first voxel, and its voxels along each axis.
        margin: voxels beyond each of its sides, by axis.
    """
    lows = [first - more for first, more in zip(corner, margin, strict=True)]
    highs = [first + count + more for first, count, more in zip(corner, size, margin, strict=True)]
    shape = values.shape[1:]
    inside = tuple(slice(max(0, low), high) for low, high in zip(lows, highs, strict=True))
    pads = [(max(0, -low), max(0, high - have)) for low, high, have in zip(lows, highs, shape, strict=True)]
    ends = [end for pair in reversed(pads) for end in pair]
    return torch.nn.functional.pad(values[(slice(None), *inside)].clone(), ends)


def choose_corner(task: Task, case: PreparedCase, generator: np.random.Generator) -> tuple[int, ...]:
    """First voxel of a patch.

    A class is drawn by the task's sampling frequencies among those present, then one of its voxels, and the patch is
    centred there as far as the image allows; without frequencies the corner is uniform.
    """
    shape = case.image.shape[1:]
    room = [have - want for have, want in zip(shape, task.patch_size, strict=True)]
    if not case.indices:
        return tuple(int(generator.integers(r + 1)) for r in room)
    names = ("background", *task.classes)
    weights = np.array([task.sampling.get(n, 0.0) * (len(i) > 0) for n, i in zip(names, case.indices, strict=True)])
    if weights.sum() == 0:
        return tuple(int(generator.integers(r + 1)) for r in room)
    chosen = case.indices[int(generator.choice(len(names), p=weights / weights.sum()))]
    voxel = np.unravel_index(int(chosen[int(generator.integers(len(chosen)))]), shape)
    return tuple(int(np.clip(v - size // 2, 0, r)) for v, size, r in zip(voxel, task.patch_size, room, strict=True))


def collate(samples: Sequence[Sample]) -> Sample:
    """Stack samples to a batch: ``image`` [B, C, ...], and ``classes`` [B, 1, ...] where cases have a reference."""
    return {key: torch.stack([s[key] for s in samples]) for key in samples[0]}
