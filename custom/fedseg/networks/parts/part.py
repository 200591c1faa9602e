"""What a part of a network is, and who owns an array."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

PREFIX = "parts"
_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class Ownership:
    """Which sites train an array of the network, from when on, and whether they send it.

    A site that does not train an array keeps it as the server sent it, and does not send it back.

    >>> ct = Ownership(sites=("ct-*",), from_round=2)
    >>> ct.trained("ct-1", 2), ct.trained("ct-1", 1), ct.trained("mr-1", 2)
    (True, False, False)
    >>> PRIVATE.trained("ct-1", 0), PRIVATE.sent("ct-1", 0)
    (True, False)

    Attributes:
        private: each site has an array of its own, which never leaves it.
        sites: names of the sites that share it, with ``*``, ``?`` and ``[...]``; all unless others are named.
        from_round: first round in which it is trained.
    """

    private: bool = False
    sites: tuple[str, ...] = ("*",)
    from_round: int = 0

    @property
    def alone(self) -> Ownership:
        """Of the same array where one place trains all that any site trains, and hands it on."""
        return Ownership(from_round=self.from_round) if self.sites else self

    def trained(self, site: str, round_number: int) -> bool:
        """Whether a site trains the array in a round."""
        return round_number >= self.from_round and any(fnmatchcase(site, pattern) for pattern in self.sites)

    def sent(self, site: str, round_number: int) -> bool:
        """Whether the array is in a site's update of a round."""
        return not self.private and self.trained(site, round_number)


SHARED, PRIVATE, FIXED = Ownership(), Ownership(private=True), Ownership(sites=())
Owners = Mapping[str, Ownership]
"""By the names of a network's arrays; an array that is not named is shared by all sites."""


@dataclass(frozen=True)
class Level:
    """A level of a network: one of its decoder, or the bottleneck.

    Attributes:
        module: name of the module whose output [B, features, ...] it is.
        features: feature maps of that output.
    """

    module: str
    features: int


@dataclass(frozen=True)
class Place:
    """What a part is added to.

    Attributes:
        in_channels, out_channels: of the whole network.
        patch_size: of the images that it sees, [X, Y, Z].
        decoder: levels of the decoder below full resolution, finest first; empty where the network tells none.
        bottleneck: the coarsest level; None where a module is built by itself, outside of a network.
        another: makes a further network of the same kind, without parts and with other fresh weights.
        head: name of the convolution that gives the logits; empty where there is no network.
    """

    in_channels: int
    out_channels: int
    patch_size: tuple[int, int, int]
    decoder: tuple[Level, ...] = ()
    bottleneck: Level | None = None
    another: Callable[[], nn.Module] | None = None
    head: str = ""


@dataclass(frozen=True)
class Part(ABC):
    """A part by its checked arguments, each a field that is made by ``allowed.setting``.

    A module of this folder that declares one is all that a plan needs to name it.

    >>> @dataclass(frozen=True)
    ... class Offset(Part):
    ...     name = "offset"
    ...     def add(self, network, place):
    ...         see_first(network, "offset", nn.Conv3d(place.in_channels, place.in_channels, 1))
    ...     def owners(self, network):
    ...         return {f"{PREFIX}.offset.bias": PRIVATE}
    >>> network = nn.Conv3d(1, 2, 3)
    >>> Offset().add(network, Place(1, 2, (8, 8, 8)))
    >>> list(network.state_dict())
    ['weight', 'bias', 'parts.offset.weight', 'parts.offset.bias']

    Attributes:
        name: under which plans name it.
        one_size: whether it takes images of the task's patch size only.
        needs_model: whether it is for a network that was trained before, so that a job must bring one.
    """

    name: ClassVar[str]
    one_size: ClassVar[bool] = False
    needs_model: ClassVar[bool] = False

    @abstractmethod
    def add(self, network: nn.Module, place: Place) -> None:
        """Change a network that was just built, of which other parts may have been added before.

        The names of the arrays that it had stay as they are. Fresh weights come from torch's current generator.
        """

    def begin(self, network: nn.Module) -> None:
        """Start from a model that was trained without this part, whose weights the network was just given.

        The part's own arrays are fresh, and stay so unless a part says otherwise.
        """

    def owners(self, network: nn.Module) -> Owners:
        """Of the arrays that are not shared by all sites from the first round: by name, given the whole network."""
        return {}

    def check(self, decoder: Sequence[Level], where: str) -> None:
        """Refuse a network to which it cannot be added.

        Args:
            decoder: see ``Place``.
            where: how the user calls the part, for messages.

        Raises:
            ConfigurationError: names the argument, or the network.
        """

    def check_channels(self, channels: Sequence[str], optional: Collection[str], where: str) -> None:
        """Refuse a task whose images it cannot take.

        Args:
            channels: of the task.
            optional: those that a case may lack.
            where: how the user calls the part, for messages.

        Raises:
            ConfigurationError: names the argument, or the channels.
        """

    def takes(self, site: str) -> bool:
        """Whether a site can train a network with this part; all can, unless a part says otherwise."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form of name and arguments."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"name": self.name, **{n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}}


def add_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Give a network the module of a part, whose arrays are named ``parts.<name>.*``."""
    if not hasattr(network, PREFIX):
        network.add_module(PREFIX, nn.ModuleDict())
    network.get_submodule(PREFIX).add_module(name, module)


def module_of(network: nn.Module, name: str, kind: type[_Module]) -> _Module:
    """The module of a part of a network that has it."""
    module = network.get_submodule(f"{PREFIX}.{name}")
    assert isinstance(module, kind)
    return module


def see_first(network: nn.Module, name: str, module: nn.Module) -> None:
    """Let a module change the image before the network sees it; its arrays are named ``parts.<name>.*``.

    Args:
        network: a whole network; its class stays what it was.
        name: of the part.
        module: of images [B, C, X, Y, Z], to the same shape.
    """
    add_module(network, name, module)
    network.register_forward_pre_hook(_First(name))


class Call:
    """Calls a method of a module, as a hook of another; a copy of the network has a copy of both."""

    def __init__(self, module: nn.Module, method: str) -> None:
        self.module, self.method = module, method

    def __call__(self, *arguments: Any) -> Any:
        return getattr(self.module, self.method)(*arguments)


class _First:
    """Calls the module by its name, so that a copy of the network calls the copy's."""

    def __init__(self, name: str) -> None:
        self.name = f"{PREFIX}.{name}"

    def __call__(self, network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return network.get_submodule(self.name)(inputs[0]), *inputs[1:]
