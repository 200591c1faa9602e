"""What the two halves of split training have in common: a part of a network, its optimizer and its state."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn

from fedseg.contract.settings import TrainingSettings
from fedseg.errors import RefusalError
from fedseg.networks.split.parts import Tensors
from fedseg.networks.weights import Arrays, get_weights, set_weights
from fedseg.training.optimisation import autocast, check_norm, new_optimizer, place, set_rate


class Half:
    """A network, or a part of one, with the optimizer that a site of ordinary training would have.

    Attributes:
        part: the module; its arrays carry the names of the whole network.
        settings: of the training; optimizer, learning rate, schedule, clipping and precision are used.
        device: where it computes.
        dtype: of its parameters and of its outputs.
        optimizer: of its parameters.
        steps: how often the optimizer has stepped.
    """

    def __init__(self, part: nn.Module, settings: TrainingSettings, device: torch.device | str = "cpu") -> None:
        """Give a part a fresh optimizer.

        Args:
            part: is moved to the device and from then on belongs to this object.
            settings: of the training.
            device: a torch device.
        """
        self.settings, self.device = settings, torch.device(device)
        # One layout for all: results do not depend on how a message came.
        self.part = place(part.train(), self.device)
        self.dtype = next(part.parameters()).dtype
        self.optimizer = new_optimizer(settings, part.parameters())
        self.steps = 0

    def weights(self) -> Arrays:
        """A copy of all parameters and buffers by the names of the whole network."""
        return get_weights(self.part)

    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Load weights of exactly this part; the optimizer stays as it is.

        Raises:
            RefusalError: they do not fit (reason ``weights``).
        """
        set_weights(self.part, weights)

    def set_progress(self, progress: float) -> None:
        """Set the learning rate for a point of the whole job, 0 to 1."""
        set_rate(self.optimizer, self.settings, progress)

    def state(self) -> dict[str, Any]:
        """A copy of everything that the next step depends on: weights, optimizer, number of steps."""
        kept = {"weights": self.part.state_dict(), "optimizer": self.optimizer.state_dict(), "steps": self.steps}
        return deepcopy(kept)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where another half of the same part was when ``state`` was taken.

        Raises:
            RefusalError: it is the state of another part or optimizer (reason ``state``).
        """
        try:
            self.part.load_state_dict(state["weights"])
            self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
            self.steps = int(state["steps"])
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise RefusalError("state", "The saved state is not that of this part of the network.") from None

    def parameters(self) -> Tensors:
        """The trained arrays by name; an array with two names comes once."""
        return dict(self.part.named_parameters())

    def gradients(self) -> Tensors:
        """A copy of the gradients of the last backward pass by name."""
        found = {name: parameter.grad for name, parameter in self.parameters().items()}
        return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}

    def clip_and_step(self) -> None:
        """Clip the gradients of this half by their own norm, and step.

        Raises:
            RefusalError: a gradient is not finite (reason ``loss``); nothing was changed.
        """
        check_norm(nn.utils.clip_grad_norm_(self.part.parameters(), self.settings.gradient_clip))
        self.step_as_it_is()

    def step_as_it_is(self) -> None:
        """Step with the gradients that there are."""
        self.optimizer.step()
        self.steps += 1

    def autocast(self) -> AbstractContextManager[object]:
        """The precision in which the part runs forward."""
        return autocast(self.settings, self.device)

    def to_device(self, value: torch.Tensor) -> torch.Tensor:
        """A tensor [B, C, X, Y, Z] in this half's type and layout, on its device."""
        return value.detach().to(self.device, self.dtype).contiguous(memory_format=torch.channels_last_3d)


def shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor by name."""
    return {name: tuple(value.shape) for name, value in tensors.items()}
