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

    def __init__(self, task: Task, dice_weight: float = 1.0, batch_dice: bool = True) -> None:
        super().__init__()
        self.task, self.dice_weight = task, dice_weight
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
        regions = region_targets(self.task, classes)
        if not self.task.exclusive:
            entropy = functional.binary_cross_entropy_with_logits(logits, regions)
            return self.dice_weight * self.dice(logits, regions) + entropy
        background = 1 - regions.sum(dim=1, keepdim=True)
        target = torch.cat([background, regions], dim=1)
        return self.dice_weight * self.dice(logits, target) + functional.cross_entropy(logits, target.argmax(dim=1))


def predict_regions(task: Task, logits: torch.Tensor) -> torch.Tensor:
    """Probabilities of the regions [B, R, ...] of logits [B, output_channels, ...]."""
    return logits.softmax(dim=1)[:, 1:] if task.exclusive else logits.sigmoid()
