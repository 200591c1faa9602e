"""Random training patches, each reproducible from its own seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from torch.utils.data import Dataset

from fedseg.tasks.objective import objective_of
from fedseg.tasks.task import Task
from fedseg.training.cache import CaseCache
from fedseg.training.prepare import PreparedCase

Sample = dict[str, torch.Tensor]


class PatchDataset(Dataset[Sample]):
    """Patches from cached cases; an item is asked for by ``(case index, seed)``."""

    def __init__(self, task: Task, cases: CaseCache, augmentation: str) -> None:
        self.task, self.cases = task, cases
        self.transform = make_augmentation(task, augmentation)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        """``image`` [C, *patch] float32 and, where there is a reference, ``classes`` [1, *patch] (uint8 in
        segmentation), cut and augmented as the seed says."""
        index, seed = item
        case = self.cases[index]
        generator = np.random.default_rng(seed)
        corner = choose_corner(self.task, case, generator)
        window: Any = (..., *(slice(c, c + s) for c, s in zip(corner, self.task.patch_size, strict=True)))
        sample: Sample = {name: values[0][window].clone() for name, values in case.batch().items()}
        self.transform.set_random_state(seed=int(generator.integers(2**31)))
        changed = self.transform(sample)
        # Where a patch was turned, MONAI gives the classes as floating-point numbers.
        return {key: as_plain_tensor(changed[key]).to(value.dtype) for key, value in sample.items()}


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


def make_augmentation(task: Task, kind: str) -> Compose:
    """Random changes of a patch: see ``TrainingSettings.augmentation``."""
    both, image = ["image", "classes"], ["image"]
    steps: list[Callable[..., Any]] = []
    if kind == "full":
        steps.append(
            RandAffined(
                both,
                prob=0.3,
                rotate_range=(0.26, 0.26, 0.26),
                scale_range=(0.15, 0.15, 0.15),
                mode=("bilinear", objective_of(task).interpolation),
                padding_mode="zeros",
                allow_missing_keys=True,
            )
        )
    if kind != "none":
        steps += [RandFlipd(both, prob=0.5, spatial_axis=axis, allow_missing_keys=True) for axis in task.flip_axes]
        steps += [
            RandScaleIntensityd(image, factors=0.1, prob=0.5),
            RandShiftIntensityd(image, offsets=0.1, prob=0.5),
            RandGaussianNoised(image, prob=0.15, std=0.1),
        ]
    return Compose(steps)


def collate(samples: Sequence[Sample]) -> Sample:
    """Stack samples to a batch: ``image`` [B, C, ...], and ``classes`` [B, 1, ...] where cases have a reference."""
    return {key: torch.stack([s[key] for s in samples]) for key in samples[0]}


def as_plain_tensor(value: torch.Tensor) -> torch.Tensor:
    """Drop MONAI's metadata, which would slow down every later operation."""
    return value.as_tensor() if isinstance(value, MetaTensor) else value
