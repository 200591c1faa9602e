"""The segmentation loss of a task: soft Dice plus cross-entropy, or other terms by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fedseg.errors import ConfigurationError
from fedseg.tasks.segmentation.loss_terms import EXCLUSION, LOSSES, MARGINAL, LossTerms, true_entropy
from fedseg.tasks.segmentation.partial_loss import (
    drawn_share,
    exclusion,
    marginal_logits,
    masked_logits,
    masked_masks,
    split_targets,
)
from fedseg.tasks.task import Task


def region_targets(task: Task, classes: torch.Tensor) -> torch.Tensor:
    """Region masks [B, R, ...] in float32 of internal class values [B, 1, ...]."""
    masks = [torch.isin(classes, torch.tensor(task.region_values(r), device=classes.device)) for r in task.regions]
    return torch.cat(masks, dim=1).float()


def channel_of_class(task: Task) -> torch.Tensor:
    """The output channel of each class value of exclusive regions, [1 + classes]; 0 where a class is in no region."""
    table = torch.zeros(len(task.classes) + 1, dtype=torch.long)
    for index, region in enumerate(task.regions):
        table[task.region_values(region)[0]] = index + 1
    return table


class SegmentationLoss(nn.Module):
    """Soft Dice (Milletari et al., 2016) over the regions plus cross-entropy, or other terms in their places.

    Exclusive regions: softmax over background and regions; overlapping ones: a sigmoid each, binary cross-entropy.
    """

    def __init__(
        self,
        task: Task,
        dice_weight: float = 1.0,
        batch_dice: bool = True,
        class_weights: torch.Tensor | None = None,
        terms: LossTerms | None = None,
        undrawn: str = MARGINAL,
    ) -> None:
        """Build the parts.

        Args:
            task: its regions.
            dice_weight: of the term of regions (the Dice loss) beside that of voxels (the cross-entropy).
            batch_dice: the term of regions over the whole batch instead of the mean over its patches.
            class_weights: how much a voxel counts in the cross-entropy, by its true class: [output_channels] for
                exclusive regions (background first), [R, 2] (outside, inside) for overlapping ones. The entropy is
                then the weighted mean over the voxels (for overlapping regions: the mean over the regions of it).
                The Dice loss is a ratio within each region and stays as it is. None weighs all voxels alike.
            terms: None for Dice and cross-entropy.
            undrawn: one of ``UNDRAWN``, for cases in which regions are not drawn; see ``partial``.

        Raises:
            ValueError: class weights, and no cross-entropy.
            ConfigurationError: the exclusion loss for overlapping regions, or the generalised Dice loss alone.
        """
        super().__init__()
        if undrawn == EXCLUSION and not task.exclusive:
            allowed, why = MARGINAL, "Regions of this task overlap, so none excludes another."
            raise ConfigurationError("training.undrawn", undrawn, repr(allowed), why)
        self.undrawn, self.batch_dice = undrawn, batch_dice
        self.task, self.dice_weight, self.class_weights = task, dice_weight, class_weights
        self.channel_of_class = channel_of_class(task)
        terms = terms or LossTerms()
        if terms.name == "generalised_dice" and not task.exclusive:
            why = "Regions of this task overlap, and a patch without any of them gives this loss alone no gradient."
            raise ConfigurationError("training.loss", terms.name, "'generalised_dice_ce'", why)
        if class_weights is not None and not terms.weighs_classes:
            raise ValueError(f"{terms.name} takes no class weights.")
        self.regions, self.voxels = terms.of_regions(task.exclusive, batch_dice), terms.of_voxels()
        self.has_voxels = LOSSES[terms.name][1] is not None
        self.means_over_regions = LOSSES[terms.name][0] != "generalised_dice"
        self.over_batch = self.regions is not None and batch_dice and dice_weight != 0

    def forward(self, logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Scalar loss of logits [B, output_channels, ...] and internal class values [B, 1, ...], which may also say
        what nobody drew in each case: see ``partial.join_targets``."""
        classes, undrawn = split_targets(classes, len(self.task.regions))
        if undrawn is not None:
            return self._of_partial(logits, classes, undrawn)
        if not self.task.exclusive:
            regions = region_targets(self.task, classes)
            return self._sum(logits, regions, regions)
        channel = self._channel(classes)
        return self._sum(logits, self._masks(channel), channel[:, 0])

    def _channel(self, classes: torch.Tensor) -> torch.Tensor:
        """The true channel [B, 1, ...] of exclusive regions."""
        return self.channel_of_class.to(classes.device)[classes.long()]

    def _masks(self, channel: torch.Tensor) -> torch.Tensor:
        return torch.cat([channel == c for c in range(self.task.output_channels)], dim=1).float()

    def _of_partial(self, logits: torch.Tensor, classes: torch.Tensor, undrawn: torch.Tensor) -> torch.Tensor:
        """The loss where regions [B, R] of cases are not drawn.

        Exclusive regions: that of a softmax whose background is merged with the undrawn classes of the case.
        Overlapping ones: that of the drawn regions of each case alone. A mean over cases and regions is one over those
        that are drawn.
        """
        if self.class_weights is not None:
            raise ValueError("Class weights are for cases in which every region is drawn.")
        of_cases = drawn_share(undrawn, over_batch=False)
        of_regions = drawn_share(undrawn, self.batch_dice) if self.means_over_regions else 1.0
        if not self.task.exclusive:
            masks = masked_masks(region_targets(self.task, classes), undrawn)
            return self._sum(masked_logits(logits, undrawn), masks, masks, of_regions, of_cases)
        channel = self._channel(classes)
        unknown = torch.cat([torch.zeros_like(undrawn[:, :1]), undrawn], dim=1)
        lost = unknown.gather(1, channel.flatten(1)).reshape(channel.shape)
        channel = channel.masked_fill(lost, 0)
        loss = self._sum(marginal_logits(logits, undrawn), self._masks(channel), channel[:, 0], of_regions)
        if self.undrawn == EXCLUSION:
            loss = loss + exclusion(logits, (channel > 0).float(), undrawn, self.dice_weight)
        return loss

    def _sum(
        self,
        logits: torch.Tensor,
        masks: torch.Tensor,
        truth: torch.Tensor,
        of_regions: float = 1.0,
        of_voxels: float = 1.0,
    ) -> torch.Tensor:
        """Both terms, of masks of the channels and of what is true of each voxel; each over the share of it that counts
        while the rest of it is 0."""
        if self.regions is None:
            return self._of_voxels(logits, truth) / of_voxels
        overlap: torch.Tensor = self.dice_weight * self.regions(logits, masks) / of_regions
        return overlap + self._of_voxels(logits, truth) / of_voxels if self.has_voxels else overlap

    def _of_voxels(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        if self.voxels is not None:
            return self.voxels(true_entropy(logits, truth, self.task.exclusive)).mean()
        if not self.task.exclusive:
            return self._binary_entropy(logits, truth)
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        return functional.cross_entropy(logits, truth, weight=weights)

    def _binary_entropy(self, logits: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        if self.class_weights is None:
            return functional.binary_cross_entropy_with_logits(logits, regions)
        outside, inside = self.class_weights.to(logits).T[:, None, :, None, None, None]
        weights = torch.where(regions > 0, inside, outside)
        entropy = functional.binary_cross_entropy_with_logits(logits, regions, reduction="none")
        voxels = (0, 2, 3, 4)
        return ((weights * entropy).sum(voxels) / weights.sum(voxels)).mean()


def loss_of_settings(
    task: Task, settings: Mapping[str, Any], class_weights: torch.Tensor | None = None
) -> SegmentationLoss:
    """The loss that a plan's ``training`` names.

    Args:
        task: its regions.
        settings: of the plan's ``training``, all of them.
        class_weights: see ``SegmentationLoss``.
    """
    return SegmentationLoss(
        task,
        settings["dice_weight"],
        settings["batch_dice"],
        class_weights,
        terms_of_settings(settings),
        settings["undrawn"],
    )


def terms_of_settings(settings: Mapping[str, Any]) -> LossTerms:
    """The terms that a plan's ``training`` names."""
    names = ("focal_gamma", "tversky_alpha", "tversky_beta", "gce_q")
    return LossTerms(settings["loss"], **{name: settings[name] for name in names})


def predict_regions(task: Task, logits: torch.Tensor) -> torch.Tensor:
    """Probabilities of the regions [B, R, ...] of logits [B, output_channels, ...]."""
    return logits.softmax(dim=1)[:, 1:] if task.exclusive else logits.sigmoid()
