"""Normalisation by modality: images of each modality have a scale and an offset of their own in every normalisation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from fedseg.allowed import setting
from fedseg.errors import ConfigurationError
from fedseg.networks.parts.part import PREFIX, Owners, Ownership, Part, Place, add_module, module_of

MODALITY_NORM = "modality_norm"
_LAYERS = (nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm)


class Branches(nn.Module):
    """Scales and offsets of all modalities but the first, which has those that the network had; and whose image it is.

    Attributes:
        scales, offsets: by the number of the modality and the place of the layer (``1_0``), [features].
        modality: number of the modality of each image of the present batch, [B].
    """

    def __init__(self, layers: Sequence[nn.Module], modalities: int) -> None:
        super().__init__()
        self.scales, self.offsets = nn.ParameterDict(), nn.ParameterDict()
        self.modality = torch.zeros(0, dtype=torch.long)
        for number in range(1, modalities):
            for place, layer in enumerate(layers):
                scale, offset = _affine(layer)
                self.scales[f"{number}_{place}"] = nn.Parameter(scale.detach().clone())
                self.offsets[f"{number}_{place}"] = nn.Parameter(offset.detach().clone())

    def take_over(self, layers: Sequence[nn.Module]) -> None:
        """Give every branch the scale and the offset of its layer."""
        with torch.no_grad():
            for key in self.scales:
                scale, offset = _affine(layers[int(key.partition("_")[2])])
                self.scales[key].copy_(scale)
                self.offsets[key].copy_(offset)

    def see(self, images: torch.Tensor) -> None:
        """Take from images [B, C, X, Y, Z] which channel, that is modality, each has; the first one if it has several.

        A patch of zeros counts as one of the first modality: it shows nothing of any.
        """
        self.modality = images.flatten(2).any(dim=2).int().argmax(dim=1)

    def of(self, number: int, place: int, layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and offset [features] of a modality in a layer."""
        key = f"{number}_{place}"
        return (self.scales[key], self.offsets[key]) if number else _affine(layer)


class _See:
    """Lets the branches see the image before the network does; a copy of the network has a copy of the branches."""

    def __init__(self, branches: Branches) -> None:
        self.branches = branches

    def __call__(self, network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.branches.see(inputs[0])


class _Branch:
    """Normalises with the branch of each image's modality, in the place of a layer."""

    def __init__(self, branches: Branches, place: int) -> None:
        self.branches, self.place = branches, place

    def __call__(self, layer: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        found = sorted(set(self.branches.modality.tolist()))
        if found == [0]:
            return None
        parts = {number: self._normalised(layer, inputs[0], number) for number in found}
        if len(found) == 1:
            return parts[found[0]]
        return torch.stack([parts[number][i] for i, number in enumerate(self.branches.modality.tolist())])

    def _normalised(self, layer: nn.Module, values: torch.Tensor, number: int) -> torch.Tensor:
        scale, offset = self.branches.of(number, self.place, layer)
        if isinstance(layer, nn.GroupNorm):
            return functional.group_norm(values, layer.num_groups, scale, offset, layer.eps)
        if isinstance(layer, nn.LayerNorm):
            return functional.layer_norm(values, layer.normalized_shape, scale, offset, layer.eps)
        assert isinstance(layer, nn.InstanceNorm3d)
        return functional.instance_norm(values, None, None, scale, offset, True, 0.0, layer.eps)


def _groups(name: str, value: Any) -> tuple[tuple[str, ...], ...]:
    """Patterns of site names, a list for each modality."""
    lists = list(value) if isinstance(value, list | tuple) else []
    sound = all(
        isinstance(each, list | tuple) and each and all(isinstance(p, str) and p for p in each) for each in lists
    )
    if not lists or not sound:
        raise ConfigurationError(name, value, 'a list of names of sites for each channel: [["ct-*"], ["mr-*"]]')
    return tuple(map(tuple, lists))


@dataclass(frozen=True)
class ModalityNorm(Part):
    """The part ``modality_norm``: FedNorm and FedNorm+ (Bernecker et al., 2022), with instance or group normalisation.

    A modality is a channel of the task, and a case has the one channel that it was acquired with. Every normalisation
    layer has a scale and an offset for each modality; which one an image meets follows from its channel, case by case
    (FedNorm+). Sites train and send the branches of the groups that they are in, and the mean of a branch is over these
    alone. Where every site is in one group, this is FedNorm: the modality of the site decides. A case of a modality
    whose group its site is not in meets the branch of the others, and does not change it.

    Attributes:
        sites: for each channel of the task the sites of that modality, with ``*``, ``?`` and ``[...]``.
    """

    name: ClassVar[str] = MODALITY_NORM
    sites: tuple[tuple[str, ...], ...] = setting((), _groups)

    def check_channels(self, channels: Sequence[str], optional: Collection[str], where: str) -> None:
        if len(self.sites) != len(channels):
            raise ConfigurationError(f"{where}.sites", self.sites, f"{len(channels)} lists, one for each of {channels}")
        required = [name for name in channels if name not in optional] if len(channels) > 1 else []
        if required:
            why = f"Every case would have {required[0]}, and so its modality."
            raise ConfigurationError("task.optional_channels", sorted(optional), f"all of {list(channels)}", why)

    def takes(self, site: str) -> bool:
        """A site of no group would train between normalisations that never change."""
        return any(Ownership(sites=patterns).trained(site, 0) for patterns in self.sites)

    def add(self, network: nn.Module, place: Place) -> None:
        layers = list(_layers(network).values())
        if not layers or any(isinstance(module, nn.BatchNorm3d) for module in network.modules()):
            raise ConfigurationError("network.norm", "batch", "instance or group with the part modality_norm")
        branches = Branches(layers, len(self.sites))
        add_module(network, MODALITY_NORM, branches)
        network.register_forward_pre_hook(_See(branches))
        for number, layer in enumerate(layers):
            layer.register_forward_hook(_Branch(branches, number))

    def begin(self, network: nn.Module) -> None:
        """Every modality begins with the scales and offsets that the model had for all of them."""
        module_of(network, MODALITY_NORM, Branches).take_over(list(_layers(network).values()))

    def owners(self, network: nn.Module) -> Owners:
        groups = [Ownership(sites=patterns) for patterns in self.sites]
        first = {f"{name}.{kind}": groups[0] for name in _layers(network) for kind in ("weight", "bias")}
        start = f"{PREFIX}.{MODALITY_NORM}."
        names = [name for name in network.state_dict() if name.startswith(start)]
        return {**first, **{name: groups[int(name.rpartition(".")[2].partition("_")[0])] for name in names}}


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    """Normalisation layers with scale and offset, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _LAYERS) and module.weight is not None
    }


def _affine(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset of a layer."""
    assert isinstance(layer, _LAYERS)
    return layer.weight, layer.bias
