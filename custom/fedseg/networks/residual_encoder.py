"""The residual encoder U-Net of nnU-Net's newer plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from fedseg.errors import ConfigurationError
from fedseg.networks.arguments import (
    MOST_CHANNELS,
    MOST_UNITS,
    NetworkArguments,
    Size,
    Steps,
    check_counts,
    check_levels,
    product,
)
from fedseg.networks.parts.part import Level

Step = int | tuple[int, int, int]
_SLOPE = 0.01


class ConvolutionBlock(nn.Module):
    """Convolution, instance normalisation and, unless left out, a leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Step, stride: Step = 1, active: bool = True) -> None:
        super().__init__()
        x, y, z = (kernel,) * 3 if isinstance(kernel, int) else kernel
        # A bias would be taken away by the normalisation.
        self.convolution = nn.Conv3d(inputs, outputs, kernel, stride, (x // 2, y // 2, z // 2), bias=False)
        self.normalisation: nn.Module = nn.InstanceNorm3d(outputs, affine=True)
        self.activation = nn.LeakyReLU(_SLOPE, inplace=True) if active else nn.Identity()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Features [B, outputs, ...] of [B, inputs, ...]."""
        result: torch.Tensor = self.activation(self.normalisation(self.convolution(values)))
        return result


class ResidualBlock(nn.Module):
    """Two convolutions beside a way around them that averages where they have strides (ResNet-D; He et al., 2019)."""

    def __init__(self, inputs: int, outputs: int, kernel: Step, stride: Step = 1) -> None:
        super().__init__()
        self.first = ConvolutionBlock(inputs, outputs, kernel, stride)
        self.second = ConvolutionBlock(outputs, outputs, kernel, active=False)
        around: list[nn.Module] = []
        if prod(product((stride,))) > 1:
            around.append(nn.AvgPool3d(stride, stride))
        if inputs != outputs:
            around.append(ConvolutionBlock(inputs, outputs, 1, active=False))
        self.around = nn.Sequential(*around)
        self.activation = nn.LeakyReLU(_SLOPE, inplace=True)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Features [B, outputs, ...] of [B, inputs, ...]."""
        result: torch.Tensor = self.activation(self.second(self.first(values)) + self.around(values))
        return result


class ResidualEncoder(nn.Module):
    """A U whose way down is made of residual blocks, and whose way up is plain.

    Attributes:
        stem: a convolution at full resolution.
        encoder: levels of it, finest first; each is a sequence of residual blocks, the first of which has the stride.
        ups, decoder: transposed convolutions and convolutions of the decoder, coarsest first.
        head: of the logits.
    """

    def __init__(self, arguments: ResidualEncoderUNet, in_channels: int, out_channels: int) -> None:
        super().__init__()
        features, strides, kernels = arguments.features, arguments.strides, arguments.kernels or (3,) * 99
        self.stem = ConvolutionBlock(in_channels, features[0], kernels[0])
        stages, inputs = [], features[0]
        for outputs, stride, kernel, count in zip(features, strides, kernels, arguments.blocks, strict=False):
            blocks = [ResidualBlock(inputs, outputs, kernel, stride)]
            blocks += [ResidualBlock(outputs, outputs, kernel) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
            inputs = outputs
        self.encoder = nn.ModuleList(stages)
        levels = range(len(features) - 2, -1, -1)
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(features[i + 1], features[i], strides[i + 1], strides[i + 1], bias=False) for i in levels
        )
        self.decoder = nn.ModuleList(
            _plain(2 * features[level], features[level], kernels[level], count)
            for level, count in zip(levels, arguments.blocks_up[::-1], strict=True)
        )
        self.head = nn.Conv3d(features[0], out_channels, 1)
        self.apply(_initialise)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits [B, out, ...] of an image [B, in, ...]."""
        values, skips = self.stem(image), []
        for stage in self.encoder:
            values = stage(values)
            skips.append(values)
        for up, block, skip in zip(self.ups, self.decoder, skips[-2::-1], strict=True):
            values = block(torch.cat([up(values), skip], dim=1))
        logits: torch.Tensor = self.head(values)
        return logits


@dataclass(frozen=True)
class ResidualEncoderUNet(NetworkArguments):
    """Residual encoder U-Net (Isensee et al., "nnU-Net revisited", MICCAI 2024).

    nnU-Net's plan L has ``features`` [32, 64, 128, 256, 320, 320] and ``blocks`` [1, 3, 4, 6, 6, 6]. Its convolutions
    have biases, which the normalisation behind them takes away; here they have none.

    Attributes:
        features: feature maps of each level, finest first.
        strides: stride of each level; the first is usually 1. A number, or one for each axis.
        blocks: residual blocks of each level of the encoder.
        blocks_up: convolutions of each level of the decoder, finest first; one fewer.
        kernels: voxels of the convolutions of each level along an axis, odd; empty for 3 everywhere.
    """

    features: tuple[int, ...] = (16, 32, 64, 128)
    strides: Steps = (1, 2, 2, 2)
    blocks: tuple[int, ...] = (1, 3, 4, 6)
    blocks_up: tuple[int, ...] = (1, 1, 1)
    kernels: Steps = ()

    @property
    def divisor(self) -> Size:
        return product(self.strides)

    @property
    def decoder(self) -> tuple[Level, ...]:
        levels = len(self.features) - 1
        return tuple(Level(f"decoder.{levels - 1 - i}", self.features[i]) for i in range(1, levels))

    @property
    def stages(self) -> tuple[str, ...]:
        levels = range(len(self.features))
        return ("stem", *(f"encoder.{i}" for i in levels), *(f"decoder.{i}" for i in levels[:-1]))

    def build(self, in_channels: int, out_channels: int, patch_size: Size) -> nn.Module:
        return ResidualEncoder(self, in_channels, out_channels)

    def bottleneck(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, ResidualEncoder)
        return network.encoder[-1]

    @property
    def bottleneck_features(self) -> int:
        return self.features[-1]

    def check(self, where: str) -> None:
        super().check(where)
        check_counts(f"{where}.features", self.features, 2, MOST_CHANNELS)
        levels = len(self.features)
        check_levels(f"{where}.strides", self.strides, levels, "as many as features")
        if product(self.strides[:1]) != (1, 1, 1):
            why = "Its output has the resolution of the first level, which must be that of the image."
            raise ConfigurationError(f"{where}.strides", self.strides, "1 first", why)
        if self.kernels != ():
            check_levels(f"{where}.kernels", self.kernels, levels, "as many as features", odd=True)
        check_counts(f"{where}.blocks", self.blocks, levels, MOST_UNITS, levels)
        check_counts(f"{where}.blocks_up", self.blocks_up, levels - 1, MOST_UNITS, levels - 1)


def _plain(inputs: int, outputs: int, kernel: Step, count: int) -> nn.Sequential:
    """Convolutions one after the other."""
    widths: Sequence[int] = [inputs] + [outputs] * (count - 1)
    return nn.Sequential(*(ConvolutionBlock(width, outputs, kernel) for width in widths))


def _initialise(module: nn.Module) -> None:
    """As nnU-Net: He's normal weights; a residual block begins as the way around it."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, ResidualBlock):
        nn.init.zeros_(module.second.normalisation.weight)  # type: ignore[arg-type]
