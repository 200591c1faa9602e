"""An exponential moving average of a network's weights over the steps of a round."""

from __future__ import annotations

import torch
from torch import nn


class WeightAverage:
    """e <- d e + (1 - d) w after step t = 1, 2, ..., d = min(decay, (1 + t) / (10 + t)), from the received weights.

    The decay rises with the steps of a round, so that the received weights do not outweigh the few steps after them:
    with a decay of 0.999 and ten steps they have a share of 0.00006 in the average instead of 0.99. Parameters that are
    trained and buffers of numbers (running statistics) are averaged; counters and what is frozen stay as the last step
    left them. Source: Polyak and Juditsky, 1992; Tarvainen and Valpola, "Mean teachers", NeurIPS 2017, for the decay;
    its rise is that of TensorFlow's ``tf.train.ExponentialMovingAverage`` with ``num_updates``.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Begin with the present weights; a decay of 0 keeps nothing, and leaves the network as it is.

        Args:
            network: in training.
            decay: share of the former average in the next once it has risen, from 0 to below 1.
        """
        self.decay, self.steps = decay, 0
        trained = [parameter.data for parameter in network.parameters() if parameter.requires_grad]
        buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self._present = [*trained, *buffers] if decay else []
        self._average = [values.clone() for values in self._present]

    def step(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for average, present in zip(self._average, self._present, strict=True):
            average.mul_(decay).add_(present, alpha=1 - decay)

    def load(self) -> None:
        """Put the average in the place of the weights."""
        with torch.no_grad():
            for average, present in zip(self._average, self._present, strict=True):
                present.copy_(average)
