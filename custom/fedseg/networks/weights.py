"""Weights of a network as named arrays: the form in which they travel and are averaged."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from fedseg.errors import RefusalError

Arrays = dict[str, np.ndarray]
SHARED_PREFIX = "shared:"
VARIANCE = "running_var"
_FLOATING = (torch.float32, torch.float64, np.dtype("float32"), np.dtype("float64"))


def get_weights(network: nn.Module) -> Arrays:
    """A copy of all parameters and buffers by name."""
    return {name: value.detach().cpu().numpy().copy() for name, value in network.state_dict().items()}


def set_weights(network: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Load weights; nothing is loaded unless every name and shape fits.

    Raises:
        RefusalError: names are missing or unknown, a shape differs, or a value is not finite (reason ``weights``).
    """
    check_weights(network.state_dict(), weights)
    found = {name: torch.from_numpy(_possible(name, np.array(value))) for name, value in weights.items()}
    network.load_state_dict(found, strict=True)


def _possible(name: str, value: np.ndarray) -> np.ndarray:
    """A variance of batch normalisation that noise or rounding on the way took below 0 counts as 0."""
    return np.maximum(value, 0) if name.rpartition(".")[2] == VARIANCE else value


def check_weights(expected: Mapping[str, torch.Tensor | np.ndarray], weights: Mapping[str, np.ndarray]) -> None:
    """Compare names, shapes and finiteness of ``weights`` with what a network expects; see ``set_weights``."""
    missing, unknown = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if missing or unknown:
        parts = [f"{len(missing)} missing (first {missing[0]})"] if missing else []
        parts += [f"{len(unknown)} unknown (first {unknown[0]})"] if unknown else []
        raise RefusalError("weights", f"The weights do not belong to this network: {', '.join(parts)}.")
    for name, value in weights.items():
        if tuple(np.shape(value)) != tuple(expected[name].shape):
            raise RefusalError(
                "weights", f"{name} has the shape {tuple(np.shape(value))}, expected {tuple(expected[name].shape)}."
            )
        kind = np.asarray(value).dtype
        if kind.kind not in "fiub" or (kind.kind != "f" and expected[name].dtype in _FLOATING):
            raise RefusalError("weights", f"{name} is of the type {kind}, which does not fit.")
        if not np.isfinite(value).all():
            raise RefusalError("weights", f"{name} holds values that are not finite.")


def split_shared(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, Arrays]:
    """Weights, and the shared arrays of a method (control variates...) that travel with them under ``shared:``.

    They share one message so that whatever limits the message (clipping, noise, a guard) sees them too.
    """
    shared = {
        name.removeprefix(SHARED_PREFIX): value for name, value in arrays.items() if name.startswith(SHARED_PREFIX)
    }
    return {name: value for name, value in arrays.items() if not name.startswith(SHARED_PREFIX)}, shared


def join_shared(weights: Mapping[str, np.ndarray], shared: Mapping[str, np.ndarray]) -> Arrays:
    """The reverse of ``split_shared``."""
    return {**weights, **{SHARED_PREFIX + name: value for name, value in shared.items()}}


def is_averaged(value: np.ndarray) -> bool:
    """Whether an array takes part in averaging: floating point does, integer buffers (counters) do not."""
    return bool(np.issubdtype(np.asarray(value).dtype, np.floating))


def difference(after: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray]) -> Arrays:
    """The update ``after - before`` of everything that is averaged."""
    return {name: after[name] - before[name] for name in before if is_averaged(before[name])}


def apply_difference(weights: Mapping[str, np.ndarray], update: Mapping[str, np.ndarray]) -> Arrays:
    """``weights + update``; arrays that the update lacks keep their value and every array keeps its type."""
    return {
        name: (value + update[name]).astype(value.dtype) if name in update else value for name, value in weights.items()
    }


def flatten(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """All arrays as one vector, in the order of their names."""
    return np.concatenate([np.ravel(arrays[name]) for name in sorted(arrays)])


def unflatten(flat: np.ndarray, like: Mapping[str, np.ndarray]) -> Arrays:
    """The reverse of ``flatten``: arrays of the names, shapes and order of ``like``, and of the type of ``flat``.

    >>> like = {"b": np.zeros((1, 2)), "a": np.zeros(())}
    >>> {name: array.tolist() for name, array in unflatten(flatten(like) + 1, like).items()}
    {'b': [[1.0, 1.0]], 'a': 1.0}
    """
    names = sorted(like)
    parts = np.split(flat, np.cumsum([np.size(like[name]) for name in names])[:-1])
    found = dict(zip(names, parts, strict=True))
    return {name: found[name].reshape(np.shape(like[name])) for name in like}
