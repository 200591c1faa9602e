"""Model files: safetensors with the plan's task and network in the header, so that a model explains itself."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import nn

from fedseg.contract.plan import Plan, check_patch
from fedseg.contract.shapes import private_arrays
from fedseg.errors import ConfigurationError, DataError, RefusalError
from fedseg.files.arrays import contiguous, read_arrays
from fedseg.files.documents import parse_json, whole_file
from fedseg.networks.demand import check_pass
from fedseg.networks.registry import Network, parse_network
from fedseg.networks.weights import Arrays, check_weights, get_weights, set_weights
from fedseg.tasks.objective import objective_of
from fedseg.tasks.registry import resolve_task
from fedseg.tasks.task import Region, Task
from fedseg.version import __version__

_FORMAT = "fedseg-model-1"


@dataclass(frozen=True)
class ModelFile:
    """A model as read from disk: what it segments, its network, its weights, and notes.

    ``notes`` hold method, seed, round and plan, and under ``own_arrays`` the names of arrays that each site has for
    itself: in a global model they are as the run began.
    """

    task: Task
    network: Network
    weights: Arrays
    notes: dict[str, Any]

    @property
    def overlap(self) -> float:
        """Overlap of the sliding windows with which the run scored its models."""
        return float(self.notes["overlap"])

    def build(self) -> nn.Module:
        """The network with its weights, in evaluation mode."""
        outputs = objective_of(self.task).output_channels
        network = self.network.build(len(self.task.channels), outputs, 0, self.task.patch_size)
        set_weights(network, self.weights)
        return network.eval()


def write_model(
    path: Path,
    plan: Plan,
    weights: Arrays,
    round_number: int,
    own_arrays: Collection[str] | None = None,
    network: Network | None = None,
) -> Path:
    """Write a model; equal weights of an equal plan give equal bytes.

    Args:
        path: where to; replaced as a whole.
        plan: supplies task, network and seed.
        weights: all parameters and buffers.
        round_number: the training round after which the model was made; -1 for the initial one.
        own_arrays: names of arrays that each site has for itself, in a global model; None for those that the parts of
            the plan's network declare.
        network: of the model; None for the plan's.
    """
    return save_model(path, model_header(plan, round_number, own_arrays, network), weights)


def model_header(
    plan: Plan, round_number: int, own_arrays: Collection[str] | None = None, network: Network | None = None
) -> dict[str, str]:
    """What a model file says of itself beside its format; see ``write_model``."""
    notes: dict[str, Any] = {"method": plan.method, "seed": plan.seed, "round": round_number, "plan": plan.digest}
    notes["overlap"] = plan.training.overlap
    if own := sorted(private_arrays(plan) if own_arrays is None else own_arrays):
        notes["own_arrays"] = own
    return {
        "fedseg": __version__,
        "task": json.dumps(plan.task.to_dict(), sort_keys=True),
        "network": json.dumps((network or plan.network).to_dict(), sort_keys=True),
        "notes": json.dumps(notes, sort_keys=True),
    }


def save_model(path: Path, header: Mapping[str, str], weights: Arrays) -> Path:
    """Write a model with a header that ``model_header`` made, here or where the model was trained."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.writelines(_with_sorted_header(save(contiguous(weights), {"format": _FORMAT, **header})))
    return path


def _with_sorted_header(content: bytes) -> tuple[bytes, memoryview]:
    """Header with sorted keys, and data: the library writes the metadata in the order of a hash map."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header, memoryview(content)[8 + size :]


def read_model(path: Path | str) -> ModelFile:
    """Read a model file; nothing in it is executed.

    Raises:
        DataError: the file is missing, not a model of fedseg, or its weights do not fit its network.
    """
    path = Path(path)
    try:
        header, weights = read_arrays(path)
    except FileNotFoundError:
        raise DataError(f"The model {path} does not exist.") from None
    except OSError as error:
        raise DataError(f"{path} is not a model in safetensors form ({error}).") from None
    if header.get("format") != _FORMAT:
        raise DataError(f"{path} is not a model of fedseg: its header lacks the format {_FORMAT!r}.")
    try:
        task, network, notes = (parse_json(header[name]) for name in ("task", "network", "notes"))
        model = ModelFile(resolve_task(task), parse_network(network), weights, dict(notes))
        if not 0 <= model.overlap < 1:
            raise ValueError("its overlap is none")
        _check_size(model)
        model.build()
    except (RefusalError, ConfigurationError) as error:
        raise DataError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DataError(f"{path} is not a whole model of fedseg: its header is damaged ({error}).") from None
    return model


def _check_size(model: ModelFile) -> None:
    """Refuse a header that promises more than the file holds or this machine could, before anything is built."""
    task, outputs = model.task, objective_of(model.task).output_channels
    check_patch(task.patch_size, model.network)
    with torch.device("meta"):
        empty = model.network.build(len(task.channels), outputs, 0, task.patch_size).state_dict()
    check_weights(empty, model.weights)
    check_pass(model.network, len(task.channels), outputs, task.patch_size)


def initial_weights(plan: Plan, initial: Path | None = None) -> Arrays:
    """The weights from which a run starts.

    Args:
        plan: the job's plan.
        initial: a model file; None for the plan's seeded network. Its network may lack parts that the plan adds, which
            then begin as the seed makes them, or from the model's arrays, see ``Part.begin``.

    Raises:
        ConfigurationError: there is no file, and a part of the network is for one that was trained before.
        DataError: the file cannot be read, or its model is of another task or network than the plan's.
    """
    if initial is not None:
        return fitting_weights(plan, initial, "initial model", may_lack_parts=True)
    if needing := [part.name for part in plan.network.parts if part.needs_model]:
        remedy = f"The part {needing[0]} changes a network that was trained before: name one with --initial."
        raise ConfigurationError("initial model", None, "a model file", remedy)
    return get_weights(plan.build_network())


def fitting_weights(plan: Plan, path: Path, what: str = "model", may_lack_parts: bool = False) -> Arrays:
    """The weights of a model file that fits a job.

    Args:
        plan: the job's plan.
        path: a model file.
        what: how messages call it.
        may_lack_parts: whether the plan may have added parts to its network.

    Raises:
        DataError: the file cannot be read, or its model is of another task or network than the plan's.
    """
    model = read_model(path)
    wanted = plan.network
    if may_lack_parts:
        wanted = replace(wanted, parts=tuple(part for part in wanted.parts if part in model.network.parts))
    if model.network.to_dict() != wanted.to_dict():
        raise DataError(
            f"The {what} {path} is of another network than the job's: {model.network.to_dict()}, "
            f"and the job has {plan.network.to_dict()}."
        )
    # Not only as many channels and outputs: the same ones, in the same order.
    mine, its = (f"{', '.join(t.channels)} to {', '.join(map(_words, t.regions))}" for t in (plan.task, model.task))
    if mine != its:
        raise DataError(f"The {what} {path} was made for {its}; the job needs one for {mine}.")
    if not may_lack_parts:
        return {name: np.array(model.weights[name]) for name in get_weights(model.build())}
    network = plan.build_network()
    set_weights(network, {**get_weights(network), **model.weights})
    for part in plan.network.parts:
        if part not in model.network.parts:
            part.begin(network)
    return get_weights(network)


def _words(region: Region) -> str:
    return f"{region.name} ({' + '.join(region.classes)})"
