"""Each network as a sequence of named stages, so that it can be cut behind any of them.

A network of the registry is a U: stages that make the image coarser, a bottom, and stages that make it finer again and
read what was made on the way down. Here that is written as a straight line: every stage reads values that earlier
stages wrote, under their names. Behind which stage the line is cut then decides what must cross: every value that was
written before the cut and is read after it, skip connections included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedseg.errors import ConfigurationError
from fedseg.networks.arguments import NetworkArguments
from fedseg.networks.registry import NETWORKS, Network
from fedseg.networks.residual_encoder import ResidualEncoderUNet
from fedseg.networks.unets import DynamicUNet, ResidualSegmentation, ResidualUNet

IMAGE = "image"

Run = Callable[[Sequence[nn.Module], Sequence[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class Stage:
    """A step on the way from the image to the logits.

    Attributes:
        name: of the value that it writes, and of the cut behind it.
        modules: names of the modules that it uses, as the whole network calls them.
        reads: names of the values that it needs: ``image`` or earlier stages.
        run: how modules and values make the new value.
    """

    name: str
    modules: tuple[str, ...]
    reads: tuple[str, ...]
    run: Run


def stages_of(network: Network) -> tuple[Stage, ...]:
    """The stages of a network in the order in which they run; the last one writes the logits.

    Raises:
        ConfigurationError: no stages are declared for this network.
    """
    if type(network.arguments) not in _STAGES:
        known = f"a network that can be cut: {networks_with_cuts()}"
        raise ConfigurationError("network.name", network.name, known)
    return _STAGES[type(network.arguments)](network.arguments)


def networks_with_cuts() -> list[str]:
    """Names of the networks for which stages are declared."""
    return [name for name, kind in NETWORKS.items() if kind in _STAGES]


def cut_names(network: Network) -> tuple[str, ...]:
    """Where a network can be cut, from the image on: behind every stage but the last."""
    return tuple(stage.name for stage in stages_of(network)[:-1])


def cut_stages(network: Network, cut: str, where: str = "cut") -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
    """The stages before and after a cut.

    Args:
        network: with checked arguments.
        cut: one of ``cut_names``: the last stage at the site.
        where: how the user calls this place, for messages.

    Raises:
        ConfigurationError: the network has no such cut, or has parts.
    """
    if network.parts:
        why = "Each half would have to know which of its arrays belong to a part, and to whom."
        raise ConfigurationError(
            "network.parts", [part.name for part in network.parts], "left out of one that is cut", why
        )
    names = cut_names(network)
    if cut not in names:
        raise ConfigurationError(where, cut, f"one of {list(names)} for {network.name}")
    stages, behind = stages_of(network), names.index(cut) + 1
    return stages[:behind], stages[behind:]


def crossing(before: Sequence[Stage], after: Sequence[Stage]) -> tuple[str, ...]:
    """Names of the values that cross: written before, read after; in the order in which they are written."""
    read = {name for stage in after for name in stage.reads}
    return tuple(stage.name for stage in before if stage.name in read)


def _chain(modules: Sequence[nn.Module], values: Sequence[torch.Tensor]) -> torch.Tensor:
    (value,) = values
    for module in modules:
        value = module(value)
    return value


def _concatenate(modules: Sequence[nn.Module], values: Sequence[torch.Tensor]) -> torch.Tensor:
    """MONAI's ``SkipConnection`` puts the finer value first."""
    below, beside = values
    return modules[0](torch.cat([beside, below], dim=1))


def _pass_both(modules: Sequence[nn.Module], values: Sequence[torch.Tensor]) -> torch.Tensor:
    below, beside = values
    return modules[0](below, beside)


def _raise_and_concatenate(modules: Sequence[nn.Module], values: Sequence[torch.Tensor]) -> torch.Tensor:
    below, beside = values
    return modules[1](torch.cat([modules[0](below), beside], dim=1))


def _add(modules: Sequence[nn.Module], values: Sequence[torch.Tensor]) -> torch.Tensor:
    below, beside = values
    return modules[1](modules[0](below) + beside)


def _residual_unet(arguments: ResidualUNet) -> tuple[Stage, ...]:
    place, down, up = "model", [], []
    for _ in arguments.strides:
        down.append(f"{place}.0")
        up.append((f"{place}.2",))
        place += ".1.submodule"
    return _letter_u(down, place, up, _concatenate)


def _dynamic_unet(arguments: DynamicUNet) -> tuple[Stage, ...]:
    levels = len(arguments.filters) - 1
    down = ["input_block", *(f"downsamples.{i}" for i in range(levels - 1))]
    up = [(f"upsamples.{levels - 1 - i}",) for i in range(levels)]
    return _letter_u(down, "bottleneck", up, _pass_both, head="output_block")


def _residual_segmentation(arguments: ResidualSegmentation) -> tuple[Stage, ...]:
    levels = len(arguments.blocks_down) - 1
    down = [f"down_layers.{i}" for i in range(levels)]
    up = [(f"up_samples.{levels - 1 - i}", f"up_layers.{levels - 1 - i}") for i in range(levels)]
    return _letter_u(down, f"down_layers.{levels}", up, _add, stem="convInit", head="conv_final")


def _residual_encoder_unet(arguments: ResidualEncoderUNet) -> tuple[Stage, ...]:
    levels = len(arguments.features) - 1
    down = [f"encoder.{i}" for i in range(levels)]
    up = [(f"ups.{levels - 1 - i}", f"decoder.{levels - 1 - i}") for i in range(levels)]
    return _letter_u(down, f"encoder.{levels}", up, _raise_and_concatenate, stem="stem", head="head")


def _letter_u(
    down: Sequence[str],
    bottom: str,
    up: Sequence[tuple[str, ...]],
    join: Run,
    stem: str | None = None,
    head: str | None = None,
) -> tuple[Stage, ...]:
    """Stages of a U; ``down`` and ``up`` name the modules of each level, finest first, and levels count from 1."""
    stages = [Stage("stem", (stem,), (IMAGE,), _chain)] if stem else []
    for level, module in enumerate(down, start=1):
        stages.append(Stage(f"encoder{level}", (module,), (stages[-1].name if stages else IMAGE,), _chain))
    stages.append(Stage("bottom", (bottom,), (stages[-1].name,), _chain))
    for level in range(len(up), 0, -1):
        stages.append(Stage(f"decoder{level}", up[level - 1], (stages[-1].name, f"encoder{level}"), join))
    if head:
        stages.append(Stage("head", (head,), (stages[-1].name,), _chain))
    return tuple(stages)


_STAGES: dict[type[NetworkArguments], Callable[[Any], tuple[Stage, ...]]] = {
    ResidualUNet: _residual_unet,
    DynamicUNet: _dynamic_unet,
    ResidualSegmentation: _residual_segmentation,
    ResidualEncoderUNet: _residual_encoder_unet,
}
