"""What a cut costs: what crosses it for each patch, and which share of the network and of the work is the site's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedseg.networks.registry import Network
from fedseg.networks.split.parts import cut_network
from fedseg.networks.split.stages import cut_names

BYTES = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class CutCost:
    """What a cut costs for one patch.

    Attributes:
        cut: its name.
        shapes: of each tensor that crosses, [features, X', Y', Z'] of one patch, by name.
        site_parameters: trained values of the site's part.
        parameters: of the whole network.
        site_flops: floating point operations of the site's part forward, for one patch.
        flops: of the whole network. Convolutions alone are counted: they are all that counts.
        image_values: numbers in the patch of the image itself, all channels.
        prediction_values: numbers in the logits of one patch.
        voxels: of the patch; a label is one byte each.
    """

    cut: str
    shapes: Mapping[str, tuple[int, ...]]
    site_parameters: int
    parameters: int
    site_flops: int
    flops: int
    image_values: int
    prediction_values: int
    voxels: int

    @property
    def values(self) -> int:
        """Numbers that cross for one patch: as features to the server, and as gradients back."""
        return sum(prod(shape) for shape in self.shapes.values())


def cut_costs(
    network: Network, in_channels: int, out_channels: int, patch: Sequence[int], cuts: Sequence[str] | None = None
) -> list[CutCost]:
    """What each cut costs; nothing is computed but shapes.

    Args:
        network: with checked arguments.
        in_channels: of the image.
        out_channels: of the logits.
        patch: voxels along each axis; divisible by the network's ``divisor``.
        cuts: which; None for all, from the image on.

    Raises:
        ConfigurationError: the network has no such cut.
    """
    whole = network.build(in_channels, out_channels, seed=0).to("meta")
    image = torch.empty(1, in_channels, *patch, device="meta")
    found = []
    for cut in cut_names(network) if cuts is None else cuts:
        site, server = cut_network(whole, network, cut)
        with torch.no_grad(), FlopCounterMode(display=False) as at_site:
            features = site(image)
        with torch.no_grad(), FlopCounterMode(display=False) as at_server:
            logits = server(features)
        site_flops, server_flops = at_site.get_total_flops(), at_server.get_total_flops()
        found.append(
            CutCost(
                cut=cut,
                shapes={name: tuple(value.shape[1:]) for name, value in features.items()},
                site_parameters=_count(site),
                parameters=_count(site) + _count(server),
                site_flops=site_flops,
                flops=site_flops + server_flops,
                image_values=image.numel(),
                prediction_values=logits.numel(),
                voxels=prod(patch),
            )
        )
    return found


def _count(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
