"""Local epochs of one network on a site's batches, with the hooks of a method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.utils.data import DataLoader

from fedseg.contract.plan import Plan
from fedseg.contract.round_settings import round_steps
from fedseg.data.datalist import Datalist
from fedseg.errors import AbortedError, ConfigurationError
from fedseg.networks.parts.deep_supervision import take_coarser
from fedseg.networks.parts.head_calibration import take_calibrated
from fedseg.randomness import derive_seed, generator
from fedseg.training.batches import epoch_batches
from fedseg.training.cache import CaseCache
from fedseg.training.hooks import LocalTraining, Loss, TrainingHook
from fedseg.training.optimisation import autocast, check_loss, check_norm, new_optimizer, place, plan_loss, set_rate
from fedseg.training.patches import PatchDataset, Sample, collate
from fedseg.training.weight_average import WeightAverage


class LocalSteps(LocalTraining):
    """A network, its optimizer and its hooks; the site's cases and the place in the job at which they stand."""

    def __init__(
        self,
        plan: Plan,
        site: str,
        datalist: Datalist,
        training_cases: CaseCache,
        network: nn.Module,
        hooks: Sequence[TrainingHook],
        device: torch.device,
        aborted: Callable[[], bool],
    ) -> None:
        self.plan, self.site, self.datalist, self.training_cases = plan, site, datalist, training_cases
        self.weak_cases = CaseCache(training_cases.task, (), True)
        self.task, self.settings, self.hooks, self.aborted = plan.task, plan.training, tuple(hooks), aborted
        self.device, self.network = device, place(network, device)
        self.optimizer = new_optimizer(self.settings, network.parameters())
        self.objective = plan.objective
        self.loss: Loss = plan_loss(plan)
        self.round_number, self.total_rounds = 0, 1
        self.epoch_cases: int | None = None
        self.own_schedule = False

    def train_epochs(self, is_enough: Callable[[], bool] = lambda: False) -> list[float]:
        """Train the local epochs of the present round. The network ends as the average of its weights over the steps,
        where the settings say so.

        Args:
            is_enough: asked after each epoch; True leaves the others out.

        Returns:
            The loss of every step.
        """
        self.network.train()
        losses: list[float] = []
        average = WeightAverage(self.network, self.settings.weight_average)
        steps = round_steps(self.settings, len(self.training_cases), self.epoch_cases)
        first, rounds = (0, 1) if self.own_schedule else (self.round_number, self.total_rounds)
        with torch.random.fork_rng(devices=[]):
            # Dropout is the one draw that comes from torch's own generator.
            torch.manual_seed(derive_seed(self.plan.seed, self.site, self.round_number, "network"))
            for epoch in range(self.settings.local_epochs):
                for batch in self.batches(self.round_number, epoch):
                    self.check_abort()
                    set_rate(self.optimizer, self.settings, (first + len(losses) / steps) / rounds)
                    losses.append(self._step(batch))
                    average.step()
                if is_enough():
                    break
        average.load()
        return losses

    def batches(self, round_number: int, epoch: int) -> Iterator[Sample]:
        """The epoch's batches: every case once, in an order and with patches that follow from the seed.

        Of more than ``epoch_cases`` so many, the first of that order, where no hook gives the order.

        Raises:
            ConfigurationError: a hook's order is not one of the site's training cases.
        """
        where = (self.plan.seed, self.site, round_number, epoch)
        order = self._order(round_number, epoch)
        given = (hook.draws(self, order) for hook in self.hooks)
        draws = next((found for found in given if found is not None), [(place,) for place in range(len(order))])
        batches = epoch_batches(self.task, self.settings, list(zip(order, draws, strict=True)), where)
        dataset = PatchDataset(
            self.task, self.training_cases, self.settings.augmentation, self.settings.channel_dropout
        )
        return iter(DataLoader(dataset, batch_sampler=batches, collate_fn=collate))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, out, ...] for images [B, C, ...] on the device."""
        with self.autocast():
            return self.network(images)

    def supervise(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of what ``forward`` gave: of the logits alone, or with deep supervision a weighted mean with that of
        the network's coarser outputs in the same pass, and with it that of calibrated logits."""
        weight, coarser = take_coarser(self.network)
        loss = weight * self.loss(logits.float(), targets)
        for share, output in coarser:
            loss = loss + share * self.loss(output.float(), self.objective.coarser(targets, output.shape[2:]))
        for share, output in take_calibrated(self.network):
            loss = loss + share * self.loss(output.float(), targets)
        return loss

    def compute_gradients(self, batch: Sample) -> float:
        """Gradients of the loss and of every hook's term for a batch on the device.

        Returns:
            The loss without the terms.

        Raises:
            RefusalError: the loss is not finite (reason ``loss``).
        """
        images, targets = batch["image"], self.objective.targets(batch)
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.forward(images)
        loss = self.supervise(logits, targets)
        alone = float(loss.detach())
        for hook in self.hooks:
            term = hook.loss(self, images, logits, targets)
            loss = loss if term is None else loss + term
        check_loss(loss)
        loss.backward()
        for hook in self.hooks:
            hook.after_backward(self)
        return alone

    def apply_gradients(self) -> None:
        """Clip the gradients that there are, and step.

        Raises:
            RefusalError: a gradient is not finite (reason ``loss``).
        """
        check_norm(nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_clip))
        self.optimizer.step()
        for hook in self.hooks:
            hook.after_step(self)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision in which the network runs forward, here and in hooks that run it too."""
        return autocast(self.settings, self.device)

    def check_abort(self) -> None:
        """End the work where it was aborted.

        Raises:
            AbortedError: the work was aborted.
        """
        if self.aborted():
            raise AbortedError("The work was aborted.")

    def _order(self, round_number: int, epoch: int) -> Sequence[int]:
        count = len(self.training_cases)
        for hook in self.hooks:
            order = hook.order(self, round_number, epoch)
            if order is not None:
                if len(order) != count or not all(0 <= index < count for index in order):
                    raise ConfigurationError(f"{type(hook).__name__}.order", list(order), f"{count} indices of cases")
                return order
        where = (self.plan.seed, self.site, round_number, epoch, "order")
        return [int(index) for index in generator(*where).permutation(count)[: self.epoch_cases]]

    def _step(self, sample: Sample) -> float:
        batch = {name: values.to(self.device) for name, values in sample.items()}
        batch["image"] = batch["image"].to(memory_format=torch.channels_last_3d)
        for hook in self.hooks:
            batch = hook.batch(self, batch)
        for hook in self.hooks:
            loss = hook.step(self, batch)
            if loss is not None:
                return loss
        loss = self.compute_gradients(batch)
        self.apply_gradients()
        return loss
