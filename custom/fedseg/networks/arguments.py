"""What every network takes, and how its arguments are checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from torch import nn

from fedseg import allowed
from fedseg.errors import ConfigurationError
from fedseg.networks.parts.part import Level

Steps = tuple[int | tuple[int, int, int], ...]
"""For each level a number for all three axes, or one for each axis (x, y, z): thick slices need fewer steps across."""

Size = tuple[int, int, int]

NORMS = ("instance", "group", "batch")
INSTANCE = ("instance", {"affine": True})
# Far above every network that is used, and far below what a machine could not count or build in a moment.
MOST_LEVELS, MOST_CHANNELS, MOST_STEP, MOST_UNITS = 12, 4096, 15, 32


@dataclass(frozen=True)
class NetworkArguments(ABC):
    """What every network takes.

    Attributes:
        norm: ``instance`` (default: statistics of one image, none to share between sites), ``group``, or ``batch``
            (statistics of a batch in training; afterwards running means, which are averaged over sites like weights
            unless a method keeps them).
        fixed_size: whether it takes images of the patch size for which it was built, and no others.
        of_tokens: whether layers of it see tokens in the place of an image: their first axis need not be the batch.
    """

    fixed_size: ClassVar[bool] = False
    of_tokens: ClassVar[bool] = False

    norm: str = "instance"

    @property
    @abstractmethod
    def divisor(self) -> Size:
        """The factors by which each axis of a patch must be divisible (the product of the strides)."""

    @abstractmethod
    def build(self, in_channels: int, out_channels: int, patch_size: Size) -> nn.Module:
        """The network with instance normalisation and fresh weights from torch's current generator.

        It maps [B, in, X, Y, Z] to logits [B, out, X, Y, Z]. ``patch_size`` matters to networks of ``fixed_size`` only.
        """

    def example_size(self, patch_size: Size) -> Size:
        """A small image that the network takes, [X, Y, Z]; ``patch_size`` is that of its task."""
        if self.fixed_size:
            return patch_size
        x, y, z = (2 * factor for factor in self.divisor)
        return x, y, z

    def own_name(self, name: str) -> str:
        """What the network calls an array that published weights call ``name``; the same unless it says otherwise."""
        return name

    @abstractmethod
    def bottleneck(self, network: nn.Module) -> nn.Module:
        """The module of a network that was built with these arguments whose output is the coarsest representation.

        For an image [B, in, X, Y, Z] it gives [B, features, X/d, Y/d, Z/d] with d the ``divisor``, and
        ``bottleneck_features`` many features.
        """

    def head(self, network: nn.Module) -> nn.Module:
        """The convolution that gives the logits, of a network that was built with these arguments: the last one, unless
        a network says otherwise."""
        return [module for module in network.modules() if isinstance(module, nn.Conv3d)][-1]

    @property
    @abstractmethod
    def bottleneck_features(self) -> int:
        """Feature maps of the coarsest level."""

    @property
    def decoder(self) -> tuple[Level, ...]:
        """Levels of the decoder below full resolution, finest first; none unless a network says so."""
        return ()

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the modules in which the network computes nearly all, none within another, for activation
        checkpointing; none unless a network says so."""
        return ()

    def check(self, where: str) -> None:
        """Refuse arguments that cannot be built."""
        allowed.one_of(f"{where}.norm", self.norm, NORMS)


def product(strides: Steps) -> Size:
    """By how much all levels together shrink each axis."""
    x, y, z = (prod(step if isinstance(step, int) else step[axis] for step in strides) for axis in range(3))
    return x, y, z


def check_levels(name: str, values: Any, levels: int, why: str = "", odd: bool = False) -> None:
    """Refuse what is not for each level a positive whole number, or three of them."""

    def fits(value: Any) -> bool:
        return type(value) is int and 0 < value <= MOST_STEP and not (odd and value % 2 == 0)

    given = values if isinstance(values, tuple) else ()
    triples = [value if isinstance(value, tuple) else (value,) * 3 for value in given]
    if len(given) != levels or not all(len(triple) == 3 and all(map(fits, triple)) for triple in triples):
        kind = "odd whole number" if odd else "positive whole number"
        many = f"{levels} entries, {why}, each " if why else ""
        remedy = "Change both together." if why and len(given) != levels else ""
        raise ConfigurationError(name, values, f"{many}a {kind} or three (x, y, z), e.g. 3 or [3, 3, 1]", remedy)


def check_counts(name: str, values: Any, least: int, most: int, longest: int = MOST_LEVELS) -> None:
    """Refuse what is not at least so many positive whole numbers, none of them too large."""
    ok = isinstance(values, Sequence) and least <= len(values) <= longest
    if not ok or not all(type(v) is int and 0 < v <= most for v in values):
        allowed = f"at least {least} positive whole number(s), at most {longest} and none above {most}"
        raise ConfigurationError(name, values, allowed)
