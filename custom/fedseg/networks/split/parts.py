"""Networks cut in two: the part that an institution runs on its images, and the part that the server runs.

Both parts come from one whole network with one seed. Put together they are that network to the last bit, forward and
backward, and their arrays keep the names that they have in the whole: the weights of a site's part and of the server's
part together are those of an ordinary network.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.registry import Network
from fedseg.networks.split.stages import IMAGE, Stage, crossing, cut_stages
from fedseg.networks.weights import Arrays

Tensors = dict[str, torch.Tensor]


class _Part(nn.Module):
    """Some consecutive stages of a network, with copies of their modules under the names of the whole network."""

    def __init__(self, whole: nn.Module, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.stages = tuple(stages)
        copy = deepcopy(whole)
        used = {id(copy.get_submodule(name)) for stage in stages for name in stage.modules}
        _keep_only(copy, used)
        for name, module in copy.named_children():
            self.add_module(name, module)

    def run_stages(self, values: Mapping[str, torch.Tensor]) -> Tensors:
        """The given values and those that the stages write."""
        known = dict(values)
        for stage in self.stages:
            modules = [self.get_submodule(name) for name in stage.modules]
            known[stage.name] = stage.run(modules, [known[name] for name in stage.reads])
        return known


class SitePart(_Part):
    """The stages of a network up to a cut.

    Attributes:
        stages: what it runs.
        sends: names of the values that cross the cut.
    """

    def __init__(self, whole: nn.Module, stages: Sequence[Stage], sends: Sequence[str]) -> None:
        """Copy the modules of some stages; see ``cut_network``."""
        super().__init__(whole, stages)
        self.sends = tuple(sends)

    def forward(self, image: torch.Tensor) -> Tensors:
        """The values that cross the cut, [B, features, X', Y', Z'] each, of an image [B, channels, X, Y, Z]."""
        values = self.run_stages({IMAGE: image})
        return {name: values[name] for name in self.sends}


class ServerPart(_Part):
    """The stages of a network behind a cut.

    Attributes:
        stages: what it runs.
        receives: names of the values that cross the cut.
    """

    def __init__(self, whole: nn.Module, stages: Sequence[Stage], receives: Sequence[str]) -> None:
        """Copy the modules of some stages; see ``cut_network``."""
        super().__init__(whole, stages)
        self.receives = tuple(receives)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits [B, out, X, Y, Z] of what a ``SitePart`` gives."""
        return self.run_stages(features)[self.stages[-1].name]


def split_network(
    network: Network, in_channels: int, out_channels: int, cut: str, seed: int
) -> tuple[SitePart, ServerPart]:
    """Both parts of a network whose weights depend on ``seed`` alone.

    Args:
        network: with checked arguments.
        in_channels: of the image.
        out_channels: of the logits.
        cut: the last stage at the site, one of ``split_stages.cut_names``.
        seed: as for ``Network.build``: every site gets the same part.

    Raises:
        ConfigurationError: the network has no such cut.
    """
    cut_stages(network, cut)
    return cut_network(network.build(in_channels, out_channels, seed), network, cut)


def cut_network(whole: nn.Module, network: Network, cut: str) -> tuple[SitePart, ServerPart]:
    """Both parts of a network that has been built; the whole one is copied and stays as it is.

    Args:
        whole: what ``network`` built.
        network: names the stages.
        cut: the last stage at the site.

    Raises:
        ConfigurationError: the network has no such cut, or a normalisation that remembers other samples.
    """
    before, after = cut_stages(network, cut)
    check_normalisations(whole)
    names = crossing(before, after)
    return SitePart(whole, before, names), ServerPart(whole, after, names)


def check_normalisations(network: nn.Module) -> None:
    """Refuse normalisations whose result for one image depends on other images.

    A batch normalisation at the site would see the site's own batch and the one at the server that of all sites: the
    parts would train another network than the whole one, with statistics of neither.

    Raises:
        ConfigurationError: names the first such module.
    """
    for name, module in network.named_modules():
        if isinstance(module, _InstanceNorm) and not module.track_running_stats:
            continue
        if isinstance(module, _BatchNorm | _InstanceNorm):
            raise ConfigurationError(
                f"normalisation {name}", type(module).__name__, "instance or group normalisation without statistics "
                "of other images in a network that is cut",
            )  # fmt: skip


def join_weights(site: Mapping[str, np.ndarray], server: Mapping[str, np.ndarray]) -> Arrays:
    """Weights of the whole network from those of its parts; ``weights.check_weights`` tells whether any is missing.

    Raises:
        RefusalError: both parts have an array of one name: they come from different cuts (reason ``weights``).
    """
    both = sorted(set(site) & set(server))
    if both:
        raise RefusalError("weights", f"Both parts hold {both[0]}: they do not come from one cut.")
    return {**site, **server}


def part_weights(weights: Mapping[str, np.ndarray], part: nn.Module) -> Arrays:
    """Those of the whole network's weights that belong to a part; ``weights.set_weights`` loads them into it.

    Raises:
        RefusalError: some are missing (reason ``weights``).
    """
    names = list(part.state_dict())
    missing = [name for name in names if name not in weights]
    if missing:
        raise RefusalError("weights", f"The whole network's weights lack {len(missing)} (first {missing[0]}).")
    return {name: weights[name] for name in names}


def _keep_only(module: nn.Module, kept: Collection[int]) -> bool:
    """Remove every module that is neither kept nor around or within a kept one; whether any is left.

    By identity and not by name: ``DynUNet`` holds most of its modules under two names, and both must stay.
    """
    for name, child in list(module._modules.items()):
        if child is None or (id(child) not in kept and not _keep_only(child, kept)):
            del module._modules[name]
    return bool(module._modules)
