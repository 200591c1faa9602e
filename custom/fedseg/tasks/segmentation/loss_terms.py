"""Terms of which segmentation losses are made, by name: of whole regions, and of single voxels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from monai.losses import DiceLoss, TverskyLoss
from torch import nn
from torch.nn import functional

CROSS_ENTROPY = "ce"
LOSSES: dict[str, tuple[str | None, str | None]] = {
    "dice_ce": ("dice", CROSS_ENTROPY),
    "dice_focal": ("dice", "focal"),
    "dice_gce": ("dice", "gce"),
    "tversky": ("tversky", None),
    "tversky_ce": ("tversky", CROSS_ENTROPY),
    "generalised_dice": ("generalised_dice", None),
    "generalised_dice_ce": ("generalised_dice", CROSS_ENTROPY),
    "gce": (None, "gce"),
}
"""Names of losses: their term of whole regions, and their term of single voxels."""
MARGINAL, EXCLUSION = "marginal", "exclusion"
UNDRAWN = (MARGINAL, EXCLUSION)
"""What a loss makes of classes that nobody drew: it leaves them open; or also keeps them off the drawn ones."""
_SMOOTH = 1e-5


@dataclass(frozen=True)
class LossTerms:
    """Which terms a loss has.

    Attributes:
        name: one of ``LOSSES``.
        focal_gamma: exponent of the focal term (Lin et al., ICCV 2017), from 0; with 0 it is the cross-entropy.
        tversky_alpha: weight of false positives in the Tversky index (Salehi et al., MLMI 2017), from 0; with 0.5 for
            both weights the term is the Dice loss.
        tversky_beta: the same of false negatives.
        gce_q: exponent of the generalised cross-entropy, above 0 up to 1.
    """

    name: str = "dice_ce"
    focal_gamma: float = 2.0
    tversky_alpha: float = 0.3
    tversky_beta: float = 0.7
    gce_q: float = 0.7

    @property
    def weighs_classes(self) -> bool:
        """Whether it has the cross-entropy, the one term that takes weights of classes."""
        return LOSSES[self.name][1] == CROSS_ENTROPY

    def of_regions(self, exclusive: bool, batch: bool) -> nn.Module | None:
        """The term of logits and masks [B, channels, ...] that is a ratio within each region; None without one.

        Args:
            exclusive: softmax over background and regions; the background is no region, but for the generalised Dice
                loss, which weighs it as it weighs all.
            batch: over the whole batch instead of the mean over its patches.
        """
        kind = LOSSES[self.name][0]
        if kind is None:
            return None
        if kind == "generalised_dice":
            return GeneralisedDice(exclusive, batch)
        found: dict[str, Any] = {"softmax": exclusive, "sigmoid": not exclusive, "batch": batch}
        found |= {"smooth_nr": _SMOOTH, "smooth_dr": _SMOOTH, "include_background": not exclusive}
        if kind == "tversky":
            return TverskyLoss(**found, alpha=self.tversky_alpha, beta=self.tversky_beta)
        return DiceLoss(**found)

    def of_voxels(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """The term of a voxel from its cross-entropy, -log of the probability of what is true; None where it is the
        cross-entropy itself, or where there is no term."""
        kind = LOSSES[self.name][1]
        if kind == "focal":
            return lambda entropy: focal(entropy, self.focal_gamma)
        return (lambda entropy: generalised(entropy, self.gce_q)) if kind == "gce" else None


class GeneralisedDice(nn.Module):
    """1 - 2 sum_l w_l sum(p_l g_l) / sum_l w_l sum(p_l + g_l), w_l = 1 / (sum g_l)^2 (Sudre et al., DLMIA 2017).

    The ratio does not change when all weights are multiplied by one number. Here the smallest region that is there has
    the weight 1, so that the constant that keeps the ratio finite stands beside voxels, as in the Dice loss; beside
    plain 1 / V^2 it would be larger than the sums of any region of more than some hundred voxels a side. A region of
    which there is no voxel has the weight of the smallest one that is there, as in NiftyNet and MONAI.

    Without any region there is nothing to overlap with, and no slope worth the name: regions that exclude each other
    always have the background; for overlapping ones a term of voxels must stand beside this one.
    """

    def __init__(self, exclusive: bool, batch: bool) -> None:
        """Say how to read the logits.

        Args:
            exclusive: a softmax over background and regions, else a sigmoid each.
            batch: one ratio over the whole batch instead of the mean over its patches.
        """
        super().__init__()
        self.exclusive, self.batch = exclusive, batch

    def forward(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Scalar loss of logits and masks [B, channels, ...]."""
        p = logits.softmax(dim=1) if self.exclusive else logits.sigmoid()
        axes = [axis for axis in range(logits.ndim) if axis != 1 and (axis or self.batch)]
        volumes, both = masks.sum(axes), (p * masks).sum(axes)
        smallest = torch.where(volumes > 0, volumes, torch.inf).amin(dim=-1, keepdim=True)
        weights = torch.where(volumes > 0, (smallest / volumes) ** 2, 1.0)
        overlap, size = (weights * both).sum(dim=-1), (weights * (p.sum(axes) + volumes)).sum(dim=-1)
        return (1 - (2 * overlap + _SMOOTH) / (size + _SMOOTH)).mean()


def focal(entropy: torch.Tensor, gamma: float) -> torch.Tensor:
    """Focal loss (1 - p)^gamma * -log p, p the probability of what is true, from -log p.

    MONAI's ``FocalLoss`` without alpha; with softmax it takes the mean over the classes too, and so is smaller by
    their number.
    """
    # Below the smallest number of float32 the root would have no slope, and 0 times infinity no value.
    wrong = (-torch.expm1(-entropy)).clamp_min(torch.finfo(entropy.dtype).tiny)
    return wrong**gamma * entropy


def generalised(entropy: torch.Tensor, q: float) -> torch.Tensor:
    """Generalised cross-entropy (1 - p^q) / q, p the probability of what is true, from -log p.

    A voxel whose label is wrong pulls less, the larger q is. Towards 0 it is the cross-entropy, with 1 it is 1 - p,
    half the absolute error over the classes of a softmax. Source: Zhang and Sabuncu, NeurIPS 2018, eq. 6.
    """
    return -torch.expm1(-q * entropy) / q


def true_entropy(logits: torch.Tensor, target: torch.Tensor, exclusive: bool) -> torch.Tensor:
    """-log of the probability of what is true, for each voxel.

    Args:
        logits: [B, channels, ...].
        target: exclusive: the true channel [B, ...]; else masks [B, channels, ...] in float.
        exclusive: softmax over the channels, else a sigmoid each.
    """
    if exclusive:
        return functional.cross_entropy(logits, target, reduction="none")
    return functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
