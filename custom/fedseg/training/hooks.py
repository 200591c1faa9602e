"""Where a method reaches into local training: subclass ``TrainingHook`` and override what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fedseg.contract.report import ReportField

if TYPE_CHECKING:
    from fedseg.contract.plan import Plan
    from fedseg.networks.weights import Arrays
    from fedseg.training.trainer import SiteTrainer


class TrainingHook:
    """Does nothing; each method is called at the moment that its name says, hooks in the order given.

    What a hook must remember between rounds goes through ``state`` and ``load_state`` to the site's disk: the object
    itself may not live that long.

    Attributes:
        makes_gradients: whether ``backward`` does the work, and copes with losses that are not finite.
        reports: what ``report`` tells, by name, see ``ReportField``.
    """

    makes_gradients = False
    reports: ClassVar[Mapping[str, ReportField]] = {}

    def check_plan(self, plan: Plan) -> None:
        """Refuse a plan under which the method would not be the method; asked when the trainer is built.

        Raises:
            ConfigurationError: a setting of the plan must be another.
        """

    def statistics(self, trainer: SiteTrainer) -> dict[str, float]:
        """Numbers of this site that the server adds up over all sites before round 0; every site then finds the sums
        in ``trainer.totals``. They leave the site with its answer to ``prepare``."""
        return {}

    def before_round(self, trainer: SiteTrainer, global_weights: Arrays, round_number: int) -> None:
        """The global weights are loaded, no step has run; ``trainer.received_extras`` holds arrays sent with them."""

    def before_step(self, trainer: SiteTrainer, images: torch.Tensor, classes: torch.Tensor) -> None:
        """A batch [B, C, ...] with class values [B, 1, ...] is about to be used."""

    def loss(
        self, trainer: SiteTrainer, images: torch.Tensor, logits: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor | None:
        """A term that is added to the segmentation loss; None adds nothing."""
        return None

    def backward(self, trainer: SiteTrainer, images: torch.Tensor, logits: torch.Tensor, classes: torch.Tensor) -> bool:
        """Make the gradients of a batch in the place of ``loss.backward()``; False leaves that to the trainer."""
        return False

    def after_backward(self, trainer: SiteTrainer) -> None:
        """Gradients are there, not yet clipped; they may be changed in place."""

    def after_step(self, trainer: SiteTrainer) -> None:
        """The optimizer has stepped."""

    def after_round(self, trainer: SiteTrainer, global_weights: Arrays, round_number: int) -> None:
        """All local epochs of the round are done."""

    def extra_arrays(self, trainer: SiteTrainer) -> Arrays:
        """Arrays that travel to the server with the update of the round, under names of the hook's own prefix."""
        return {}

    def report(self, trainer: SiteTrainer) -> dict[str, float]:
        """Those of the fields declared in ``reports`` that there is a number for."""
        return {}

    def state(self) -> dict[str, Any]:
        """What the next round needs: tensors, numbers, strings, lists and dicts of them."""
        return {}

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Take back what ``state`` gave after the site's last finished round; None before the first one."""
