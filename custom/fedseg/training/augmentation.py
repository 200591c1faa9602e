"""Random changes of training patches: how they are turned and zoomed in millimetres, mirrored, and shown otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Affine,
    Compose,
    RandAdjustContrast,
    RandFlipd,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandScaleIntensity,
    RandScaleIntensityFixedMean,
    RandShiftIntensity,
    RandSimulateLowResolution,
)
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

from fedseg.tasks.objective import objective_of
from fedseg.tasks.task import Task
from fedseg.training.resampling import resample_classes

Sample = dict[str, torch.Tensor]

# Ranges and probabilities of nnU-Net (Isensee et al., Nat Methods 2021), which also has patches that are flat, or whose
# slices are thick, turned in their plane only.
TURN_PROBABILITY, LARGEST_TURN = 0.2, np.pi / 6
ZOOM_PROBABILITY, LARGEST_ZOOM = 0.2, 1.4
FLAT = 3.0


class Augmentation:
    """The random changes ``intensity`` and ``full``, or none."""

    def __init__(self, task: Task, kind: str) -> None:
        self.task, self.turns, self.discrete = task, kind == "full", objective_of(task).discrete
        both = ["image", "classes"]
        mirrors = [RandFlipd(both, prob=0.5, spatial_axis=a, allow_missing_keys=True) for a in task.flip_axes]
        self._mirror = Compose(mirrors if kind != "none" else [])
        self._show = Compose(_intensities(kind))

    def draw_turn(self, spacing: Sequence[float], generator: np.random.Generator) -> np.ndarray | None:
        """How a patch is turned and zoomed: see ``turn``; None leaves it as it lies.

        Args:
            spacing: size of a voxel in mm.
            generator: of the patch.
        """
        if not self.turns:
            return None
        turned, zoomed = generator.random(2) < (TURN_PROBABILITY, ZOOM_PROBABILITY)
        angles = generator.uniform(-LARGEST_TURN, LARGEST_TURN, 3) * turned
        zoom = np.full(3, LARGEST_ZOOM ** (generator.uniform(-1, 1) * zoomed))
        across = flat_axis(self.task.patch_size, spacing)
        if across is not None:
            angles[np.arange(3) != across] = 0
            zoom[across] = 1
        return turn_in_mm(angles, zoom, spacing) if turned or zoomed else None

    def turn(self, sample: Sample, matrix: np.ndarray) -> Sample:
        """Turn larger cuts around their centre, and keep a patch of what was turned.

        Args:
            sample: ``image`` and ``classes`` [C, ...] with ``margin(matrix)`` more voxels on each side than a patch.
            matrix: see ``turn_in_mm``.
        """
        affine = np.eye(4)
        affine[:3, :3] = matrix
        move = Affine(affine=affine, spatial_size=self.task.patch_size, padding_mode="zeros", image_only=True)

        def linear(values: torch.Tensor) -> torch.Tensor:
            moved: Any = move(values, mode="bilinear")
            return as_plain_tensor(moved)

        turned = {"image": linear(sample["image"])}
        if "classes" in sample:
            classes = sample["classes"]
            turned["classes"] = resample_classes(classes, linear) if self.discrete else linear(classes)
        return turned

    def margin(self, matrix: np.ndarray) -> tuple[int, ...]:
        """Voxels beyond each side of a patch that turning it needs."""
        half = (np.array(self.task.patch_size) - 1) / 2
        return tuple(int(n) for n in np.ceil(np.maximum(np.abs(matrix) @ half - half, 0)))

    def change(self, sample: Sample, generator: np.random.Generator, spacing: Sequence[float] = (1, 1, 1)) -> Sample:
        """Mirror a patch, and change its intensities, each channel by itself; ``something`` stays nothing.

        Args:
            sample: a patch of ``image`` and ``classes``.
            generator: of the patch.
            spacing: size of a voxel in mm; matters where thick slices are changed in their plane only.
        """
        for steps in (self._mirror, self._show):
            steps.set_random_state(seed=int(generator.integers(2**31)))
        changed = {name: as_plain_tensor(values) for name, values in self._mirror(sample).items()}
        image = changed["image"]
        shown = torch.stack([as_plain_tensor(self._show(channel[None]))[0] for channel in image])
        changed["image"] = shown * self.something(image)
        return changed

    def something(self, image: torch.Tensor) -> torch.Tensor:
        """Where an image [C, X, Y, Z] holds something: everywhere but in channels of zeros, which are those that the
        case lacks. Where a task normalises over the non-zero voxels, any zero says that there is nothing."""
        something = image != 0
        if not self.task.zero_is_nothing:
            something = something.flatten(1).any(dim=1)[:, None, None, None]
        return something


def turn_in_mm(angles: ArrayLike, zoom: ArrayLike, spacing: ArrayLike) -> np.ndarray:
    """The matrix [3, 3] from voxel offsets in a turned patch to those in the image that it shows.

    Args:
        angles: about the three axes, one after the other, in radians.
        zoom: by which factor the patch shows things larger, along each of its axes.
        spacing: size of a voxel in mm, so that things keep their shape where voxels are no cubes.
    """
    rotation = Rotation.from_euler("xyz", angles).as_matrix()
    size = np.diag(np.asarray(spacing, float))
    return np.linalg.inv(size) @ rotation @ size @ np.diag(1 / np.asarray(zoom, float))


def flat_axis(patch_size: Sequence[int], spacing: Sequence[float]) -> int | None:
    """The axis across thick slices or across a flat patch, around which alone patches are turned; None without one."""
    extent = np.multiply(patch_size, spacing)
    if max(spacing) > FLAT * min(spacing):
        return int(np.argmax(spacing))
    return int(np.argmin(extent)) if extent.max() > FLAT * extent.min() else None


def _intensities(kind: str) -> Sequence[Callable[..., Any]]:
    """Changes of one channel's intensities."""
    if kind == "none":
        return []
    steps: list[Callable[..., Any]] = [
        RandScaleIntensity(factors=0.1, prob=0.5),
        RandShiftIntensity(offsets=0.1, prob=0.5),
        RandGaussianNoise(prob=0.15, std=0.1),
    ]
    if kind == "intensity":
        return steps
    blur = (0.5, 1.0)
    return [
        *steps,
        RandGaussianSmooth(blur, blur, blur, prob=0.1),
        RandScaleIntensityFixedMean(factors=0.25, preserve_range=True, prob=0.15),
        RandSimulateLowResolution(prob=0.125, zoom_range=(0.5, 1.0)),
        RandAdjustContrast(prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
        RandAdjustContrast(prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
    ]


def as_plain_tensor(value: torch.Tensor) -> torch.Tensor:
    """Drop MONAI's metadata, which would slow down every later operation."""
    return value.as_tensor() if isinstance(value, MetaTensor) else value
