"""Which arrays of a network belong to which layers: by name, by type, or by their place on the way to the output."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

# All normalisations of torch, and with them all that MONAI's factory `Norm` builds.
NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)


def matching_names(network: nn.Module, pattern: str) -> frozenset[str]:
    """Names of the arrays that a pattern of the shell (``*``, ``?``, ``[...]``) matches, letter case counts."""
    return with_aliases(network, [name for name in network.state_dict() if fnmatchcase(name, pattern)])


def normalisation_names(network: nn.Module) -> frozenset[str]:
    """Names of all parameters and buffers of normalisation layers, found by the type of the module.

    Names tell nothing here: MONAI calls them ``N``, ``norm1`` or ``0``.
    """
    return _names_of(network, (module for module in network.modules() if isinstance(module, NORMALISATIONS)))


def last_names(network: nn.Module, count: int, example: Sequence[int]) -> frozenset[str]:
    """Names of the arrays of the last ``count`` modules with parameters on the way to the output.

    Activations with a slope (PReLU) and normalisations count like convolutions.

    Args:
        network: is run forward once.
        count: at least 1; more than there are takes all.
        example: shape of an image that the network takes, [B, channels, X, Y, Z].
    """
    return _names_of(network, _in_order_of_use(network, example)[-count:])


def with_aliases(network: nn.Module, names: Collection[str]) -> frozenset[str]:
    """These names and every other one under which a network holds the same arrays.

    MONAI's ``DynUNet`` has most of its layers twice in its weights; what must not leave must leave under neither name.
    """
    identities = _identities(network)
    chosen = {identities[name] for name in names}
    return frozenset(name for name, identity in identities.items() if identity in chosen)


def _in_order_of_use(network: nn.Module, example: Sequence[int]) -> list[nn.Module]:
    """Modules with parameters of their own, in the order in which an image passes them."""
    used: list[nn.Module] = []
    modules = [m for m in network.modules() if next(m.parameters(recurse=False), None) is not None]
    handles = [module.register_forward_hook(lambda module, *_: used.append(module)) for module in modules]
    training = network.training
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(*example))
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(reversed(used)))[::-1]


def _names_of(network: nn.Module, modules: Iterable[nn.Module]) -> frozenset[str]:
    chosen = {
        id(value) for module in modules for value in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    }
    return frozenset(name for name, identity in _identities(network).items() if identity in chosen)


def _identities(network: nn.Module) -> dict[str, int]:
    """For each name the identity of the array behind it."""
    return {name: id(value) for name, value in network.state_dict(keep_vars=True).items()}
