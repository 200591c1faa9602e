"""The attacker of the inversion probe: a small decoder from features back to the image, trained on public images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedseg.networks.split.parts import Tensors

# Sub-voxel convolution up to this many voxels for each feature vector; beyond that its parameters would be too many.
_SUBVOXEL = 8


@dataclass(frozen=True)
class DecoderSettings:
    """How large the decoder is, and how long it trains.

    Attributes:
        steps: of Adam at most.
        passes: how often it sees each public voxel at most, so that small sets of small patches end the training
            earlier; None takes all steps.
        crop: voxels of a training crop along each axis, as near as the network's strides allow.
        batch: crops of a step.
        width: feature maps.
        blocks: residual blocks of two 3x3x3 convolutions.
        learning_rate: peak; rises over a tenth of the steps and falls along a cosine.
    """

    steps: int = 400
    passes: int | None = 10
    crop: int = 16
    batch: int = 4
    width: int = 16
    blocks: int = 2
    learning_rate: float = 5e-3

    def steps_for(self, voxels: int, crop: Sequence[int]) -> int:
        """Steps for so many public voxels in all, with crops of this size."""
        if self.passes is None:
            return self.steps
        return max(1, min(self.steps, ceil(self.passes * voxels / (self.batch * prod(crop)))))


class Decoder(nn.Module):
    """From the tensors that cross a cut to the image that they were made of.

    Each tensor is brought to the image's grid: where a feature vector stands for up to 2x2x2 voxels each of them gets
    values of its own (sub-voxel convolution; Shi et al., CVPR 2016), coarser ones are interpolated. The sum goes
    through residual blocks. Features and images are standardised by channel with the public ones' mean and deviation.
    """

    def __init__(self, features: Mapping[str, torch.Tensor], images: torch.Tensor, settings: DecoderSettings) -> None:
        """Build a decoder for the shapes, means and deviations of what it will be trained on.

        Args:
            features: by name, [N, features, X', Y', Z'].
            images: [N, C, X, Y, Z]; each axis a whole multiple of the features'.
            settings: its size.
        """
        super().__init__()
        self.scales = {name: scale_of(value, images) for name, value in features.items()}
        self.width = settings.width
        # By position, because names of arrays may hold dots, which modules may not.
        self.names = sorted(features)
        self.standards = nn.ModuleList(_Standard(features[name]) for name in self.names)
        self.image_standard = _Standard(images)
        self.entries = nn.ModuleList(
            nn.Conv3d(features[name].shape[1], self.width * self._subvoxels(name), 1) for name in self.names
        )
        self.blocks = nn.ModuleList(_residual(self.width) for _ in range(settings.blocks))
        self.head = nn.Conv3d(self.width, images.shape[1], 1)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Images [N, C, X, Y, Z] of features."""
        return self.image_standard.undo(self.standardised(features))

    def standardised(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Images in public deviations from the public mean."""
        parts = zip(self.names, self.standards, self.entries, strict=True)
        hidden = torch.stack([self._raised(name, entry(standard(features[name]))) for name, standard, entry in parts])
        value = hidden.sum(0)
        for block in self.blocks:
            value = value + block(value)
        return self.head(value)

    def _subvoxels(self, name: str) -> int:
        count = prod(self.scales[name])
        return count if count <= _SUBVOXEL else 1

    def _raised(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """A projected tensor on the image's grid; interpolation and 1x1x1 convolution may change places."""
        i, j, k = self.scales[name]
        if self._subvoxels(name) == 1:
            return functional.interpolate(value, scale_factor=(i, j, k), mode="trilinear") if i * j * k > 1 else value
        n, _, x, y, z = value.shape
        parts = value.reshape(n, self.width, i, j, k, x, y, z).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return parts.reshape(n, self.width, x * i, y * j, z * k)


class _Standard(nn.Module):
    """Mean 0 and deviation 1 by channel, as measured on some tensors [N, C, X, Y, Z]."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", values.mean((0, 2, 3, 4), keepdim=True))
        spread = values.std((0, 2, 3, 4), keepdim=True)
        self.register_buffer("deviation", torch.where(spread > 0, spread, torch.ones_like(spread)))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return (values - self.mean) / self.deviation

    def undo(self, values: torch.Tensor) -> torch.Tensor:
        return values * self.deviation + self.mean


def fit_decoder(
    features: Mapping[str, torch.Tensor],
    images: torch.Tensor,
    stride: Sequence[int],
    settings: DecoderSettings,
    seed: int,
    device: torch.device | str = "cpu",
) -> tuple[Decoder, int]:
    """Train a decoder on public images and their features.

    Args:
        features: by name, [N, features, X', Y', Z'].
        images: [N, C, X, Y, Z], float32.
        stride: by which every axis is divisible; corners of crops are multiples of it, so that crops of features and of
            images lie at the same place.
        settings: size and effort.
        seed: of weights and crops: equal seeds give equal decoders.
        device: a torch device.

    Returns:
        The decoder in evaluation mode, and its number of steps.
    """
    crop = crop_size(images.shape[2:], stride, settings.crop)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(features, images, settings).to(device)
    steps = settings.steps_for(images[:, 0].numel(), crop)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, steps + 1, pct_start=0.1)
    generator = np.random.default_rng(seed)
    for _ in range(steps):
        drawn = [_draw(features, images, stride, crop, decoder.scales, generator) for _ in range(settings.batch)]
        batch = {name: torch.stack([part[name] for part, _ in drawn]).to(device) for name in features}
        wanted = decoder.image_standard(torch.stack([image for _, image in drawn]).to(device))
        loss = functional.mse_loss(decoder.standardised(batch), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return decoder.eval(), steps


def crop_size(size: Sequence[int], stride: Sequence[int], wanted: int) -> tuple[int, ...]:
    """The largest crop up to ``wanted`` voxels along each axis that is a multiple of the stride, and at least one."""
    return tuple(min(length, max(s, wanted // s * s)) for length, s in zip(size, stride, strict=True))


def cut_out(value: torch.Tensor, corner: Sequence[int], size: Sequence[int], scale: Sequence[int]) -> torch.Tensor:
    """Of one sample [C, X', Y', Z'] the part that belongs to voxels from ``corner`` on, in ``size`` of the image.

    Args:
        value: an image (scale 1), or features.
        corner: first voxel in the image, divisible by the scale.
        size: voxels in the image, divisible by the scale.
        scale: voxels for each place of ``value`` along each axis.
    """
    window = (slice(c // k, (c + s) // k) for c, s, k in zip(corner, size, scale, strict=True))
    return value[(slice(None), *window)]


def scale_of(features: torch.Tensor, images: torch.Tensor) -> tuple[int, int, int]:
    """Voxels of the image for each place of a tensor [N, features, X', Y', Z'], along each axis."""
    x, y, z = (voxels // places for voxels, places in zip(images.shape[2:], features.shape[2:], strict=True))
    return x, y, z


def _draw(
    features: Mapping[str, torch.Tensor],
    images: torch.Tensor,
    stride: Sequence[int],
    crop: Sequence[int],
    scales: Mapping[str, Sequence[int]],
    generator: np.random.Generator,
) -> tuple[Tensors, torch.Tensor]:
    """Features and image of one random crop."""
    index = int(generator.integers(len(images)))
    room = [(have - want) // s for have, want, s in zip(images.shape[2:], crop, stride, strict=True)]
    corner = [int(generator.integers(r + 1)) * s for r, s in zip(room, stride, strict=True)]
    parts = {name: cut_out(value[index], corner, crop, scales[name]) for name, value in features.items()}
    return parts, cut_out(images[index], corner, crop, (1, 1, 1))


def _residual(width: int) -> nn.Sequential:
    """Begins as nothing, so that the decoder begins as a linear one and trains steadily."""
    last = nn.Conv3d(width, width, 3, padding=1)
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Conv3d(width, width, 3, padding=1), nn.LeakyReLU(0.1), last)
