"""How one site trains, as checked values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fedseg.errors import ConfigurationError

_CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "schedule": ("one_cycle", "cosine", "polynomial", "constant"),
    "augmentation": ("none", "intensity", "full"),
    "cache": ("memory", "disk"),
    "precision": ("auto", "float32", "bfloat16"),
    "empty": ("brats", "exclude"),
}
_WHOLE = ("local_epochs", "batch_size", "threads")
_POSITIVE = ("learning_rate", "gradient_clip", "dice_weight")


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of the training at a site, the same at every site of a job.

    Attributes:
        local_epochs: passes over the training cases in each round; one patch per case and pass.
        batch_size: patches per optimizer step.
        optimizer: ``adamw`` or ``sgd``.
        momentum: of ``sgd``, in Nesterov's form; 0 for none. ``adamw`` has its own and ignores it.
        learning_rate: peak of the schedule.
        weight_decay: decoupled for ``adamw``.
        schedule: course of the learning rate over ALL rounds: ``one_cycle`` (linear rise over ``warmup``, cosine
            fall), ``cosine``, ``polynomial`` (power 0.9) or ``constant``.
        warmup: fraction of all steps over which ``one_cycle`` rises.
        gradient_clip: largest L2 norm of a step's gradient.
        dice_weight: weight of the Dice loss beside the cross-entropy.
        batch_dice: Dice over the whole batch instead of the mean over its patches; steadier on small structures.
        reset_optimizer: start every round with a fresh optimizer instead of the site's saved one.
        augmentation: ``none``, ``intensity`` (scale, shift, noise, the task's mirror axes) or ``full`` (also
            rotation, scaling).
        threads: torch threads; equal results need equal thread counts.
        precision: ``auto`` (mixed on a GPU, float32 on a CPU), ``float32`` or ``bfloat16`` (autocast everywhere).
        cache: where pre-processed cases are kept: ``memory`` or ``disk`` (the site's cache folder).
        overlap: overlap of sliding windows in validation, as a fraction of the patch.
        validate_after: also score the site's own model after its local training, for rules that weigh by it.
        empty: convention for regions that are empty in the reference, see ``evaluation.metrics``.
    """

    local_epochs: int = 1
    batch_size: int = 2
    optimizer: str = "adamw"
    momentum: float = 0.9
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    schedule: str = "one_cycle"
    warmup: float = 0.1
    gradient_clip: float = 1.0
    dice_weight: float = 1.0
    batch_dice: bool = True
    reset_optimizer: bool = False
    augmentation: str = "intensity"
    threads: int = 1
    precision: str = "auto"
    cache: str = "memory"
    overlap: float = 0.25
    validate_after: bool = False
    empty: str = "brats"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)


def parse_training(declaration: Mapping[str, Any], where: str = "training") -> TrainingSettings:
    """Check a job's training settings.

    Raises:
        ConfigurationError: a name is unknown or a value is not allowed.
    """
    if not isinstance(declaration, Mapping):
        raise ConfigurationError(where, declaration, "an object of settings")
    known = {f.name: f for f in fields(TrainingSettings)}
    for key, value in declaration.items():
        if key not in known:
            raise ConfigurationError(f"{where}.{key}", value, f"absent: the settings are {sorted(known)}")
    settings = TrainingSettings(**declaration)

    def require(name: str, condition: bool, allowed: str) -> None:
        if not condition:
            raise ConfigurationError(f"{where}.{name}", getattr(settings, name), allowed)

    for name, choices in _CHOICES.items():
        require(name, getattr(settings, name) in choices, f"one of {choices}")
    for name in _WHOLE:
        value = getattr(settings, name)
        require(name, type(value) is int and value >= 1, "a whole number of at least 1")
    for name in _POSITIVE:
        require(name, _is_number(getattr(settings, name)) and getattr(settings, name) > 0, "a number above 0")
    require("weight_decay", _is_number(settings.weight_decay) and settings.weight_decay >= 0, "a number from 0 up")
    require("momentum", _is_number(settings.momentum) and 0 <= settings.momentum < 1, "a number from 0 to below 1")
    require("warmup", _is_number(settings.warmup) and 0 <= settings.warmup < 1, "a fraction from 0 to below 1")
    require("overlap", _is_number(settings.overlap) and 0 <= settings.overlap < 1, "a fraction from 0 to below 1")
    for name in ("reset_optimizer", "batch_dice", "validate_after"):
        require(name, isinstance(getattr(settings, name), bool), "true or false")
    return settings


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
