"""3D segmentation networks by name, with arguments checked before anything is built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import gcd, prod
from typing import Any

import torch
from monai.networks.nets import DynUNet, SegResNet, UNet
from torch import nn

from fedseg import allowed
from fedseg.errors import ConfigurationError
from fedseg.memory import check_memory
from fedseg.networks.layers import with_aliases
from fedseg.networks.parts.part import SHARED, Ownership, Part, Place
from fedseg.networks.parts.registry import parse_parts

Steps = tuple[int | tuple[int, int, int], ...]
"""For each level a number for all three axes, or one for each axis (x, y, z): thick slices need fewer steps across."""

NORMS = ("instance", "group")
INSTANCE = ("instance", {"affine": True})
# Far above every network that is used, and far below what a machine could not count or build in a moment.
MOST_LEVELS, MOST_CHANNELS, MOST_STEP, MOST_UNITS = 12, 4096, 15, 32


@dataclass(frozen=True)
class NetworkArguments(ABC):
    """What every network takes.

    Attributes:
        norm: ``instance`` (default: statistics of one image, none to share between sites) or ``group``.
    """

    norm: str = "instance"

    @property
    @abstractmethod
    def divisor(self) -> tuple[int, int, int]:
        """The factors by which each axis of a patch must be divisible (the product of the strides)."""

    @abstractmethod
    def build(self, in_channels: int, out_channels: int) -> nn.Module:
        """The network with instance normalisation and fresh weights from torch's current generator.

        It maps [B, in, X, Y, Z] to logits [B, out, X, Y, Z].
        """

    @abstractmethod
    def bottleneck(self, network: nn.Module) -> nn.Module:
        """The module of a network that was built with these arguments whose output is the coarsest representation.

        For an image [B, in, X, Y, Z] it gives [B, features, X/d, Y/d, Z/d] with d the ``divisor``.
        """

    def check(self, where: str) -> None:
        """Refuse arguments that cannot be built."""
        allowed.one_of(f"{where}.norm", self.norm, NORMS)


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
    def divisor(self) -> tuple[int, int, int]:
        return _product(self.strides)

    def build(self, in_channels: int, out_channels: int) -> nn.Module:
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

    def bottleneck(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, UNet)
        level: Any = network.model
        for _ in self.strides:  # each level is a sequence: down, a skip connection around the next level, up
            level = level[1].submodule
        return level

    def check(self, where: str) -> None:
        super().check(where)
        _check_counts(f"{where}.channels", self.channels, 2, MOST_CHANNELS)
        _check_levels(f"{where}.strides", self.strides, len(self.channels) - 1, "one fewer than channels")
        allowed.whole(f"{where}.res_units", self.res_units, most=MOST_UNITS)
        _check_levels(f"{where}.kernel", (self.kernel,), 1, odd=True)


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
    def divisor(self) -> tuple[int, int, int]:
        return _product(self.strides)

    def build(self, in_channels: int, out_channels: int) -> nn.Module:
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

    def bottleneck(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, DynUNet)
        return network.bottleneck

    def check(self, where: str) -> None:
        super().check(where)
        _check_counts(f"{where}.filters", self.filters, 3, MOST_CHANNELS)
        _check_levels(f"{where}.strides", self.strides, len(self.filters), "as many as filters")
        if self.kernels != ():
            _check_levels(f"{where}.kernels", self.kernels, len(self.filters), "as many as filters", odd=True)
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
    def divisor(self) -> tuple[int, int, int]:
        return _product((2,) * (len(self.blocks_down) - 1))

    def build(self, in_channels: int, out_channels: int) -> nn.Module:
        return SegResNet(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=out_channels,
            init_filters=self.init_filters,
            blocks_down=self.blocks_down,
            blocks_up=self.blocks_up,
            norm=INSTANCE,
        )

    def bottleneck(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, SegResNet)
        return network.down_layers[-1]

    def check(self, where: str) -> None:
        super().check(where)
        _check_counts(f"{where}.blocks_down", self.blocks_down, 2, MOST_UNITS)
        _check_counts(f"{where}.blocks_up", self.blocks_up, 1, MOST_UNITS)
        # Doubled at each level.
        allowed.whole(f"{where}.init_filters", self.init_filters, most=MOST_CHANNELS >> len(self.blocks_down) - 1)
        if (fewer := len(self.blocks_down) - 1) != len(self.blocks_up):
            raise ConfigurationError(
                f"{where}.blocks_up", self.blocks_up, f"{fewer} numbers: one fewer than blocks_down"
            )


NETWORKS: dict[str, type[NetworkArguments]] = {
    "residual_unet": ResidualUNet,
    "dynunet": DynamicUNet,
    "segresnet": ResidualSegmentation,
}


@dataclass(frozen=True)
class Network:
    """A network by name with its checked arguments.

    Attributes:
        name: one of ``NETWORKS``.
        arguments: the arguments, defaults filled in.
        parts: what is added to it, in this order.
    """

    name: str = "residual_unet"
    arguments: NetworkArguments = field(default_factory=ResidualUNet)
    parts: tuple[Part, ...] = ()

    def build(
        self, in_channels: int, out_channels: int, seed: int, patch_size: tuple[int, int, int] = (1, 1, 1)
    ) -> nn.Module:
        """The network with weights that depend on ``seed`` alone; torch's global generator is left as it was.

        Args:
            in_channels: of the image.
            out_channels: of the logits.
            seed: of the weights; those of the network are the same with and without parts.
            patch_size: of the images; matters to parts only.

        Raises:
            ConfigurationError: its weights do not fit into this machine's memory.
        """
        if torch.get_default_device().type != "meta":
            # Counted where arrays have shapes only, before memory is asked for their values.
            with torch.device("meta"):
                arrays = self.build(in_channels, out_channels, seed, patch_size).state_dict().values()
            check_memory(f"the network {self.name}", sum(value.nbytes for value in arrays))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.arguments.build(in_channels, out_channels)
            if self.arguments.norm == "group":
                network = _with_group_norm(network)
            for part in self.parts:
                part.add(network, Place(in_channels, out_channels, patch_size))
        return network

    def owners(self, network: nn.Module) -> dict[str, Ownership]:
        """Who owns the arrays of parts that not all sites share from the first round, under all of their names.

        Args:
            network: what ``build`` gave, on any device.
        """
        owners = {name: owner for part in self.parts for name, owner in part.owners(network).items()}
        owners = {name: owner for name, owner in owners.items() if owner != SHARED}
        return {alias: owner for name, owner in owners.items() for alias in sorted(with_aliases(network, [name]))}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form; ``parse_network`` reads it back to an equal network."""
        values = {f.name: getattr(self.arguments, f.name) for f in fields(self.arguments)}
        plain = {"name": self.name, **{name: _as_lists(value) for name, value in values.items()}}
        parts = [part.to_dict() for part in self.parts]
        return {**plain, "parts": parts} if parts else plain


