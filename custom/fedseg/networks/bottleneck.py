"""How many features a network has at its coarsest level."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedseg.networks.registry import Network


def bottleneck_width(network: Network, in_channels: int, out_channels: int, patch_size: tuple[int, int, int]) -> int:
    """Features of the bottleneck, found without a value in memory, on torch's device ``meta``.

    >>> from fedseg.networks.registry import parse_network
    >>> bottleneck_width(parse_network({"channels": [4, 8, 12], "strides": [2, 2]}), 1, 2, (16, 16, 16))
    12

    Args:
        network: declared, not built.
        in_channels, out_channels: of image and logits.
        patch_size: of the image, [X, Y, Z], divisible by the network's ``divisor``.
    """
    found: list[int] = []
    with torch.device("meta"), torch.inference_mode():
        # Parts look at values, which are not there, and leave the number of features alone.
        whole = replace(network, parts=()).build(in_channels, out_channels, 0, patch_size)
        module = network.arguments.bottleneck(whole)
        module.register_forward_hook(lambda _module, _inputs, output: found.append(int(output.shape[1])))
        whole(torch.zeros(1, in_channels, *patch_size))
    return found[0]
