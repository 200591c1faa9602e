"""An exponential moving average of a network's weights over the steps of a round."""

from __future__ import annotations

import torch
from torch import nn


class WeightAverage:
    """e <- decay * e + (1 - decay) * w after each step, from the weights with which the round began.

    Parameters that are trained and buffers of numbers (running statistics) are averaged; counters and what is frozen
    stay as the last step left them. Source: Polyak and Juditsky, 1992; with a decay as in Tarvainen and Valpola,
    "Mean teachers", NeurIPS 2017.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Begin with the present weights; a decay of 0 keeps nothing, and leaves the network as it is.

        Args:
            network: in training.
            decay: share of the former average in the next, from 0 to below 1.
        """
        self.decay = decay
        trained = [parameter.data for parameter in network.parameters() if parameter.requires_grad]
        buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self._present = [*trained, *buffers] if decay else []
        self._average = [values.clone() for values in self._present]

    def step(self) -> None:
        """Take in the weights after a step."""
        for average, present in zip(self._average, self._present, strict=True):
            average.mul_(self.decay).add_(present, alpha=1 - self.decay)

    def load(self) -> None:
        """Put the average in the place of the weights."""
        with torch.no_grad():
            for average, present in zip(self._average, self._present, strict=True):
                present.copy_(average)
