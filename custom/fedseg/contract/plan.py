"""The plan of a job: the one file, ``app/config/fedseg.json``, that server and sites read alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from torch import nn

from fedseg import allowed
from fedseg.contract.protocol import PLAN_FILE
from fedseg.contract.settings import TrainingSettings, parse_training
from fedseg.contract.split_settings import SplitSettings, parse_split
from fedseg.errors import ConfigurationError
from fedseg.files.documents import read_json
from fedseg.networks.registry import Network, parse_network
from fedseg.tasks.objective import Objective, objective_of
from fedseg.tasks.registry import resolve_task
from fedseg.tasks.task import Task

_KEYS = ("fedseg_version", "method", "seed", "dataset", "task", "network", "training", "split")


@dataclass(frozen=True)
class Plan:
    """What a job trains, and how.

    Attributes:
        fedseg_version: the version that the job was made for; a site with another one refuses the job.
        method: name of the federated method, for reports.
        seed: root of every random generator of the job.
        dataset: name under which a site looks up its datalist; the task's name by default.
        task, network, training: see their classes.
        split: how the network is trained in two parts; None in every other job.
    """

    fedseg_version: str
    method: str
    seed: int
    dataset: str
    task: Task
    network: Network
    training: TrainingSettings
    split: SplitSettings | None = None

    @property
    def objective(self) -> Objective:
        """What the kind of task gives training, validation and reports."""
        return objective_of(self.task)

    @property
    def largest_patch(self) -> tuple[int, int, int]:
        """The size of patches that has the most voxels."""
        sizes = [each.size for each in self.training.patch_sizes] or [self.task.patch_size]
        return max(sizes, key=prod)

    def build_network(self) -> nn.Module:
        """The network for the task's channels and outputs, with the weights that the job's seed gives."""
        channels, outputs = len(self.task.channels), self.objective.output_channels
        twice = self.training.activation_checkpointing
        return self.network.build(channels, outputs, self.seed, self.task.patch_size, twice)

    def to_dict(self) -> dict[str, Any]:
        """Complete JSON form with all defaults filled in."""
        plain = {
            "fedseg_version": self.fedseg_version,
            "method": self.method,
            "seed": self.seed,
            "dataset": self.dataset,
            "task": self.task.to_dict(),
            "network": self.network.to_dict(),
            "training": self.training.to_dict(),
        }
        return plain if self.split is None else {**plain, "split": self.split.to_dict()}

    @property
    def digest(self) -> str:
        """SHA-256 over the complete plan: equal at server and site, or the site refuses."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def parse_plan(declaration: Mapping[str, Any]) -> Plan:
    """Check a plan.

    Raises:
        ConfigurationError: a part is unknown, missing or wrong.
    """
    if not isinstance(declaration, Mapping):
        raise ConfigurationError(PLAN_FILE, declaration, f"an object with {list(_KEYS)}")
    allowed.known_names("", declaration, _KEYS, "a plan has")
    for key in ("fedseg_version", "task"):
        if key not in declaration:
            raise ConfigurationError(key, None, "given in the job's plan")
    task = resolve_task(declaration["task"])
    network = parse_network(declaration.get("network", "residual_unet"))
    training = parse_training(declaration.get("training", {}))
    split = parse_split(declaration["split"]) if "split" in declaration else None
    check_patches(task, network, training, split is not None)
    check_checkpointing(network, training, split is not None)
    check_channels(task, training)
    objective_of(task).loss(training.to_dict())  # refuses what cannot be a loss of this task
    for number, part in enumerate(network.parts):
        part.check_channels(task.channels, task.optional_channels, f"network.parts[{number}]")
    return Plan(
        fedseg_version=str(declaration["fedseg_version"]),
        method=str(declaration.get("method", "fedavg")),
        seed=allowed.whole("seed", declaration.get("seed", 0), least=0, most=2**32 - 1),
        dataset=str(declaration.get("dataset", task.name)),
        task=task,
        network=network,
        training=training,
        split=split,
    )


def check_checkpointing(network: Network, training: TrainingSettings, split: bool) -> None:
    """Refuse activation checkpointing of a network that tells no stages, or that is trained in two parts.

    Args:
        network, training: of a plan.
        split: whether the network is trained in two parts.
    """
    if not training.activation_checkpointing:
        return
    if split:
        raise ConfigurationError("training.activation_checkpointing", True, "false in split training")
    if not network.arguments.stages:
        raise ConfigurationError("training.activation_checkpointing", True, f"false for the network {network.name}")


def check_patches(task: Task, network: Network, training: TrainingSettings, split: bool) -> None:
    """Refuse patches and averages that this network, kind of task or kind of training cannot have.

    Args:
        task, network, training: of a plan.
        split: whether the network is trained in two parts.
    """
    check_patch(task.patch_size, network)
    if split and (training.patch_sizes or training.patches_per_case > 1):
        name = "patch_sizes" if training.patch_sizes else "patches_per_case"
        raise ConfigurationError(f"training.{name}", getattr(training, name), "left out in split training")
    if split and training.weight_average:
        raise ConfigurationError("training.weight_average", training.weight_average, "0 in split training")
    fixed = [f"network {network.name}"] if network.arguments.fixed_size else []
    fixed += [f"part {part.name} of the network" for part in network.parts if part.one_size]
    if training.patch_sizes and fixed:
        why = f"The {fixed[0]} is made for one size."
        raise ConfigurationError("training.patch_sizes", training.to_dict()["patch_sizes"], "left out", why)
    for number, each in enumerate(training.patch_sizes):
        check_patch(each.size, network, f"training.patch_sizes[{number}].size")
    if training.forced_foreground and not (task.classes and objective_of(task).discrete):
        raise ConfigurationError(
            "training.forced_foreground", training.forced_foreground, "0 in a task without classes"
        )


def check_channels(task: Task, training: TrainingSettings) -> None:
    """Refuse to drop channels of a task in which no case may lack one: its models would be asked what never occurs."""
    if training.channel_dropout and not task.optional_channels:
        why = "Name the channels that a case may lack in task.optional_channels."
        raise ConfigurationError("training.channel_dropout", training.channel_dropout, "0 in this task", why)


def check_patch(patch_size: tuple[int, int, int], network: Network, where: str = "task.patch_size") -> None:
    """Refuse patches that the network cannot halve often enough, or would halve to a single voxel."""
    divisor = network.arguments.divisor
    for size, factor in zip(patch_size, divisor, strict=True):
        if size % factor:
            raise ConfigurationError(where, patch_size, f"divisible by {divisor} for this network")
    if prod(s // f for s, f in zip(patch_size, divisor, strict=True)) < 2:
        raise ConfigurationError(
            where,
            patch_size,
            f"larger than {divisor} on some axis for this network",
            "Its coarsest level would be a single voxel, which cannot be normalised.",
        )


def read_plan(path: Path | str) -> Plan:
    """Read and check the plan file of a job.

    Raises:
        ConfigurationError: the file is missing, not JSON, or its content is wrong.
    """
    return parse_plan(read_json(Path(path), "the plan of a job"))
