"""What training takes of a site's memory, counted before anything is built or read."""

from __future__ import annotations

from collections.abc import Sequence

from fedseg.contract.plan import Plan
from fedseg.data.grid import Grid
from fedseg.memory import check_memory
from fedseg.networks.demand import NUMBER_BYTES, demand

_HALF = 2
# Weights, gradients and the received model; what the optimizer keeps of each parameter comes beside.
_COPIES = 3
_OPTIMIZER = {"adamw": 2, "sgd": 1}


def training_bytes(plan: Plan, cases: int) -> int:
    """Memory of the network, its optimizer, and what all layers keep of a batch until the backward pass.

    Args:
        plan: of the job.
        cases: of the site; a batch has no more.
    """
    task, settings = plan.task, plan.training
    needs = demand(plan.network, len(task.channels), plan.objective.output_channels, task.patch_size)
    copies = _COPIES + _OPTIMIZER[settings.optimizer]
    # `auto` is mixed on a GPU, where half the bytes may do.
    number = NUMBER_BYTES if settings.precision == "float32" else _HALF
    return needs.weights * copies * NUMBER_BYTES + needs.kept * min(settings.batch_size, max(1, cases)) * number


def cases_bytes(plan: Plan, grids: Sequence[Grid]) -> int:
    """Memory of prepared images: the largest one, and all where they stay in memory and are not cropped.

    By how much the crop of a foreground makes an image smaller is known only after it was read.
    """
    task = plan.task
    sizes = [len(task.channels) * grid.voxels_at(task.spacing) * NUMBER_BYTES for grid in grids]
    kept = plan.training.cache == "memory" and not task.crop_to_foreground
    return sum(sizes) if kept else max(sizes, default=0)


def check_training(plan: Plan, grids: Sequence[Grid], limit: int | None = None, on_gpu: int | None = None) -> None:
    """Refuse a job whose training could not fit into memory.

    Args:
        plan: of the job.
        grids: of all cases of the site.
        limit: bytes that a job may take at this site; None for what the machine has.
        on_gpu: bytes of the GPU on which the network is trained; None for training on the CPU.

    Raises:
        ConfigurationError: names the estimate and the limit.
    """
    size = "x".join(map(str, plan.task.patch_size))
    network, images = training_bytes(plan, len(grids)), cases_bytes(plan, grids)
    what = f"training with batches of {plan.training.batch_size} patches of {size} voxels"
    check_memory(what, network, limit if on_gpu is None else on_gpu)
    check_memory(f"{what} and the images", images + (network if on_gpu is None else 0), limit)
