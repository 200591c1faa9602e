"""A network whose layers mix those of several trained ones, by gates that follow from what enters each layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call

from fedseg.networks.weights import Arrays, is_averaged

_DROPPED = 0.1
_SHRINK = 4


class Router(nn.Module):
    """Gates of a layer, from its input x averaged over space: ``softmax(second(dropout(first(mean(x)))))``.

    A fresh one gives every expert the same gate, whatever the input.

    Attributes:
        first, second: linear layers, [channels / 4] and [experts] outputs.
    """

    def __init__(self, channels: int, experts: int) -> None:
        """Make a router.

        Args:
            channels: of the layer's input.
            experts: how many models are mixed.
        """
        super().__init__()
        hidden = max(1, channels // _SHRINK)
        self.first, self.second = nn.Linear(channels, hidden), nn.Linear(hidden, experts)
        self.dropout = nn.Dropout(_DROPPED)
        for values in self.second.parameters():
            nn.init.zeros_(values)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Gates [B, experts], from 0 to 1 with the sum 1, of an input [B, channels, ...]."""
        pooled = values.float().flatten(2).mean(dim=2) if values.dim() > 2 else values.float()
        gates: torch.Tensor = self.second(self.dropout(self.first(pooled))).softmax(dim=1)
        return gates


class RoutedLayer(nn.Module):
    """A layer whose arrays are sums over experts, weighted by the gates of the image that passes.

    Attributes:
        layer: gives the form; its own arrays play no part.
        router: of its gates.
        gates: of the last pass, [B, experts]; empty before it.
    """

    def __init__(self, layer: nn.Module, arrays: Sequence[Arrays], channels: int) -> None:
        """Take a layer.

        Args:
            layer: its direct parameters and buffers are replaced.
            arrays: of each expert, by their names in the layer.
            channels: of its input.
        """
        super().__init__()
        self.layer, self.router = layer, Router(channels, len(arrays))
        self.gates = torch.zeros(0, len(arrays))
        self._names = tuple(arrays[0])
        for name in self._names:
            stacked = torch.stack([torch.as_tensor(each[name]) for each in arrays])
            self.register_buffer(f"of_{name}", stacked, persistent=False)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the mixed layer gives; images whose gates are the same pass it together."""
        gates = self.router(inputs[0])
        self.gates = gates.detach()
        if bool((gates == gates[:1]).all()):
            return self._mixed(gates[0], inputs)
        return torch.cat([self._mixed(gate, [x[i : i + 1] for x in inputs]) for i, gate in enumerate(gates)])

    def _mixed(self, gate: torch.Tensor, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        arrays = {}
        for name in self._names:
            stacked: torch.Tensor = getattr(self, f"of_{name}")
            arrays[name] = (gate.to(stacked).view(-1, *[1] * (stacked.dim() - 1)) * stacked).sum(dim=0)
        output: torch.Tensor = functional_call(self.layer, arrays, tuple(inputs))
        return output


class RoutedNetwork(nn.Module):
    """Several trained networks of one form as one (the routing of IOP-FL: Jiang et al., IEEE TMI 2023).

    Every layer with arrays of its own, be it a convolution, a normalisation or an activation, has a router, and is for
    each image the sum of the experts' layers by the router's gates. In the publication only convolutions are mixed, and
    their gates are sigmoids that need not add up to 1. Here they do: with one expert the network is that one, with a
    gate of 1 it is that expert to the last bit, and with equal gates it is the mean of all.

    Integer buffers, and what no image passes in evaluation, are those of the first expert.

    Attributes:
        network: the form, with its layers replaced.
        experts: how many there are.
        layers: the replaced layers, by their former names.
    """

    def __init__(self, network: nn.Module, experts: Sequence[Arrays], example: Sequence[int], seed: int = 0) -> None:
        """Join networks.

        Args:
            network: in evaluation mode, with the arrays of the first expert; it belongs to this object from now on.
            experts: all arrays of each, by name; at least one.
            example: shape of an image that the network takes, [B, channels, X, Y, Z].
            seed: of the routers.
        """
        super().__init__()
        self.network, self.experts = network, len(experts)
        passed = _passed(network.eval().requires_grad_(False), example)
        self.layers: dict[str, RoutedLayer] = {}
        replaced: dict[int, RoutedLayer] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, module in list(network.named_modules()):
                own = [each for each in _own_names(module) if is_averaged(experts[0][_joined(name, each)])]
                if id(module) in passed and own:
                    arrays = [{each: expert[_joined(name, each)] for each in own} for expert in experts]
                    layer = RoutedLayer(module, arrays, passed[id(module)])
                    replaced[id(module)] = self.layers[name] = layer
        for parent in list(self.modules()):
            for name, child in parent._modules.items():
                parent._modules[name] = replaced.get(id(child), child)
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, out, ...] for images [B, C, ...]."""
        logits: torch.Tensor = self.network(images)
        return logits

    def routers(self) -> list[Router]:
        """Of all layers; theirs are the only parameters that change."""
        return [layer.router for layer in self.layers.values()]

    def shares(self) -> torch.Tensor:
        """The mean gate of each expert in the last pass, over its images and all layers: [experts], with the sum 1."""
        return torch.stack([layer.gates.mean(dim=0) for layer in self.layers.values()]).mean(dim=0)


def _passed(network: nn.Module, example: Sequence[int]) -> dict[int, int]:
    """Channels of the input of every module that an image passes, by the module's identity."""
    found: dict[int, int] = {}

    def see(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs and isinstance(inputs[0], torch.Tensor):
            found[id(module)] = inputs[0].shape[1]

    handles = [module.register_forward_pre_hook(see) for module in network.modules()]
    try:
        with torch.inference_mode():
            network(torch.zeros(*example))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _own_names(module: nn.Module) -> list[str]:
    """Names of the arrays that belong to a module itself and stand in its weights."""
    own = {name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))}
    return [name for name in module.state_dict() if name in own]


def _joined(name: str, array: str) -> str:
    return f"{name}.{array}" if name else array
