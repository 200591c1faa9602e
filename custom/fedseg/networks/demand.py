"""What a network takes before it is built: its numbers, and those of a pass through it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import prod
from typing import Any

import torch
from torch import nn

from fedseg.errors import ConfigurationError
from fedseg.memory import check_memory
from fedseg.networks.registry import Network

NUMBER_BYTES = 4
# Numbers in a slice of all channels, above which torch takes oneDNN's convolutions for a single image, too.
_SMALL_IMAGE = 20480


@dataclass(frozen=True)
class Demand:
    """Counts of float32 numbers.

    Attributes:
        weights: parameters and buffers.
        kept: outputs of all layers for one image, which training keeps until the backward pass.
        largest: input and output of the largest layer for one image, which any pass holds at one time.
        unfolded: the largest input of a convolution with a number for each weight that meets it. Torch writes it out
            where it computes a small image by itself on a CPU, with one thread; larger ones and batches go another way.
        kept_once: what is kept in the place of ``kept`` with activation checkpointing: outputs of the stages and of
            the layers outside of them, and those within the largest stage while it is computed again.
    """

    weights: int
    kept: int
    largest: int
    unfolded: int = 0
    kept_once: int = 0


def demand(network: Network, in_channels: int, out_channels: int, size: Sequence[int]) -> Demand:
    """Count without a value in memory: on torch's device ``meta``, where tensors have shapes only.

    Args:
        network: declared, not built.
        in_channels, out_channels: of image and logits.
        size: of the image, [X, Y, Z].

    Raises:
        ConfigurationError: torch cannot count that far.
    """
    x, y, z = size
    return _count(network, in_channels, out_channels, (x, y, z))


# All sites of a simulation ask the same.
@lru_cache(maxsize=32)
def _count(network: Network, in_channels: int, out_channels: int, size: tuple[int, int, int]) -> Demand:
    """See ``demand``."""
    counted: list[int] = []
    unfolded, kept = [0], [0]
    within: dict[str, int] = dict.fromkeys(["", *network.arguments.stages], 0)
    known: dict[int, torch.Tensor] = {}

    def count(stage: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # Dropout with a rate of 0, of which transformers are full, gives back what another layer has given.
        given = network.arguments.of_tokens and id(output) in known
        if isinstance(output, torch.Tensor) and not given:
            known[id(output)] = output
            within[stage] += output.numel()
            counted.extend((output.numel(), output.numel() + sum(i.numel() for i in inputs if torch.is_tensor(i))))
            unfolded.append(_unfolded(module, inputs[0], output))

    try:
        with torch.device("meta"), torch.inference_mode():
            whole = network.build(in_channels, out_channels, 0, size)
            # Parts look at values, which are not there; what they compute is of the size of the image.
            plain = replace(network, parts=()).build(in_channels, out_channels, 0, size)
            for name, module in plain.named_modules():
                if not list(module.children()):
                    module.register_forward_hook(partial(count, _stage_of(name, within)))
                if name in network.arguments.stages:
                    module.register_forward_hook(lambda module, inputs, output: kept.append(output.numel()))
            plain(torch.empty(1, in_channels, *size))
    except (RuntimeError, ValueError) as error:
        raise ConfigurationError("network", network.to_dict(), f"one that torch can build ({error})") from None
    weights = sum(prod(value.shape) for value in whole.state_dict().values())
    outside = within.pop("")
    once = outside + sum(kept) + max(within.values(), default=0)
    return Demand(weights, sum(counted[::2]), max(counted[1::2], default=0), max(unfolded), once)


def _stage_of(module: str, stages: Collection[str]) -> str:
    """The name of the stage in which a module stands; empty outside of all."""
    return next((stage for stage in stages if stage and f"{module}.".startswith(f"{stage}.")), "")


def _unfolded(module: nn.Module, image: torch.Tensor, output: torch.Tensor) -> int:
    """See ``Demand``; 0 for what is no convolution of a small image."""
    if not isinstance(module, nn.Conv3d | nn.ConvTranspose3d) or prod(image.shape[:-1]) > _SMALL_IMAGE:
        return 0
    forward = isinstance(module, nn.Conv3d)
    channels, place = (module.in_channels, output) if forward else (module.out_channels, image)
    return channels * prod(module.kernel_size) * prod(place.shape[2:])


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
