"""Deep supervision: coarser levels of the decoder have outputs of their own, which training compares as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from fedseg.allowed import is_number, setting
from fedseg.errors import ConfigurationError
from fedseg.networks.parts.part import PREFIX, Level, Part, Place, add_module

DEEP_SUPERVISION = "deep_supervision"


def nnunet_weights(levels: int) -> tuple[float, ...]:
    """1, 1/2, 1/4, ... of the outputs, the finest first, with 0 for the lowest level, so that their sum is 1.

    Source: nnU-Net (Isensee et al., Nat Methods 2021), version 2.

    >>> nnunet_weights(3)
    (0.6666666666666666, 0.3333333333333333, 0.0)

    Args:
        levels: of the decoder, that of full resolution included; at least 2.
    """
    halves = [0.5**level for level in range(levels - 1)]
    return (*(half / sum(halves) for half in halves), 0.0)


class CoarserOutputs(nn.Module):
    """A convolution of one voxel for each level of a decoder that is supervised, and what it gave in the last pass.

    Attributes:
        heads: by the number of the level, 1 for the one below full resolution.
        weights: of the loss of each level, that of full resolution first; their sum is 1.
        outputs: logits [B, out, ...] of the last forward pass in training, by the number of the level.
    """

    def __init__(self, decoder: Sequence[Level], out_channels: int, weights: Sequence[float]) -> None:
        """Make the convolutions of the levels whose weight is not 0; the others would never learn anything."""
        super().__init__()
        self.weights = tuple(weights)
        named = zip(decoder, self.weights[1:], strict=False)
        self.heads = nn.ModuleDict(
            {str(level): nn.Conv3d(each.features, out_channels, 1) for level, (each, w) in enumerate(named, 1) if w}
        )
        self.outputs: dict[int, torch.Tensor] = {}

    def tap(self, level: int, features: torch.Tensor) -> None:
        """Take the features [B, features, ...] of a level on their way, in training only."""
        if self.training and torch.is_grad_enabled():
            self.outputs[level] = self.heads[str(level)](features)


class _Tap:
    """Passes on what a level gave; a copy of the network has a copy of it, with the copied convolutions."""

    def __init__(self, outputs: CoarserOutputs, level: int) -> None:
        self.outputs, self.level = outputs, level

    def __call__(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self.outputs.tap(self.level, output)


def _weights(name: str, value: Any) -> tuple[float, ...]:
    """Weights that can be normalised; empty for those of nnU-Net."""
    given = tuple(value) if isinstance(value, list | tuple) else (None,)
    sound = all(is_number(weight) and weight >= 0 for weight in given)
    if not sound or (given and not given[0] > 0):
        raise ConfigurationError(name, value, "a list of numbers from 0 up, the first above 0; [] for those of nnU-Net")
    return given


@dataclass(frozen=True)
class DeepSupervision(Part):
    """The part ``deep_supervision``. Scores and predictions come from full resolution alone.

    Attributes:
        weights: of the loss at each level of the decoder, the finest first, in any scale; empty: ``nnunet_weights``.
            With 0 for all levels but the first, training is what it is without this part.
    """

    name: ClassVar[str] = DEEP_SUPERVISION
    weights: tuple[float, ...] = setting((), _weights)

    def check(self, decoder: Sequence[Level], where: str) -> None:
        if not decoder:
            allowed = "left out of a network whose decoder has no coarser level"
            raise ConfigurationError(where, self.name, allowed)
        if len(self.weights) > len(decoder) + 1:
            most = f"at most {len(decoder) + 1} numbers, one for each level of the decoder"
            raise ConfigurationError(f"{where}.weights", list(self.weights), most)

    def add(self, network: nn.Module, place: Place) -> None:
        given = self.weights or nnunet_weights(len(place.decoder) + 1)
        outputs = CoarserOutputs(place.decoder, place.out_channels, [weight / sum(given) for weight in given])
        add_module(network, DEEP_SUPERVISION, outputs)
        for level in outputs.heads:
            module = network.get_submodule(place.decoder[int(level) - 1].module)
            module.register_forward_hook(_Tap(outputs, int(level)))


def take_coarser(network: nn.Module) -> tuple[float, list[tuple[float, torch.Tensor]]]:
    """What deep supervision has of the last forward pass in training, which is then forgotten.

    Returns:
        The weight of the loss at full resolution, and weights and logits [B, out, ...] of the coarser levels, finest
        first; 1 and none of a network without deep supervision.
    """
    parts: Any = getattr(network, PREFIX, {})
    if DEEP_SUPERVISION not in parts:
        return 1.0, []
    found: CoarserOutputs = parts[DEEP_SUPERVISION]
    outputs, found.outputs = found.outputs, {}
    return found.weights[0], [(found.weights[level], outputs[level]) for level in sorted(outputs)]
