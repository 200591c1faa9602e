"""MedNeXt: a U of large depthwise convolutions, as MONAI builds it."""

from __future__ import annotations

from dataclasses import dataclass

from monai.networks.blocks.mednext_block import MedNeXtBlock
from monai.networks.nets import MedNeXt as MonaiMedNeXt
from torch import nn

from fedseg import allowed
from fedseg.errors import ConfigurationError
from fedseg.networks.arguments import MOST_CHANNELS, MOST_UNITS, NetworkArguments, Size, check_counts, check_levels
from fedseg.networks.parts.part import Level


@dataclass(frozen=True)
class MedNeXt(NetworkArguments):
    """MedNeXt (Roy et al., MICCAI 2023; MONAI ``MedNeXt``) with residual connections also where it samples.

    The paper's S has ``init_filters`` 32, ``expansion`` 2, ``kernel`` 3 or 5 and two blocks at each of five levels. The
    biases that a normalisation takes away are left out.

    Attributes:
        init_filters: feature maps at full resolution; each level below has twice as many.
        kernel: voxels of the depthwise convolutions along an axis, odd.
        expansion: how many times as many feature maps a block has within.
        blocks_down: blocks of each level of the encoder.
        blocks_bottom: blocks of the coarsest level.
        blocks_up: blocks of each level of the decoder, coarsest first; as many levels.
    """

    init_filters: int = 16
    kernel: int = 3
    expansion: int = 2
    blocks_down: tuple[int, ...] = (2, 2, 2)
    blocks_bottom: int = 2
    blocks_up: tuple[int, ...] = (2, 2, 2)

    @property
    def divisor(self) -> Size:
        factor = 2 ** len(self.blocks_down)
        return factor, factor, factor

    def build(self, in_channels: int, out_channels: int, patch_size: Size) -> nn.Module:
        network = MonaiMedNeXt(
            spatial_dims=3,
            init_filters=self.init_filters,
            in_channels=in_channels,
            out_channels=out_channels,
            encoder_expansion_ratio=self.expansion,
            decoder_expansion_ratio=self.expansion,
            bottleneck_expansion_ratio=self.expansion,
            kernel_size=self.kernel,
            use_residual_connection=True,
            blocks_down=self.blocks_down,
            blocks_bottleneck=self.blocks_bottom,
            blocks_up=self.blocks_up,
        )
        for block in network.modules():
            if isinstance(block, MedNeXtBlock):
                # A group for each feature map is instance normalisation, under the name that all networks here share.
                block.add_module("norm", nn.InstanceNorm3d(block.conv1.in_channels, affine=True))
                block.conv1.register_parameter("bias", None)
        return network

    @property
    def decoder(self) -> tuple[Level, ...]:
        levels = len(self.blocks_up)
        return tuple(Level(f"dec_stages.{levels - 1 - i}", self.init_filters << i) for i in range(1, levels))

    @property
    def stages(self) -> tuple[str, ...]:
        kinds = ("enc_stages", "down_blocks", "up_blocks", "dec_stages")
        return ("bottleneck", *(f"{kind}.{i}" for kind in kinds for i in range(len(self.blocks_down))))

    def bottleneck(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, MonaiMedNeXt)
        return network.bottleneck

    def head(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, MonaiMedNeXt)
        return network.out_0.conv_out

    @property
    def bottleneck_features(self) -> int:
        return self.init_filters << len(self.blocks_down)

    def check(self, where: str) -> None:
        super().check(where)
        check_counts(f"{where}.blocks_down", self.blocks_down, 1, MOST_UNITS)
        levels = len(self.blocks_down)
        check_counts(f"{where}.blocks_up", self.blocks_up, 1, MOST_UNITS)
        if len(self.blocks_up) != levels:
            raise ConfigurationError(f"{where}.blocks_up", self.blocks_up, f"{levels} numbers: as many as blocks_down")
        allowed.whole(f"{where}.blocks_bottom", self.blocks_bottom, most=MOST_UNITS)
        allowed.whole(f"{where}.expansion", self.expansion, most=16)
        # Doubled at each level.
        allowed.whole(f"{where}.init_filters", self.init_filters, most=MOST_CHANNELS >> levels)
        check_levels(f"{where}.kernel", (self.kernel,) if type(self.kernel) is int else None, 1, odd=True)
