"""Local epochs that go on from round to round: what optimizer, hooks and further networks keep in between."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedseg.contract.plan import Plan
from fedseg.data.datalist import Datalist
from fedseg.errors import ConfigurationError
from fedseg.networks.weights import Arrays, get_weights, set_weights
from fedseg.site.state import SiteState
from fedseg.training.cache import CaseCache
from fedseg.training.companions import Companion
from fedseg.training.hooks import TrainingHook, replaces
from fedseg.training.optimisation import new_optimizer, plan_loss
from fedseg.training.patches import Sample
from fedseg.training.steps import LocalSteps


class KeptSteps(LocalSteps):
    """Steps of one network and of its companions, which begin where the site's last finished round ended."""

    private: frozenset[str] = frozenset()

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
        state: SiteState | None,
    ) -> None:
        super().__init__(plan, site, datalist, training_cases, network, hooks, device, aborted)
        self.state = state
        self.companions = self._new_companions()
        self.received: Arrays = {}

    @property
    def folder(self) -> Path | None:
        """The site's folder of this run; None where nothing is kept on disk."""
        return self.state.folder if self.state is not None else None

    def train_alone(self, epochs: int) -> None:
        """Train the network with its optimizer for epochs beside those of the round: its first batches, loss and
        schedule, but no hooks.

        Args:
            epochs: as many; the batches are those of the round's epochs of the same numbers.
        """
        beside = copy.copy(self)
        beside.hooks, beside.settings = (), replace(self.settings, local_epochs=epochs)
        beside.train_epochs()

    def fine_tuned(self, weights: Arrays, epochs: int, totals: Mapping[str, float] | None = None) -> Arrays:
        """The model that this site makes of ``weights`` for itself; nothing of the run changes.

        It is a single round of that many epochs, the only one of its job: a fresh optimizer, the whole schedule, the
        plan's settings, the loss of the plan or of a hook that puts another in its place, otherwise no hooks, and what
        training leaves as it is stays so. It does not depend on which rounds this process has trained.

        Args:
            weights: to start from.
            epochs: passes over the training cases.
            totals: sums of the sites' ``statistics``, for the hooks.

        Raises:
            RefusalError: the weights do not fit (``weights``), the loss became non-finite (``loss``), or the sums are
                not those that a hook needs (``report``).
        """
        beside = copy.copy(self)
        beside.network, beside.hooks, beside.epoch_cases = copy.deepcopy(self.network), (), None
        beside.settings = replace(self.plan.training, local_epochs=epochs)
        beside.optimizer = new_optimizer(beside.settings, beside.network.parameters())
        beside.round_number, beside.total_rounds, beside.own_schedule = 0, 1, False
        beside.loss, beside.totals = plan_loss(self.plan), dict(totals or {})
        for hook in self.hooks:
            hook.before_fine_tuning(beside)
        set_weights(beside.network, weights)
        beside.train_epochs()
        return get_weights(beside.network)

    def companion_gradients(self, name: str, batch: Sample) -> float:
        """Gradients of the loss alone, without hooks, for a batch on the device in a companion's network.

        What training leaves as it is has no gradient there either. The draws of the network in training (dropout) go on
        as if nothing had been computed.

        Args:
            name: of the companion.
            batch: ``image`` [B, C, ...] and ``classes`` [B, 1, ...].

        Returns:
            The loss.

        Raises:
            RefusalError: the loss is not finite (reason ``loss``).
        """
        beside, network = copy.copy(self), self.companions[name].network.train()
        _train_the_same(network, self.network)
        # An optimizer of no memory, which only takes the former gradients away.
        beside.network, beside.hooks, beside.optimizer = network, (), torch.optim.SGD(network.parameters(), lr=0.0)
        with torch.random.fork_rng(devices=[]):
            return beside.compute_gradients(batch)

    def train_companion(self, name: str, hooks: Sequence[TrainingHook] = (), epochs: int | None = None) -> float:
        """Train a companion in the place of the network: its own optimizer, the round's batches, loss and schedule.

        Args:
            name: of the companion; it must have an optimizer.
            hooks: in the place of the job's; their ``before_round`` gets the weights that the round started from.
            epochs: in the place of the round's local epochs.

        Returns:
            The mean loss over its steps, without what hooks add.
        """
        companion, beside = self.companions[name], copy.copy(self)
        if companion.optimizer is None:
            raise ValueError(f"{name} has no optimizer.")
        beside.network, beside.optimizer, beside.hooks = companion.network, companion.optimizer, tuple(hooks)
        _train_the_same(companion.network, self.network)
        beside.settings = replace(self.settings, local_epochs=epochs or self.settings.local_epochs)
        for hook in hooks:
            hook.before_round(beside, self.received, self.round_number)
        losses = beside.train_epochs()
        for hook in hooks:
            hook.after_round(beside, self.received, self.round_number)
        return sum(losses) / len(losses)

    def _new_companions(self) -> dict[str, Companion]:
        """The companions of all hooks, fresh and on the device.

        Raises:
            ConfigurationError: two hooks use one name.
        """
        found: dict[str, Companion] = {}
        for hook in self.hooks:
            for name, companion in hook.companions(self.plan).items():
                if name in found:
                    raise ConfigurationError(f"{type(hook).__name__}: companion", name, "a name of its own in the job")
                companion.move(self.device)
                found[name] = companion
        return found

    def restore(self, round_number: int) -> None:
        """Optimizer, companions and hooks as this site's last finished round left them, or fresh ones."""
        state = self.state
        saved = state.load_or_lose(round_number, self._keeps_optimizer_only) if state is not None else None
        reset = bool(self.settings.reset_optimizer)
        if reset or self.state is not None:
            self.optimizer = new_optimizer(self.settings, self.network.parameters())
        if saved is not None and not reset:
            self.optimizer.load_state_dict(saved["optimizer"])
        if self.state is not None and saved is None:
            self.companions = self._new_companions()
        for name, companion in self.companions.items():
            companion.restore(saved["companions"][name] if saved is not None else None, reset)
        if self.state is not None:
            for position, hook in enumerate(self.hooks):
                hook.load_state(saved["hooks"][position] if saved is not None else None)

    @property
    def _keeps_optimizer_only(self) -> bool:
        """Whether nothing of this site's own would be lost with its state, but how the optimizer had moved."""
        return not self.private and not self.companions and not any(replaces(hook, "state") for hook in self.hooks)

    def save(self, round_number: int) -> None:
        """Keep what the next round starts from."""
        for companion in self.companions.values():
            companion.started = True
        if self.state is not None:
            kept: dict[str, Any] = {
                "optimizer": self.optimizer.state_dict(),
                "network": self.network.state_dict(),
                "hooks": [hook.state() for hook in self.hooks],
                "companions": {name: companion.state() for name, companion in self.companions.items()},
            }
            self.state.save(round_number, kept)


def _train_the_same(companion: nn.Module, network: nn.Module) -> None:
    """Of a companion, those parameters are trained that are of the network."""
    for own, other in zip(companion.parameters(), network.parameters(), strict=True):
        own.requires_grad_(other.requires_grad)
