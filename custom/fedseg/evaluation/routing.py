"""Saved models of one form as one network that mixes them."""

from __future__ import annotations

from collections.abc import Sequence

from fedseg.errors import ConfigurationError
from fedseg.models.model_file import ModelFile
from fedseg.networks.parts.modality_norm import MODALITY_NORM
from fedseg.networks.routed import RoutedNetwork


def mixed(models: Sequence[ModelFile], seed: int = 0) -> RoutedNetwork:
    """The models as experts of one network, with equal gates.

    Args:
        models: of one task and network, at least one.
        seed: of the routers.

    Raises:
        ConfigurationError: the network has a part whose layers choose their arrays by the image themselves, or layers
            that see no image.
    """
    first = models[0]
    if first.network.arguments.of_tokens:
        why = "Gates follow from the image that a layer sees, and its layers see tokens."
        raise ConfigurationError("network.name", first.network.name, "a network of convolutions, for routing", why)
    parts = [part.name for part in first.network.parts]
    if MODALITY_NORM in parts:
        raise ConfigurationError("network.parts", parts, f"a list without {MODALITY_NORM}, for routing")
    example = (1, len(first.task.channels), *first.task.patch_size)
    return RoutedNetwork(first.build(), [model.weights for model in models], example, seed)
