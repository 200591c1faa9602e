"""The segmentation loss of a task: soft Dice plus cross-entropy."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn import functional

from fedseg.tasks.task import Task


def region_targets(task: Task, classes: torch.Tensor) -> torch.Tensor:
    """Region masks [B, R, ...] in float32 of internal class values [B, 1, ...]."""
    masks = [torch.isin(classes, torch.tensor(task.region_values(r), device=classes.device)) for r in task.regions]
    return torch.cat(masks, dim=1).float()


class SegmentationLoss(nn.Module):
    """Soft Dice (Milletari et al., 2016) over the regions plus cross-entropy.

    Exclusive regions: softmax over background and regions; overlapping ones: a sigmoid each, binary cross-entropy.
    """

    def __init__(
        self, task: Task, dice_weight: float = 1.0, batch_dice: bool = True, class_weights: torch.Tensor | None = None
    ) -> None:
        """Build the parts.

        Args:
            task: its regions.
            dice_weight: of the Dice loss beside the cross-entropy.
            batch_dice: Dice over the whole batch instead of the mean over its patches.
            class_weights: how much a voxel counts in the cross-entropy, by its true class: [output_channels] for
                exclusive regions (background first), [R, 2] (outside, inside) for overlapping ones. The entropy is
                then the weighted mean over the voxels (for overlapping regions: the mean over the regions of it).
                The Dice loss is a ratio within each region and stays as it is. None weighs all voxels alike.
        """
        super().__init__()
        self.task, self.dice_weight, self.class_weights = task, dice_weight, class_weights
        table = torch.zeros(len(task.classes) + 1, dtype=torch.long)
        for index, region in enumerate(task.regions):
            table[task.region_values(region)[0]] = index + 1
        self.channel_of_class = table
        self.dice = DiceLoss(
            include_background=not task.exclusive,
            softmax=task.exclusive,
            sigmoid=not task.exclusive,
            batch=batch_dice,
            smooth_nr=1e-5,
            smooth_dr=1e-5,
        )

    def forward(self, logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Scalar loss of logits [B, output_channels, ...] and internal class values [B, 1, ...]."""
        if not self.task.exclusive:
            regions = region_targets(self.task, classes)
            return self.dice_weight * self.dice(logits, regions) + self._binary_entropy(logits, regions)
        channel = self.channel_of_class.to(classes.device)[classes.long()]
        target = torch.cat([channel == c for c in range(self.task.output_channels)], dim=1).float()
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        entropy = functional.cross_entropy(logits, channel[:, 0], weight=weights)
        return self.dice_weight * self.dice(logits, target) + entropy

    def _binary_entropy(self, logits: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        if self.class_weights is None:
            return functional.binary_cross_entropy_with_logits(logits, regions)
        outside, inside = self.class_weights.to(logits).T[:, None, :, None, None, None]
        weights = torch.where(regions > 0, inside, outside)
        entropy = functional.binary_cross_entropy_with_logits(logits, regions, reduction="none")
        voxels = (0, 2, 3, 4)
        return ((weights * entropy).sum(voxels) / weights.sum(voxels)).mean()


def predict_regions(task: Task, logits: torch.Tensor) -> torch.Tensor:
    """Probabilities of the regions [B, R, ...] of logits [B, output_channels, ...]."""
    return logits.softmax(dim=1)[:, 1:] if task.exclusive else logits.sigmoid()
