"""Networks beside the one in training: a personal model, a former one, a second network, an adversary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fedseg.contract.settings import TrainingSettings
from fedseg.networks.weights import Arrays, get_weights, set_weights
from fedseg.training.optimisation import check_norm, new_optimizer, place


class Companion:
    """A further network of a method, with an optimizer where it is trained.

    The trainer moves it to the device, saves it with the site's state after each round, and restores it before the
    next one, also in a new process.

    >>> frozen = Companion(nn.Linear(2, 1).requires_grad_(False))
    >>> frozen.optimizer, frozen.started
    (None, False)

    Attributes:
        network: the module.
        optimizer: of its parameters; None where it is not trained.
        started: whether it comes from a finished round; else it is as ``TrainingHook.companions`` gave it.
    """

    def __init__(self, network: nn.Module, settings: TrainingSettings | None = None) -> None:
        """Keep a network.

        Args:
            network: belongs to this object from now on.
            settings: for the optimizer; None trains it with none.
        """
        self.network, self.settings, self.started = network, settings, False
        self.optimizer = self._new_optimizer()

    def weights(self) -> Arrays:
        """A copy of all parameters and buffers by name."""
        return get_weights(self.network)

    def load(self, weights: Arrays) -> None:
        """Load weights; the optimizer stays as it is.

        Raises:
            RefusalError: they do not fit (reason ``weights``).
        """
        set_weights(self.network, weights)

    def move(self, device: torch.device) -> None:
        """Move it to a device."""
        place(self.network, device)

    def step(self, rate: float, clip: float) -> None:
        """Step along the gradients that there are, and take them away.

        Args:
            rate: learning rate of the step.
            clip: longest gradient; a longer one is shortened to it.

        Raises:
            RefusalError: a gradient is not finite (reason ``loss``).
        """
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        check_norm(nn.utils.clip_grad_norm_(self.network.parameters(), clip))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """What the next round needs."""
        optimizer = self.optimizer.state_dict() if self.optimizer is not None else None
        return {"network": self.network.state_dict(), "optimizer": optimizer}

    def restore(self, state: Mapping[str, Any] | None, reset_optimizer: bool) -> None:
        """Continue where ``state`` was taken; None leaves the network as it is."""
        if reset_optimizer or state is not None:
            self.optimizer = self._new_optimizer()
        if state is not None:
            self.network.load_state_dict(state["network"])
            if self.optimizer is not None and not reset_optimizer:
                self.optimizer.load_state_dict(state["optimizer"])
            self.started = True

    def _new_optimizer(self) -> torch.optim.Optimizer | None:
        return new_optimizer(self.settings, self.network.parameters()) if self.settings is not None else None
