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
            entropy = functional.binary_cross_entropy_with_logits(logits, regions)
            return self.dice_weight * self.dice(logits, regions) + entropy
        channel = self.channel_of_class.to(classes.device)[classes.long()]
        target = torch.cat([channel == c for c in range(self.task.output_channels)], dim=1).float()
        return self.dice_weight * self.dice(logits, target) + functional.cross_entropy(logits, channel[:, 0])


def predict_regions(task: Task, logits: torch.Tensor) -> torch.Tensor:
    """Probabilities of the regions [B, R, ...] of logits [B, output_channels, ...]."""
    return logits.softmax(dim=1)[:, 1:] if task.exclusive else logits.sigmoid()
