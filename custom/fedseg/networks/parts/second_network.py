"""A second network of the same kind beside the first one, for methods in which two networks teach each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fedseg.networks.parts.part import PREFIX, Part, Place, add_module

SECOND_NETWORK = "second_network"


@dataclass(frozen=True)
class SecondNetwork(Part):
    """The part ``second_network``: the same network with other fresh weights.

    It sees no image by itself: a method trains it. Its arrays travel, and are averaged, as those of the first network,
    which alone gives predictions.
    """

    name: ClassVar[str] = SECOND_NETWORK

    def add(self, network: nn.Module, place: Place) -> None:
        assert place.another is not None
        add_module(network, SECOND_NETWORK, place.another())


def second_network(network: nn.Module) -> nn.Module:
    """The second network of one that has this part."""
    return network.get_submodule(f"{PREFIX}.{SECOND_NETWORK}")
