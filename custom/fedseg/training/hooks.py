"""Where a method reaches into local training: subclass ``TrainingHook`` and override what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fedseg.networks.weights import Arrays
    from fedseg.training.trainer import SiteTrainer


class TrainingHook:
    """Does nothing; each method is called at the moment that its name says, hooks in the order given."""

    def before_round(self, trainer: SiteTrainer, global_weights: Arrays, round_number: int) -> None:
        """The global weights are loaded, no step has run."""

    def before_step(self, trainer: SiteTrainer, images: torch.Tensor, classes: torch.Tensor) -> None:
        """A batch [B, C, ...] with class values [B, 1, ...] is about to be used."""

    def loss(
        self, trainer: SiteTrainer, images: torch.Tensor, logits: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor | None:
        """A term that is added to the segmentation loss; None adds nothing."""
        return None

    def after_backward(self, trainer: SiteTrainer) -> None:
        """Gradients are there, not yet clipped; they may be changed in place."""

    def after_step(self, trainer: SiteTrainer) -> None:
        """The optimizer has stepped."""

    def after_round(self, trainer: SiteTrainer, global_weights: Arrays, round_number: int) -> None:
        """All local epochs of the round are done."""
