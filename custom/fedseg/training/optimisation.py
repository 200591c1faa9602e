"""A step of training, the same for whole networks and for parts of one: loss, optimizer, rate, precision, refusals."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from math import cos, pi

import torch
from torch import nn

from fedseg.contract.plan import Plan
from fedseg.contract.settings import TrainingSettings
from fedseg.errors import RefusalError


def plan_loss(plan: Plan) -> nn.Module:
    """The loss of a plan: of logits [B, out, ...] and the targets of its kind of task."""
    return plan.objective.loss(plan.training.to_dict())


def place(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, in the layout in which convolutions run up to a fifth faster."""
    return network.to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def new_optimizer(settings: TrainingSettings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that the settings name, over all parameters: what is frozen may change from round to round, and a
    parameter without a gradient stays as it is."""
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        momentum = settings.momentum
        return torch.optim.SGD(parameters, lr=rate, momentum=momentum, nesterov=momentum > 0, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)


def set_rate(optimizer: torch.optim.Optimizer, settings: TrainingSettings, progress: float) -> None:
    """Set the learning rate for a point of the whole job, 0 to 1."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings, progress)


def autocast(settings: TrainingSettings, device: torch.device) -> AbstractContextManager[object]:
    """The precision in which a network runs forward on a device: on a CPU always float32.

    There torch 2.13 gives gradients of bfloat16 convolutions that hold memory which nobody wrote, where a level of the
    network is two voxels wide.
    """
    if settings.precision == "float32" or device.type == "cpu":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def check_loss(loss: torch.Tensor) -> None:
    """Refuse a loss that is no number any more.

    Raises:
        RefusalError: reason ``loss``.
    """
    if not torch.isfinite(loss):
        raise RefusalError("loss", "The training loss is not finite; the learning rate may be too high.")


def check_norm(norm: torch.Tensor) -> None:
    """Refuse a step whose gradient is not finite, by its norm.

    Clipping would turn it into NaN everywhere, and the saved optimizer would carry it into every later round.

    Raises:
        RefusalError: reason ``loss``.
    """
    if not torch.isfinite(norm):
        raise RefusalError("loss", "A gradient is not finite; the learning rate may be too high.")


def learning_rate(settings: TrainingSettings, progress: float) -> float:
    """Learning rate at a point of the whole job.

    Args:
        settings: peak, schedule and warm-up.
        progress: finished fraction of all steps of all rounds, 0 to 1; sites with more steps a round take smaller
            strides along the same curve.
    """
    peak, progress = settings.learning_rate, min(max(progress, 0.0), 1.0)
    if settings.schedule == "constant":
        return peak
    if settings.schedule == "polynomial":
        return peak * (1 - progress) ** 0.9
    if settings.schedule == "one_cycle" and progress < settings.warmup:
        return peak * (0.04 + 0.96 * progress / settings.warmup)
    start = settings.warmup if settings.schedule == "one_cycle" else 0.0
    return peak * 0.5 * (1 + cos(pi * (progress - start) / (1 - start)))
