"""The networks that a plan may name: how each is built from its arguments by MONAI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.nets import DynUNet, SegResNet, UNet
from torch import nn

from fedseg import allowed
from fedseg.errors import ConfigurationError
from fedseg.networks.arguments import (
    INSTANCE,
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


@dataclass(frozen=True)
class ResidualUNet(NetworkArguments):
    """Residual 3D U-Net (Kerfoot et al., 2019; MONAI ``UNet``), the default.

    Attributes:
        channels: feature maps of each level, finest first.
        strides: downsampling between the levels; one fewer than ``channels``. A number, or one for each axis.
        res_units: convolutions in each residual unit.
        kernel: voxels of each convolution along an axis, odd. A number, or one for each axis.
    """

    channels: tuple[int, ...] = (16, 32, 64, 128)
    strides: Steps = (2, 2, 2)
    res_units: int = 2
    kernel: int | tuple[int, int, int] = 3

    @property
    def divisor(self) -> Size:
        return product(self.strides)

    def build(self, in_channels: int, out_channels: int, patch_size: Size) -> nn.Module:
        network = UNet(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=out_channels,
            channels=self.channels,
            strides=self.strides,  # type: ignore[arg-type]  # MONAI takes three numbers for a level, too
            kernel_size=self.kernel,
            up_kernel_size=self.kernel,
            num_res_units=self.res_units,
            norm=INSTANCE,
            bias=False,
        )
        # Only the last convolution is not followed by a normalisation, so only it keeps a bias.
        last = [m for m in network.modules() if isinstance(m, nn.Conv3d)][-1]
        last.bias = nn.Parameter(torch.zeros(out_channels))
        return network

    @property
    def decoder(self) -> tuple[Level, ...]:
        # What a level gives to the one above it has the channels of that one.
        finer = enumerate(self.channels[:-2], start=1)
        return tuple(Level(f"model{'.1.submodule' * depth}.2", count) for depth, count in finer)

    @property
    def stages(self) -> tuple[str, ...]:
        levels = [f"model{'.1.submodule' * depth}" for depth in range(len(self.channels))]
        return (*(f"{level}.{side}" for level in levels[:-1] for side in (0, 2)), levels[-1])

    def bottleneck(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, UNet)
        level: Any = network.model
        for _ in self.strides:  # each level is a sequence: down, a skip connection around the next level, up
            level = level[1].submodule
        return level

    @property
    def bottleneck_features(self) -> int:
        return self.channels[-1]

    def check(self, where: str) -> None:
        super().check(where)
        check_counts(f"{where}.channels", self.channels, 2, MOST_CHANNELS)
        check_levels(f"{where}.strides", self.strides, len(self.channels) - 1, "one fewer than channels")
        allowed.whole(f"{where}.res_units", self.res_units, most=MOST_UNITS)
        check_levels(f"{where}.kernel", (self.kernel,), 1, odd=True)


@dataclass(frozen=True)
class DynamicUNet(NetworkArguments):
    """nnU-Net's network (Isensee et al., Nat Methods 2021; MONAI ``DynUNet``).

    Attributes:
        filters: feature maps of each level, finest first.
        strides: stride of each level; the first is usually 1. A number, or one for each axis.
        residual: residual blocks instead of plain ones.
        kernels: voxels of the convolutions of each level along an axis, odd; empty for 3 everywhere. A number, or one
            for each axis.
    """

    filters: tuple[int, ...] = (16, 32, 64, 128)
    strides: Steps = (1, 2, 2, 2)
    residual: bool = False
    kernels: Steps = ()

    @property
    def divisor(self) -> Size:
        return product(self.strides)

    def build(self, in_channels: int, out_channels: int, patch_size: Size) -> nn.Module:
        return DynUNet(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=self.kernels or (3,) * len(self.filters),
            strides=self.strides,
            upsample_kernel_size=self.strides[1:],
            filters=self.filters,
            norm_name=INSTANCE,
            res_block=self.residual,
        )

    @property
    def decoder(self) -> tuple[Level, ...]:
        levels = len(self.filters) - 1
        return tuple(Level(f"upsamples.{levels - 1 - i}", self.filters[i]) for i in range(1, levels))

    @property
    def stages(self) -> tuple[str, ...]:
        between, up = len(self.filters) - 2, len(self.filters) - 1
        numbered = (
            f"{name}.{i}" for name, count in (("downsamples", between), ("upsamples", up)) for i in range(count)
        )
        return ("input_block", "bottleneck", *numbered)

    def bottleneck(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, DynUNet)
        return network.bottleneck

    @property
    def bottleneck_features(self) -> int:
        return self.filters[-1]

    def check(self, where: str) -> None:
        super().check(where)
        check_counts(f"{where}.filters", self.filters, 3, MOST_CHANNELS)
        check_levels(f"{where}.strides", self.strides, len(self.filters), "as many as filters")
        if self.kernels != ():
            check_levels(f"{where}.kernels", self.kernels, len(self.filters), "as many as filters", odd=True)
        allowed.switch(f"{where}.residual", self.residual)


@dataclass(frozen=True)
class ResidualSegmentation(NetworkArguments):
    """SegResNet (Myronenko, BraTS 2018; MONAI ``SegResNet``, without the autoencoder branch).

    Attributes:
        init_filters: feature maps of the first level; doubled at each level below.
        blocks_down: residual blocks of each level of the encoder.
        blocks_up: residual blocks of each level of the decoder; one fewer.
    """

    init_filters: int = 8
    blocks_down: tuple[int, ...] = (1, 2, 2, 4)
    blocks_up: tuple[int, ...] = (1, 1, 1)

    @property
    def divisor(self) -> Size:
        return product((2,) * (len(self.blocks_down) - 1))

    def build(self, in_channels: int, out_channels: int, patch_size: Size) -> nn.Module:
        return SegResNet(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=out_channels,
            init_filters=self.init_filters,
            blocks_down=self.blocks_down,
            blocks_up=self.blocks_up,
            norm=INSTANCE,
        )

    @property
    def decoder(self) -> tuple[Level, ...]:
        levels = len(self.blocks_up)
        return tuple(Level(f"up_layers.{levels - 1 - i}", self.init_filters << i) for i in range(1, levels))

    @property
    def stages(self) -> tuple[str, ...]:
        down, up = len(self.blocks_down), len(self.blocks_up)
        return (*(f"down_layers.{i}" for i in range(down)), *(f"up_layers.{i}" for i in range(up)))

    def bottleneck(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, SegResNet)
        return network.down_layers[-1]

    @property
    def bottleneck_features(self) -> int:
        return self.init_filters << len(self.blocks_up)

    def check(self, where: str) -> None:
        super().check(where)
        check_counts(f"{where}.blocks_down", self.blocks_down, 2, MOST_UNITS)
        check_counts(f"{where}.blocks_up", self.blocks_up, 1, MOST_UNITS)
        # Doubled at each level.
        allowed.whole(f"{where}.init_filters", self.init_filters, most=MOST_CHANNELS >> len(self.blocks_down) - 1)
        if (fewer := len(self.blocks_down) - 1) != len(self.blocks_up):
            raise ConfigurationError(
                f"{where}.blocks_up", self.blocks_up, f"{fewer} numbers: one fewer than blocks_down"
            )
