"""What a network takes before it is built: its numbers, and those of a pass through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import nn

from fedseg.errors import ConfigurationError
from fedseg.memory import check_memory
from fedseg.networks.registry import Network

NUMBER_BYTES = 4


@dataclass(frozen=True)
class Demand:
    """Counts of float32 numbers.

    Attributes:
        weights: parameters and buffers.
        kept: outputs of all layers for one image, which training keeps until the backward pass.
        largest: input and output of the largest layer for one image, which any pass holds at one time.
    """

    weights: int
    kept: int
    largest: int


def demand(network: Network, in_channels: int, out_channels: int, size: Sequence[int]) -> Demand:
    """Count without a value in memory: on torch's device ``meta``, where tensors have shapes only.

    Args:
        network: declared, not built.
        in_channels, out_channels: of image and logits.
        size: of the image, [X, Y, Z].

    Raises:
        ConfigurationError: torch cannot count that far.
    """
    counted: list[int] = []

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, torch.Tensor):
            counted.extend((output.numel(), output.numel() + sum(i.numel() for i in inputs if torch.is_tensor(i))))

    x, y, z = size
    try:
        with torch.device("meta"), torch.inference_mode():
            whole = network.build(in_channels, out_channels, 0, (x, y, z))
            # Parts look at values, which are not there; what they compute is of the size of the image.
            plain = replace(network, parts=()).build(in_channels, out_channels, 0)
            for module in plain.modules():
                if not list(module.children()):
                    module.register_forward_hook(count)
            plain(torch.empty(1, in_channels, *size))
    except (RuntimeError, ValueError) as error:
        raise ConfigurationError("network", network.to_dict(), f"one that torch can build ({error})") from None
    weights = sum(prod(value.shape) for value in whole.state_dict().values())
    return Demand(weights, sum(counted[::2]), max(counted[1::2], default=0))


def check_pass(network: Network, in_channels: int, out_channels: int, size: Sequence[int]) -> None:
    """Refuse a network whose weights and whose pass over one image do not fit into this machine's memory.

    Args:
        network, in_channels, out_channels, size: see ``demand``.

    Raises:
        ConfigurationError: names the estimate and the limit.
    """
    needs = demand(network, in_channels, out_channels, size)
    what = f"the network {network.name} with patches of {'x'.join(map(str, size))} voxels"
    check_memory(what, (needs.weights + needs.largest) * NUMBER_BYTES)
