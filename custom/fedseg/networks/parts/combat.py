"""ComBat at a site: the curve that takes what its scanner does to intensities away, as a part of its network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from fedseg.networks.parts.part import PREFIX, PRIVATE, Owners, Part, Place, see_first
from fedseg.tasks.landmarks import LEVELS

COMBAT = "combat"
COMBAT_BEFORE, COMBAT_AFTER = f"{PREFIX}.{COMBAT}.before", f"{PREFIX}.{COMBAT}.after"
"""Names of the landmarks of a site among the arrays of a network."""


class SiteCurve(nn.Module):
    """Maps the mean landmarks of a site's images to adjusted ones, linearly in between and beyond.

    Attributes:
        before, after: landmarks of each channel [C, L]; a channel whose ``after`` equals ``before`` stays as it is, as
            all do while both are 0. Voxels of exactly 0, which show nothing, stay 0.
    """

    before: torch.Tensor
    after: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("before", torch.zeros(channels, len(LEVELS)))
        self.register_buffer("after", torch.zeros(channels, len(LEVELS)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        changed = (self.before != self.after).any(dim=1).tolist()
        mapped = [
            self._mapped(images[:, channel].contiguous(), channel) if differs else images[:, channel]
            for channel, differs in enumerate(changed)
        ]
        return torch.stack(mapped, dim=1)

    def _mapped(self, values: torch.Tensor, channel: int) -> torch.Tensor:
        before, after = self.before[channel].to(values), self.after[channel].to(values)
        widths = before[1:] - before[:-1]
        slopes = torch.where(widths > 0, (after[1:] - after[:-1]) / widths.clamp(min=torch.finfo(values.dtype).tiny), 0)
        piece = (torch.bucketize(values, before) - 1).clamp(0, len(LEVELS) - 2)
        return torch.where(values == 0, 0.0, after[piece] + (values - before[piece]) * slopes[piece])


@dataclass(frozen=True)
class CombatPart(Part):
    """The part ``combat``: each site has a curve of its own, which ``training.methods.combat.Combat`` computes."""

    name: ClassVar[str] = COMBAT

    def add(self, network: nn.Module, place: Place) -> None:
        see_first(network, COMBAT, SiteCurve(place.in_channels))

    def owners(self, network: nn.Module) -> Owners:
        return {COMBAT_BEFORE: PRIVATE, COMBAT_AFTER: PRIVATE}
