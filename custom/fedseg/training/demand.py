"""What training takes of a site's memory, counted before anything is built or read."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from fedseg.contract.plan import Plan
from fedseg.data.grid import Grid
from fedseg.memory import check_memory
from fedseg.networks.demand import NUMBER_BYTES, Demand, demand
from fedseg.training.hooks import TrainingHook

_HALF = 2
# Weights, gradients and the received model; what the optimizer keeps of each parameter comes beside.
_COPIES = 3
# A patch and its reference as they were cut, and once more in the batch.
_PATCHES = 2
# The loss beside the logits: one-hot targets, probabilities, the gradient.
_LOSS = 3


def training_bytes(plan: Plan, cases: int, hooks: Sequence[TrainingHook] = (), on_gpu: bool = False) -> int:
    """Memory of all networks and their optimizers, of a batch, and what the layers keep of it until the backward pass.

    Args:
        plan: of the job.
        cases: of the site; a batch has no more.
        hooks: of the job's method, with what they keep beside the network.
        on_gpu: whether it is trained on a GPU, which alone computes in half precision.
    """
    task, settings = plan.task, plan.training
    needs = demand(plan.network, len(task.channels), plan.objective.output_channels, plan.largest_patch)
    batch = min(settings.batch_size, settings.patches_per_case * max(1, cases))
    at_once = 1 if any(hook.case_by_case for hook in hooks) else batch
    return (
        NUMBER_BYTES * _weights(plan, needs, hooks)
        + NUMBER_BYTES * batch * _PATCHES * (len(task.channels) + 1) * prod(plan.largest_patch)
        + at_once * _pass_bytes(plan, needs, on_gpu)
        + (NUMBER_BYTES * needs.unfolded if at_once == 1 and settings.threads == 1 and not on_gpu else 0)
    )


def _weights(plan: Plan, needs: Demand, hooks: Sequence[TrainingHook]) -> int:
    """Numbers of the network, of what is kept for each of its weights, and of the companions."""
    settings = plan.training
    kept = 2 if settings.optimizer == "adamw" else int(settings.momentum > 0)
    averaged = int(settings.weight_average > 0)
    total = needs.weights * (_COPIES + kept + averaged + sum(hook.copies for hook in hooks))
    with torch.device("meta"):
        companions = [each for hook in hooks for each in hook.companions(plan).values()]
    for companion in companions:
        copies = 1 if companion.optimizer is None else 2 + kept
        total += copies * sum(value.numel() for value in companion.network.state_dict().values())
    return total


def _pass_bytes(plan: Plan, needs: Demand, on_gpu: bool) -> int:
    """What one patch takes on its way through the network, the loss and back."""
    number = _HALF if on_gpu and plan.training.precision != "float32" else NUMBER_BYTES
    loss = _LOSS * plan.objective.output_channels * prod(plan.largest_patch)
    kept = needs.kept_once if plan.training.activation_checkpointing else needs.kept
    return (kept + needs.largest) * number + loss * NUMBER_BYTES


def cases_bytes(plan: Plan, grids: Sequence[Grid]) -> int:
    """Memory of prepared images: the largest one, and all where they stay in memory and are not cropped.

    By how much the crop of a foreground makes an image smaller is known only after it was read.
    """
    task = plan.task
    sizes = [len(task.channels) * grid.voxels_at(task.spacing) * NUMBER_BYTES for grid in grids]
    kept = plan.training.cache == "memory" and not task.crop_to_foreground
    return sum(sizes) if kept else max(sizes, default=0)


def check_training(
    plan: Plan,
    grids: Sequence[Grid],
    limit: int | None = None,
    on_gpu: int | None = None,
    hooks: Sequence[TrainingHook] = (),
) -> None:
    """Refuse a job whose training could not fit into memory.

    Args:
        plan: of the job.
        grids: of all cases of the site.
        limit: bytes that a job may take at this site; None for what the machine has.
        on_gpu: bytes of the GPU on which the network is trained; None for training on the CPU.
        hooks: see ``training_bytes``.

    Raises:
        ConfigurationError: names the estimate and the limit.
    """
    size = "x".join(map(str, plan.largest_patch))
    network, images = training_bytes(plan, len(grids), hooks, on_gpu is not None), cases_bytes(plan, grids)
    what = f"training with batches of {plan.training.batch_size} patches of {size} voxels"
    check_memory(what, network, limit if on_gpu is None else on_gpu)
    check_memory(f"{what} and the images", images + (network if on_gpu is None else 0), limit)


def check_scoring(plan: Plan, grids: Sequence[Grid], limit: int | None = None, on_gpu: int | None = None) -> None:
    """Refuse a job whose models could not be scored at a site that does not train; see ``check_training``."""
    task = plan.task
    needs = demand(plan.network, len(task.channels), plan.objective.output_channels, task.patch_size)
    network = (needs.weights + needs.largest) * NUMBER_BYTES
    check_memory("scoring models", network, limit if on_gpu is None else on_gpu)
    check_memory("scoring models and the images", cases_bytes(plan, grids) + (network if on_gpu is None else 0), limit)
