"""The whole network on all samples together, and carried from site to site: what split training is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from fedseg.training.losses import SegmentationLoss
from fedseg.training.optimisation import check_loss
from fedseg.training.patches import Sample
from fedseg.training.settings import TrainingSettings
from fedseg.training.split_half import Half


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
            logits = self.part(self.take(batch["image"]))
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

    A site begins with the weights of the site before it (the first one with those of the last one in the round
    before); optimizers stay where they are. Sites come in the order of their names.
    """
    names = sorted(sites)
    losses: list[float] = []
    holder, total = sites[names[-1]], sum(steps[site] for site in sites)
    for site in names:
        sites[site].set_weights(holder.weights())
        holder = sites[site]
        for _ in range(steps[site]):
            losses.append(holder.step(next(batches[site]), start + (end - start) * len(losses) / total))
    return losses
