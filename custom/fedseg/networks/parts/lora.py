"""Low-rank adapters: a network that is there already stays as it is, and small matrices beside it are trained."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import nn

from fedseg.allowed import number, setting, switch, texts, whole
from fedseg.errors import ConfigurationError
from fedseg.networks.layers import matching_names
from fedseg.networks.parts.part import FIXED, PREFIX, Owners, Part, Place, add_module

LORA = "lora"
_KINDS = nn.Conv3d, nn.ConvTranspose3d, nn.Linear


class Adapter(nn.Module):
    """What is added to the output of a layer: ``up(down(x)) * scale``, with ``down`` the layer's own kind with ``rank``
    outputs, and ``up`` a mix of these, which begins as zero.

    Source: Hu et al., "LoRA", ICLR 2022, section 4.1. A convolution's kernel is a matrix [outputs, inputs x kernel].
    """

    def __init__(self, layer: nn.Conv3d | nn.ConvTranspose3d | nn.Linear, rank: int, scale: float) -> None:
        """Make fresh matrices; a layer that has fewer inputs or outputs than ``rank`` gets as many as it has."""
        super().__init__()
        self.scale = scale
        self.down: nn.Module
        self.up: nn.Module
        if isinstance(layer, nn.Linear):
            rank = min(rank, layer.in_features, layer.out_features)
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            rank = min(rank, layer.in_channels * layer.weight[0, 0].numel(), layer.out_channels)
            form: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
            if isinstance(layer, nn.ConvTranspose3d):
                # Each output voxel of it is a sum over the kernel, so its outputs are mixed as those of a convolution.
                form["output_padding"] = layer.output_padding
            kind: Any = type(layer)
            self.down = kind(layer.in_channels, rank, layer.kernel_size, **form, bias=False)
            self.up = nn.Conv3d(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """What is added, of the layer's input."""
        added: torch.Tensor = self.up(self.down(values)) * self.scale
        return added


class _Beside:
    """Adds what an adapter gives; a copy of the network has a copy of it, with the copied adapter."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def __call__(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + self.adapter(inputs[0])


def _patterns(name: str, value: Any) -> tuple[str, ...]:
    return () if value in ([], ()) else texts(name, value, allowed='a list of patterns of names, e.g. ["*bias"]')


@dataclass(frozen=True)
class Lora(Part):
    """The part ``lora``, for a network whose weights a job brings: sites train and send the adapters alone.

    What an adapter adds is a product of two matrices, and the product of means is not the mean of products: the global
    adapter, made of the mean ``down`` and the mean ``up``, does not add the mean of what the sites' adapters add. With
    ``fixed_down`` all sites have the same ``down``, so that it does (FFA-LoRA: Sun et al., "Improving LoRA in
    privacy-preserving federated learning", ICLR 2024); of a convolution ``up`` is the smaller matrix to send, too.

    Attributes:
        rank: of the adapters.
        alpha: what they give is scaled by ``alpha / rank``.
        layers: names of the convolutions and linear layers that have one, with ``*`` and ``?``. Layers whose channels
            stand in groups have none.
        trained: names of arrays of the network that are trained beside them, e.g. those of normalisations.
        fixed_down: whether ``down`` of every adapter stays as the job's seed makes it, and ``up`` alone is trained.
    """

    name: ClassVar[str] = LORA
    needs_model: ClassVar[bool] = True
    rank: int = setting(4, whole, most=1024)
    alpha: float = setting(4.0, number, above=0, most=1e6)
    layers: tuple[str, ...] = setting(("*",), texts)
    trained: tuple[str, ...] = setting((), _patterns)
    fixed_down: bool = setting(False, switch)

    def add(self, network: nn.Module, place: Place) -> None:
        layers = {name: module for name, module in network.named_modules() if self._adapts(name, module)}
        if not layers:
            known = sorted(name for name, module in network.named_modules() if isinstance(module, _KINDS))
            raise ConfigurationError("network.parts: lora.layers", list(self.layers), f"patterns of some of {known}")
        adapters = nn.ModuleDict()
        for name, layer in layers.items():
            adapter = Adapter(layer, self.rank, self.alpha / self.rank)
            adapters[name.replace(".", "-")] = adapter
            layer.register_forward_hook(_Beside(adapter))
        add_module(network, LORA, adapters)

    def owners(self, network: nn.Module) -> Owners:
        trained = {name for pattern in self.trained for name in matching_names(network, pattern)}
        adapters = f"{PREFIX}.{LORA}."
        down = {n for n in network.state_dict() if n.startswith(adapters) and n.endswith(".down.weight")}
        own = {n for n in network.state_dict() if n.startswith(f"{PREFIX}.")} - (down if self.fixed_down else set())
        return {n: FIXED for n in network.state_dict() if n not in trained | own}

    def _adapts(self, name: str, module: nn.Module) -> bool:
        fits = isinstance(module, _KINDS) and getattr(module, "groups", 1) == 1 and not name.startswith(f"{PREFIX}.")
        return fits and any(fnmatchcase(name, pattern) for pattern in self.layers)
