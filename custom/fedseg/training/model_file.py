"""Model files: safetensors with the plan's task and network in the header, so that a model explains itself."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import nn

from fedseg.errors import DataError, RefusalError
from fedseg.networks.registry import Network, parse_network
from fedseg.networks.weights import Arrays, contiguous, set_weights
from fedseg.tasks.registry import resolve_task
from fedseg.tasks.task import Task
from fedseg.training.plan import Plan
from fedseg.version import __version__

_FORMAT = "fedseg-model-1"


@dataclass(frozen=True)
class ModelFile:
    """A model as read from disk: what it segments, its network, and its weights."""

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
        network = self.network.build(len(self.task.channels), self.task.output_channels, seed=0)
        set_weights(network, self.weights)
        return network.eval()


def write_model(path: Path, plan: Plan, weights: Arrays, round_number: int) -> Path:
    """Write a model; equal weights of an equal plan give equal bytes.

    Args:
        path: where to; replaced as a whole.
        plan: supplies task, network and seed.
        weights: all parameters and buffers.
        round_number: the training round after which the model was made; -1 for the initial one.
    """
    notes: dict[str, Any] = {"method": plan.method, "seed": plan.seed, "round": round_number, "plan": plan.digest}
    notes["overlap"] = plan.training.overlap
    header = {
        "format": _FORMAT,
        "fedseg": __version__,
        "task": json.dumps(plan.task.to_dict(), sort_keys=True),
        "network": json.dumps(plan.network.to_dict(), sort_keys=True),
        "notes": json.dumps(notes, sort_keys=True),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.writelines(_with_sorted_header(save(contiguous(weights), header)))
    os.replace(temporary, path)
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
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise DataError(f"The model {path} does not exist.") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a model in safetensors form ({error}).") from None
    if header.get("format") != _FORMAT:
        raise DataError(f"{path} is not a model of fedseg: its header lacks the format {_FORMAT!r}.")
    model = ModelFile(
        resolve_task(json.loads(header["task"])),
        parse_network(json.loads(header["network"])),
        weights,
        json.loads(header["notes"]),
    )
    try:
        model.build()
    except RefusalError as error:
        raise DataError(f"{path}: {error}") from None
    return model
