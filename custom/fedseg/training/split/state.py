"""The state of a half as plain arrays: for checkpoints, and for a site that joins where the others are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from fedseg.errors import RefusalError
from fedseg.networks.weights import Arrays
from fedseg.training.split.half import Half

_STEPS = "steps"


def optimizer_arrays(half: Half) -> Arrays:
    """What the optimizer remembers of each parameter, and the number of steps; weights come beside.

    Rates and other settings are not stored: they follow from the plan and from the progress of the job.
    """
    state = half.optimizer.state_dict()["state"]
    arrays: Arrays = {_STEPS: np.array(half.steps, np.int64)}
    for number, values in state.items():
        for name, value in values.items():
            if value is not None:
                arrays[f"{number}/{name}"] = torch.as_tensor(value).detach().cpu().numpy().copy()
    return arrays


def load_half(half: Half, weights: Mapping[str, np.ndarray], optimizer: Mapping[str, np.ndarray]) -> None:
    """Go on where a half of the same part was, with a fresh optimizer that remembers what that one did.

    Args:
        half: is changed.
        weights: of exactly this part.
        optimizer: from ``optimizer_arrays``.

    Raises:
        RefusalError: weights or memory are not those of this part (reasons ``weights``, ``state``).
    """
    half.set_weights(weights)
    state: dict[int, dict[str, torch.Tensor]] = {}
    try:
        steps = int(optimizer[_STEPS])
        for key, value in optimizer.items():
            number, _, name = key.partition("/")
            if key != _STEPS:
                state.setdefault(int(number), {})[name] = torch.from_numpy(np.array(value))
    except (KeyError, ValueError, TypeError):
        raise RefusalError("state", "The optimizer's memory is not that of this part of the network.") from None
    parameters = list(half.parameters().values())
    whole = set(state) <= set(range(len(parameters))) and all(
        value.ndim == 0 or value.shape == parameters[number].shape
        for number, values in state.items()
        for value in values.values()
    )
    if not whole:
        raise RefusalError("state", "The optimizer's memory is not that of this part of the network.")
    groups = half.optimizer.state_dict()["param_groups"]
    half.load_state(
        {"weights": half.part.state_dict(), "optimizer": {"state": state, "param_groups": groups}, "steps": steps}
    )
