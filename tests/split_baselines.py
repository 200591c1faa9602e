"""The whole network on all samples together, and carried from site to site: what split training is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from fedseg.contract.plan import Plan
from fedseg.contract.settings import TrainingSettings
from fedseg.networks.weights import apply_difference, difference
from fedseg.tasks.segmentation.losses import SegmentationLoss
from fedseg.training.optimisation import check_loss, plan_loss
from fedseg.training.patches import Sample
from fedseg.training.split.half import Half


class WholeNetwork(Half):
    """The network that has not been cut, with one optimizer: a step is that of ``SiteTrainer`` without hooks."""

    def __init__(
        self,
        network: nn.Module,
        settings: TrainingSettings,
        loss: SegmentationLoss,
        device: torch.device | str = "cpu",
    ) -> None:
        """Build it.

        Args:
            network: belongs to this object from now on.
            settings: of the training.
            loss: of logits [B, out, ...] and class values [B, 1, ...].
            device: a torch device.
        """
        super().__init__(network, settings, device)
        self.loss = loss

    def step(self, batch: Sample, progress: float) -> float:
        """One step; the loss before it.

        Raises:
            RefusalError: loss or gradient is not finite (reason ``loss``).
        """
        self.set_progress(progress)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            logits = self.part(self.to_device(batch["image"]))
        loss = self.loss(logits.to(self.dtype), batch["classes"].to(self.device))
        check_loss(loss)
        loss.backward()
        self.clip_and_step()
        return float(loss.detach())


def pooled_round(
    whole: WholeNetwork, batches: Mapping[str, Iterator[Sample]], steps: int, start: float, end: float
) -> list[float]:
    """Centralised training: in each step the batches of all sites, in the order of their names, are one batch."""
    losses = []
    for number in range(steps):
        drawn = [next(batches[site]) for site in sorted(batches)]
        pooled = {key: torch.cat([batch[key] for batch in drawn]) for key in drawn[0]}
        losses.append(whole.step(pooled, start + (end - start) * number / steps))
    return losses


def cyclic_round(
    sites: Mapping[str, WholeNetwork],
    batches: Mapping[str, Iterator[Sample]],
    steps: Mapping[str, int],
    start: float,
    end: float,
) -> list[float]:
    """Cyclic weight transfer (Chang et al., JAMIA 2018): the whole network visits site after site.

    A site begins with the weights that the site before it has left (the first one with those of the last one in the
    round before); optimizers stay where they are. Sites come in the order of their names. What a visit leaves is what
    the site has received plus its update, with the rounding of that sum, and each visit runs from ``start`` to ``end``
    of the learning rate's schedule: both as a run over FLARE has it, where a visit is a task of its own.
    """
    names = sorted(sites)
    losses: list[float] = []
    model = sites[names[-1]].weights()
    for site in names:
        whole = sites[site]
        whole.set_weights(model)
        for number in range(steps[site]):
            losses.append(whole.step(next(batches[site]), start + (end - start) * number / steps[site]))
        model = apply_difference(model, difference(whole.weights(), model))
        whole.set_weights(model)
    return losses


def whole_network(plan: Plan, device: torch.device | str = "cpu") -> WholeNetwork:
    """The plan's network in one piece, with the weights of the plan's seed."""
    return WholeNetwork(plan.build_network(), plan.training, plan_loss(plan), device)
