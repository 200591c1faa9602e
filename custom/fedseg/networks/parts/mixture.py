"""A mixture of two experts: the network as it is, a second one beside it, and a gate that looks at the image."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

import torch
from torch import nn

from fedseg.errors import ConfigurationError
from fedseg.networks.parts.part import Call, Part, Place, add_module, module_of

MIXTURE = "mixture"
# The sigmoid of it is 1 in float32 to the last bit, that of its negative 0.
_SHUT = 128.0


class Mixture(nn.Module):
    """y = a * y_network + (1 - a) * y_expert, with a = sigmoid(w x + b) of x, the mean over space of the bottleneck.

    Source: Li et al., "Multi-site fMRI analysis using privacy-preserving federated learning and domain adaptation",
    Med Image Anal 2020. There x is the image itself, a vector.

    Attributes:
        expert: a network as the one that the part is added to.
        gate: w and b.
    """

    def __init__(self, expert: nn.Module, features: int) -> None:
        """Begin with a gate that is open half and half for every image.

        Args:
            expert: the second network, which is kept.
            features: of the bottleneck.
        """
        super().__init__()
        self.expert, self.gate = expert, nn.Linear(features, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self._image, self._features = torch.zeros(0), torch.zeros(0)

    def open(self, share: float) -> None:
        """Let a be ``share`` for every image, from 0 to 1; both ends are exact."""
        at = _SHUT * (2 * share - 1) if share in (0, 1) else log(share / (1 - share))
        with torch.no_grad():
            self.gate.weight.zero_()
            self.gate.bias.fill_(at)

    def share(self, bottleneck: torch.Tensor) -> torch.Tensor:
        """a of each image [B] in float32, from the output of the bottleneck [B, features, ...].

        Its gradient reaches the gate only.
        """
        features = bottleneck.detach().float().flatten(2).mean(dim=2)
        # Products of numbers keep their precision where products of matrices would lose it.
        return torch.sigmoid((features * self.gate.weight).sum(dim=1) + self.gate.bias)

    def see(self, network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Keep the image [B, C, ...] as it is before any other part has changed it."""
        self._image = inputs[0]

    def look(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        """Keep what the bottleneck gave."""
        self._features = output

    def mix(self, network: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """Put the mixture in the place of the network's logits."""
        share, other = self.share(self._features), self.expert(self._image)
        self._image, self._features = torch.zeros(0), torch.zeros(0)
        return mix(share, output, other)


def mix(share: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """share * first + (1 - share) * second, for each image.

    >>> mix(torch.tensor([1.0, 0.0]), torch.full((2, 1), 3.0), torch.full((2, 1), 5.0)).tolist()
    [[3.0], [5.0]]

    Args:
        share: [B].
        first, second: logits [B, out, ...].
    """
    share = share.view(-1, *(1,) * (first.ndim - 1))
    return share * first + (1 - share) * second


@dataclass(frozen=True)
class MixturePart(Part):
    """The part ``mixture`` of a model that a site has for itself: ``MixtureOfExperts`` adds it, no plan names it."""

    name: ClassVar[str] = MIXTURE

    def check_channels(self, channels: Sequence[str], optional: Collection[str], where: str) -> None:
        why = "The hook MixtureOfExperts adds it to the model that each site has for itself."
        raise ConfigurationError(where, self.name, "left out of the plan of a job", why)

    def add(self, network: nn.Module, place: Place) -> None:
        assert place.bottleneck is not None
        mixture = Mixture(copy.deepcopy(network), place.bottleneck.features)
        add_module(network, MIXTURE, mixture)
        network.register_forward_pre_hook(Call(mixture, "see"), prepend=True)
        network.get_submodule(place.bottleneck.module).register_forward_hook(Call(mixture, "look"))
        network.register_forward_hook(Call(mixture, "mix"))


def mixture_of(network: nn.Module) -> Mixture:
    """The part of a network that has it."""
    return module_of(network, MIXTURE, Mixture)