def parse_network(declaration: str | Mapping[str, Any], where: str = "network") -> Network:
    """Check a network's name and arguments.

    Args:
        declaration: a name, or ``{"name": ..., argument: value..., "parts": [...]}``.
        where: how the user calls this place, for messages.

    Raises:
        ConfigurationError: the name or an argument is unknown, or a value is not allowed.
    """
    if not isinstance(declaration, str | Mapping):
        raise ConfigurationError(where, declaration, "a name or an object with name and arguments")
    values = {"name": declaration} if isinstance(declaration, str) else dict(declaration)
    name = values.pop("name", "residual_unet")
    parts = parse_parts(values.pop("parts", []), f"{where}.parts")
    if not isinstance(name, str) or name not in NETWORKS:
        raise ConfigurationError(f"{where}.name", name, f"one of {sorted(NETWORKS)}")
    known = {f.name for f in fields(NETWORKS[name])}
    for key, value in values.items():
        if key not in known:
            raise ConfigurationError(f"{where}.{key}", value, f"absent: {name} takes {sorted({*known, 'parts'})}")
    arguments = NETWORKS[name](**{key: _as_tuples(value) for key, value in values.items()})
    arguments.check(where)
    return Network(name, arguments, parts)


def _with_group_norm(network: nn.Module) -> nn.Module:
    """Put group normalisation (up to 8 groups) in the place of every instance normalisation."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.InstanceNorm3d):
                setattr(parent, name, nn.GroupNorm(gcd(8, child.num_features), child.num_features))
    return network


def _as_lists(value: Any) -> Any:
    return [_as_lists(entry) for entry in value] if isinstance(value, tuple) else value


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(entry) for entry in value) if isinstance(value, list) else value


def _product(strides: Steps) -> tuple[int, int, int]:
    """By how much all levels together shrink each axis."""
    x, y, z = (prod(step if isinstance(step, int) else step[axis] for step in strides) for axis in range(3))
    return x, y, z


def _check_levels(name: str, values: Any, levels: int, why: str = "", odd: bool = False) -> None:
    """Refuse what is not for each level a positive whole number, or three of them."""

    def fits(value: Any) -> bool:
        return type(value) is int and 0 < value <= MOST_STEP and not (odd and value % 2 == 0)

    given = values if isinstance(values, tuple) else ()
    triples = [value if isinstance(value, tuple) else (value,) * 3 for value in given]
    if len(given) != levels or not all(len(triple) == 3 and all(map(fits, triple)) for triple in triples):
        kind = "odd whole number" if odd else "positive whole number"
        many = f"{levels} entries, {why}, each " if why else ""
        raise ConfigurationError(name, _as_lists(values), f"{many}a {kind} or three (x, y, z), e.g. 3 or [3, 3, 1]")


def _check_counts(name: str, values: Any, least: int, most: int) -> None:
    ok = isinstance(values, Sequence) and least <= len(values) <= MOST_LEVELS
    if not ok or not all(type(v) is int and 0 < v <= most for v in values):
        allowed = f"at least {least} positive whole number(s), at most {MOST_LEVELS} and none above {most}"
        raise ConfigurationError(name, values, allowed)
