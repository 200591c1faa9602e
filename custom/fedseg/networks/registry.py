"""3D segmentation networks by name, with arguments checked before anything is built."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from math import gcd
from typing import Any

import torch
from torch import nn

from fedseg.errors import ConfigurationError, as_lists
from fedseg.memory import check_memory
from fedseg.networks.arguments import NetworkArguments, Size
from fedseg.networks.checkpointing import checkpoint_activations
from fedseg.networks.layers import with_aliases
from fedseg.networks.mednext import MedNeXt
from fedseg.networks.parts.part import SHARED, Level, Ownership, Part, Place
from fedseg.networks.parts.registry import parse_parts
from fedseg.networks.residual_encoder import ResidualEncoderUNet
from fedseg.networks.transformers import UNETR, SwinUNETR
from fedseg.networks.unets import DynamicUNet, ResidualSegmentation, ResidualUNet

NETWORKS: dict[str, type[NetworkArguments]] = {
    "residual_unet": ResidualUNet,
    "dynunet": DynamicUNet,
    "segresnet": ResidualSegmentation,
    "residual_encoder_unet": ResidualEncoderUNet,
    "mednext": MedNeXt,
    "swin_unetr": SwinUNETR,
    "unetr": UNETR,
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
        self,
        in_channels: int,
        out_channels: int,
        seed: int,
        patch_size: Size = (1, 1, 1),
        checkpointing: bool = False,
    ) -> nn.Module:
        """The network with weights that depend on ``seed`` alone; torch's global generator is left as it was.

        Args:
            in_channels: of the image.
            out_channels: of the logits.
            seed: of the weights; those of the network are the same with and without parts.
            patch_size: of the images; matters to parts and to networks of one size only.
            checkpointing: whether training computes its stages twice, see ``checkpoint_activations``.

        Raises:
            ConfigurationError: its weights do not fit into this machine's memory.
        """
        if torch.get_default_device().type != "meta":
            # Counted where arrays have shapes only, before memory is asked for their values.
            with torch.device("meta"):
                whole = self.build(in_channels, out_channels, seed, patch_size)
            # Also the buffers that are no weights, such as the tables of windows.
            check_memory(f"the network {self.name}", sum(v.nbytes for v in (*whole.parameters(), *whole.buffers())))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            another = partial(self._bare, in_channels, out_channels, patch_size, checkpointing)
            network = another()
            if self.parts:
                place = self._place(network, in_channels, out_channels, patch_size, another)
                for part in self.parts:
                    part.add(network, place)
        return network

    def _place(
        self,
        network: nn.Module,
        in_channels: int,
        out_channels: int,
        patch_size: Size,
        another: Callable[[], nn.Module],
    ) -> Place:
        """What parts are added to: a network that has none yet."""
        names = {id(module): name for name, module in network.named_modules()}
        bottleneck, head = (names[id(find(network))] for find in (self.arguments.bottleneck, self.arguments.head))
        level = Level(bottleneck, self.arguments.bottleneck_features)
        return Place(
            in_channels,
            out_channels,
            patch_size,
            self.arguments.decoder,
            level,
            another,
            head,
        )

    def _bare(self, in_channels: int, out_channels: int, patch_size: Size, checkpointing: bool) -> nn.Module:
        """A network without parts, with fresh weights of torch's current generator."""
        network = self.arguments.build(in_channels, out_channels, patch_size)
        if self.arguments.norm != "instance":
            network = _with_norm(network, _OTHER_NORMS[self.arguments.norm])
        if checkpointing:
            checkpoint_activations(network, self.arguments.stages)
        return network

    def require_part(self, name: str, needed_by: str) -> None:
        """Refuse a network without a part.

        Args:
            name: of the part.
            needed_by: the component that works with it.

        Raises:
            ConfigurationError: it has no part of the name.
        """
        found = [part.name for part in self.parts]
        if name not in found:
            raise ConfigurationError("network.parts", found, f'a list with {{"name": "{name}"}} for {needed_by}')

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
        plain = {"name": self.name, **{name: as_lists(value) for name, value in values.items()}}
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
    _check(arguments, where, values)
    for number, part in enumerate(parts):
        part.check(arguments.decoder, f"{where}.parts[{number}]")
    return Network(name, arguments, parts)


def _check(arguments: NetworkArguments, where: str, given: Collection[str]) -> None:
    """Refuse arguments that cannot be built; of one that nobody wrote it says that it is the default."""
    try:
        arguments.check(where)
    except ConfigurationError as error:
        if (key := error.name.removeprefix(f"{where}.")) in given or key == error.name:
            raise
        remedy = f"{error.remedy} This value is the default: give {error.name}, too.".strip()
        raise ConfigurationError(error.name, error.value, error.allowed, remedy) from None


def _group_norm(features: int) -> nn.Module:
    """Group normalisation with up to 8 groups."""
    return nn.GroupNorm(gcd(8, features), features)


_OTHER_NORMS: dict[str, Callable[[int], nn.Module]] = {"group": _group_norm, "batch": nn.BatchNorm3d}


def _with_norm(network: nn.Module, make: Callable[[int], nn.Module]) -> nn.Module:
    """Put another normalisation in the place of every instance normalisation; scales and offsets stay."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.InstanceNorm3d):
                other = make(child.num_features)
                # What a batch normalisation counts besides has no counterpart.
                other.load_state_dict(child.state_dict(), strict=False)
                setattr(parent, name, other)
    return network


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(entry) for entry in value) if isinstance(value, list) else value
