"""Random training patches, each reproducible from its own seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from fedseg.tasks.task import Task
from fedseg.training.augmentation import Augmentation, Sample
from fedseg.training.cache import CaseCache
from fedseg.training.channel_dropout import drop_channels
from fedseg.training.nnunet_augmentation import NnunetAugmentation
from fedseg.training.prepare import PreparedCase


class PatchItem(NamedTuple):
    """A patch to be cut.

    Attributes:
        case: its index.
        seed: of all that is drawn for it.
        size: voxels along each axis; None is the task's.
        foreground: whether a voxel of a class lies in its centre, see ``choose_corner``.
    """

    case: int
    seed: int
    size: tuple[int, int, int] | None = None
    foreground: bool | None = None


class PatchDataset(Dataset[Sample]):
    """Patches from cached cases; an item is asked for as a ``PatchItem`` or by its first entries alone."""

    def __init__(self, task: Task, cases: CaseCache, augmentation: str, channel_dropout: float = 0.0) -> None:
        self.task, self.cases, self.kind, self.channel_dropout = task, cases, augmentation, channel_dropout
        self._augmentations: dict[tuple[int, int, int], Augmentation] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, item: tuple[Any, ...]) -> Sample:
        """``image`` [C, *patch] float32 and, where there is a reference, ``classes`` [1, *patch] (uint8 in
        segmentation), cut and augmented as the seed says; ``drawn`` [outputs] where something is not drawn, and
        ``pseudo`` [1] of pseudo-labels."""
        asked = PatchItem(*item)
        case, generator = self.cases[asked.case], np.random.default_rng(asked.seed)
        size = asked.size or self.task.patch_size
        augmentation = self._augmentation(size)
        corner = choose_corner(augmentation.task, case, generator, asked.foreground)
        matrix = augmentation.draw_turn(case.grid.spacing, generator)
        margin = (0, 0, 0) if matrix is None else augmentation.margin(matrix)
        whole = case.batch()
        facts = {name: whole.pop(name)[0] for name in ("drawn", "pseudo") if name in whole}
        sample = {name: cut(values[0], corner, size, margin) for name, values in whole.items()}
        if matrix is not None:
            sample = augmentation.turn(sample, matrix)
        sample = augmentation.change(sample, generator, case.grid.spacing)
        sample["image"] = drop_channels(self.task, sample["image"], self.channel_dropout, generator)
        return sample | facts

    def _augmentation(self, size: tuple[int, int, int]) -> Augmentation:
        """That of patches of a size, which decides how they are turned."""
        if size not in self._augmentations:
            self._augmentations[size] = _augmentation_of(replace(self.task, patch_size=size), self.kind)
        return self._augmentations[size]


def _augmentation_of(task: Task, kind: str) -> Augmentation:
    """The random changes that ``TrainingSettings.augmentation`` names."""
    return NnunetAugmentation(task, kind) if kind == "nnunet" else Augmentation(task, kind)


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


def choose_corner(
    task: Task, case: PreparedCase, generator: np.random.Generator, foreground: bool | None = None
) -> tuple[int, ...]:
    """First voxel of a patch; on an axis on which it is larger than the image it has the image in its middle.

    A class is drawn among those present, then one of its voxels, and the patch is centred there as far as the image
    allows; without classes to draw from the corner is uniform.

    Args:
        task: its patch size, and its sampling frequencies of the classes.
        case: its image and the voxels of its classes.
        generator: of the patch.
        foreground: None draws classes by these frequencies; True every class but the background as often; False none.
    """
    shape = case.image.shape[1:]
    room = [have - want for have, want in zip(shape, task.patch_size, strict=True)]
    names = ("background", *task.classes)
    frequencies = task.sampling if foreground is None else dict.fromkeys(task.classes if foreground else (), 1.0)
    present = zip(names, case.indices, strict=False)
    weights = np.array([frequencies.get(n, 0.0) * (len(i) > 0) for n, i in present])
    if weights.sum() == 0:
        return tuple(int(generator.integers(r + 1)) if r >= 0 else r // 2 for r in room)
    chosen = case.indices[int(generator.choice(len(names), p=weights / weights.sum()))]
    voxel = np.unravel_index(int(chosen[int(generator.integers(len(chosen)))]), shape)
    places = zip(voxel, task.patch_size, room, strict=True)
    return tuple(int(np.clip(v - size // 2, 0, r)) if r >= 0 else r // 2 for v, size, r in places)


def collate(samples: Sequence[Sample]) -> Sample:
    """Stack samples to a batch: ``image`` [B, C, ...]; ``classes`` [B, 1, ...] where cases have a reference; ``drawn``
    [B, outputs] where a case has something that is not drawn; ``pseudo`` [B, 1] where a case has a pseudo-label."""
    if any("pseudo" in sample for sample in samples):
        samples = [{"pseudo": torch.tensor([False]), **sample} for sample in samples]
    if (partial := next((s["drawn"] for s in samples if "drawn" in s), None)) is not None:
        samples = [{"drawn": torch.ones_like(partial), **sample} for sample in samples]
    return {key: torch.stack([s[key] for s in samples]) for key in samples[0]}
