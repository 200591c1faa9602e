"""A standard scale of intensities: what landmarks of histograms are on average over the images of all sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from fedseg.networks.parts.part import FIXED, PREFIX, Owners, Part, Place, see_first
from fedseg.tasks.landmarks import LEVELS, MEDIAN, NORMAL

STANDARD_SCALE = "standard_scale"
LANDMARK_SUMS = f"{PREFIX}.{STANDARD_SCALE}.sums"
"""Name of the sums of landmarks among the arrays of a network."""


class StandardScale(nn.Module):
    """Maps the landmarks of a normal distribution, which images have by their normalisation, to mean landmarks.

    The scale has its median at 0, so that voxels that do not count stay 0, and is stretched so that mean landmarks of
    normal distributions are those of one: then nothing changes.

    Attributes:
        sums: of the images of all sites, for each channel: their relative landmarks, and how many images they are
            [C, L + 1]. While a channel has no image, as before the sites were asked, its images stay as they are.
    """

    sums: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(channels, len(LEVELS) + 1))

    def scale(self) -> torch.Tensor:
        """The standard landmarks of each channel, [C, L] in float64."""
        sums = self.sums.double()
        normal = torch.from_numpy(NORMAL).to(sums.device)
        means = sums[:, :-1] / sums[:, -1:].clamp(min=1)
        standard = (means - means[:, MEDIAN : MEDIAN + 1]) * (normal[-1] - normal[0])
        return torch.where(sums[:, -1:] > 0, standard, normal)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        normal = torch.from_numpy(NORMAL).to(images)
        scale = self.scale().to(images)
        slopes = (scale[:, 1:] - scale[:, :-1]) / (normal[1:] - normal[:-1])
        mapped = []
        for channel, known in enumerate((self.sums[:, -1] > 0).tolist()):
            values = images[:, channel].contiguous()
            if known:
                piece = (torch.bucketize(values, normal) - 1).clamp(0, len(LEVELS) - 2)
                values = scale[channel][piece] + (values - normal[piece]) * slopes[channel][piece]
                values = torch.where(images[:, channel] == 0, 0.0, values)
            mapped.append(values)
        return torch.stack(mapped, dim=1)


@dataclass(frozen=True)
class StandardScalePart(Part):
    """The part ``standard_scale``. Its landmarks come from the server, and no site changes them."""

    name: ClassVar[str] = STANDARD_SCALE

    def add(self, network: nn.Module, place: Place) -> None:
        see_first(network, STANDARD_SCALE, StandardScale(place.in_channels))

    def owners(self, network: nn.Module) -> Owners:
        return {LANDMARK_SUMS: FIXED}
