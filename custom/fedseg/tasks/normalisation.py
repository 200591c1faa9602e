"""Normalisation of intensities, as a task says: which voxels count, and what becomes of their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedseg.tasks.task import LANDMARKS, Task

if TYPE_CHECKING:
    import torch


def counted_voxels(task: Task, values: torch.Tensor) -> torch.Tensor:
    """Which voxels of a channel [X, Y, Z] the normalisation is about: those that are not 0, or all."""
    import torch

    return values != 0 if task.zero_is_nothing else torch.ones_like(values, dtype=torch.bool)


def normalise(task: Task, image: torch.Tensor, missing: Sequence[int] = ()) -> torch.Tensor:
    """Normalise [C, ...] as the task says, once its channels are clipped; one that is constant or missing becomes 0.

    Args:
        task: says how.
        image: channels [C, ...] as they were measured.
        missing: positions of channels that were not acquired.
    """
    import torch

    from fedseg.tasks.landmarks import to_normal

    result = torch.zeros_like(image)
    if task.normalisation == "window":
        low, high = task.window or (0.0, 1.0)
        result = (image.clamp(low, high) - low) / (high - low)
        result[list(missing)] = 0
        return result
    for channel, (name, values) in enumerate(zip(task.channels, image, strict=True)):
        if channel in missing:
            continue
        mask = counted_voxels(task, values)
        chosen = values[mask].double()
        if name in task.clip:
            chosen = chosen.clamp(*task.clip[name])
        if task.normalisation == LANDMARKS and chosen.numel() > 1 and chosen.std() > 0:
            result[channel][mask] = torch.from_numpy(to_normal(chosen.numpy())).float()
        elif chosen.numel() > 1 and chosen.std() > 0:
            result[channel][mask] = ((chosen - chosen.mean()) / chosen.std()).float()
    return result
