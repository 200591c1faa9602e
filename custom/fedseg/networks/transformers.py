"""Networks whose encoder is a transformer: Swin UNETR and UNETR, as MONAI builds them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from monai.networks.nets import UNETR as MonaiUNETR
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR
from monai.networks.nets.swin_unetr import WindowAttention
from torch import nn
from torch.overrides import TorchFunctionMode

from fedseg import allowed
from fedseg.errors import ConfigurationError
from fedseg.networks.arguments import (
    INSTANCE,
    MOST_CHANNELS,
    MOST_UNITS,
    NetworkArguments,
    Size,
    check_counts,
    check_levels,
)
from fedseg.networks.parts.part import Level

_STAGES, _BLOCKS = 4, 12
_PUBLISHED = re.compile(r"(?:module\.|encoder\.)?(patch_embed|layers[1-4])\.(.+)")
_PUBLISHED_MLP = re.compile(r"\bmlp\.fc([12])\.")
_TABLE = "relative_position_index"


@dataclass(frozen=True)
class SwinUNETR(NetworkArguments):
    """Swin UNETR (Hatamizadeh et al., BrainLes 2021; MONAI ``SwinUNETR``): attention within windows that shift.

    The publication has ``feature_size`` 48. What a window's voxels are to each other follows from ``window`` alone, so
    that table is no array of the network.

    Attributes:
        feature_size: feature maps at full and at half resolution, doubled at each level below; divisible by 12.
        depths: transformer blocks of the four stages, finest first.
        heads: of the attention of each stage; they divide its features, which are ``feature_size`` in the first one
            and twice as many in each of the next.
        window: along an axis, in tokens of a stage. A number, or one for each axis.
    """

    of_tokens: ClassVar[bool] = True
    feature_size: int = 24
    depths: tuple[int, ...] = (2, 2, 2, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int | tuple[int, int, int] = 7

    @property
    def divisor(self) -> Size:
        return 32, 32, 32

    def build(self, in_channels: int, out_channels: int, patch_size: Size) -> nn.Module:
        with _RatesOfDropout():
            network = MonaiSwinUNETR(
                in_channels=in_channels,
                out_channels=out_channels,
                depths=self.depths,
                num_heads=self.heads,
                window_size=self.window,
                feature_size=self.feature_size,
                norm_name=INSTANCE,
            )
        for module in network.modules():
            if isinstance(module, WindowAttention):
                table = module.get_buffer(_TABLE)
                delattr(module, _TABLE)
                module.register_buffer(_TABLE, table, persistent=False)
        return network

    @property
    def decoder(self) -> tuple[Level, ...]:
        return tuple(Level(f"decoder{level + 2}", self.feature_size << level) for level in range(_STAGES))

    @property
    def stages(self) -> tuple[str, ...]:
        convolutions = (*(f"encoder{i}" for i in (1, 2, 3, 4, 10)), *(f"decoder{i}" for i in range(1, 6)))
        return (*(f"swinViT.layers{i}.0" for i in range(1, _STAGES + 1)), *convolutions)

    def bottleneck(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, MonaiSwinUNETR)
        return network.encoder10

    @property
    def bottleneck_features(self) -> int:
        return self.feature_size << _STAGES

    def own_name(self, name: str) -> str:
        """The encoders that are published as trained without labels lack ``swinViT.`` and call two layers otherwise."""
        found = _PUBLISHED.fullmatch(name)
        if found is None:
            return name
        stage, rest = found.groups()
        rest = rest.removeprefix("0.") if rest.startswith("0.0.") else rest
        rest = _PUBLISHED_MLP.sub(r"mlp.linear\1.", rest)
        return f"swinViT.{stage}.{rest}"

    def check(self, where: str) -> None:
        super().check(where)
        _check_multiple(f"{where}.feature_size", self.feature_size, MOST_CHANNELS >> _STAGES, 12)
        check_counts(f"{where}.depths", self.depths, _STAGES, MOST_UNITS, _STAGES)
        check_counts(f"{where}.heads", self.heads, _STAGES, MOST_CHANNELS, _STAGES)
        features = [self.feature_size << stage for stage in range(_STAGES)]
        if any(count % heads for count, heads in zip(features, self.heads, strict=True)):
            raise ConfigurationError(f"{where}.heads", self.heads, f"divisors of the features {features}")
        check_levels(f"{where}.window", (self.window,), 1)


@dataclass(frozen=True)
class UNETR(NetworkArguments):
    """UNETR (Hatamizadeh et al., WACV 2022; MONAI ``UNETR``): a vision transformer over cubes of 16 voxels.

    It learns a vector for the place of each cube in a patch, so it takes images of one size alone.
    The publication has ``hidden_size`` 768, ``mlp_size`` 3072 and 12 ``heads``; there are always 12 blocks. MONAI's
    normalisations for a second image, which nothing passes, are left out.

    Attributes:
        feature_size: feature maps at full resolution; each level below has twice as many.
        hidden_size: of the vector of a cube.
        mlp_size: hidden units of the two layers behind each attention.
        heads: of the attention; they divide ``hidden_size``.
    """

    fixed_size: ClassVar[bool] = True
    of_tokens: ClassVar[bool] = True
    feature_size: int = 16
    hidden_size: int = 192
    mlp_size: int = 768
    heads: int = 3

    @property
    def divisor(self) -> Size:
        return 16, 16, 16

    def build(self, in_channels: int, out_channels: int, patch_size: Size) -> nn.Module:
        network = MonaiUNETR(
            in_channels=in_channels,
            out_channels=out_channels,
            img_size=patch_size,
            feature_size=self.feature_size,
            hidden_size=self.hidden_size,
            mlp_dim=self.mlp_size,
            num_heads=self.heads,
            norm_name=INSTANCE,
        )
        for block in network.vit.blocks:
            block.norm_cross_attn = nn.Identity()
        # The tokens as an image go through no module of their own on their way up, so they get one.
        up = network.decoder5.transp_conv
        convolution = up.conv
        del up.conv
        up.add_module("tokens", nn.Identity())
        up.add_module("conv", convolution)
        return network

    @property
    def decoder(self) -> tuple[Level, ...]:
        return tuple(Level(f"decoder{level + 2}", self.feature_size << level) for level in range(1, 4))

    @property
    def stages(self) -> tuple[str, ...]:
        # The bottleneck stands in decoder5, and what looks at it must look once.
        convolutions = (*(f"encoder{i}" for i in range(1, 5)), *(f"decoder{i}" for i in range(2, 5)))
        return (*(f"vit.blocks.{i}" for i in range(_BLOCKS)), *convolutions)

    def bottleneck(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, MonaiUNETR)
        return network.decoder5.transp_conv.get_submodule("tokens")

    @property
    def bottleneck_features(self) -> int:
        return self.hidden_size

    def check(self, where: str) -> None:
        super().check(where)
        allowed.whole(f"{where}.feature_size", self.feature_size, most=MOST_CHANNELS >> 3)
        allowed.whole(f"{where}.heads", self.heads, most=MOST_CHANNELS)
        _check_multiple(f"{where}.hidden_size", self.hidden_size, MOST_CHANNELS, self.heads)
        allowed.whole(f"{where}.mlp_size", self.mlp_size, most=4 * MOST_CHANNELS)


class _RatesOfDropout(TorchFunctionMode):
    """MONAI reads the rates of dropout out of an array, which has no values where networks are only counted."""

    def __torch_function__(
        self, called: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        return called(*args, **(given | {"device": "cpu"} if called is torch.linspace else given))


def _check_multiple(name: str, value: Any, most: int, factor: int) -> None:
    """Refuse what is no positive multiple of a number."""
    if allowed.whole(name, value, most=most) % factor:
        raise ConfigurationError(name, value, f"divisible by {factor}")
