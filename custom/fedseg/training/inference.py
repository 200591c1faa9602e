"""Sliding-window inference on whole cases, and its result on the grid of the original files."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from fedseg.data.grid import to_grid
from fedseg.tasks.objective import Objective
from fedseg.tasks.task import Task
from fedseg.training.prepare import PreparedCase

# With one image at a time and one thread torch takes a convolution three times slower than oneDNN's.
WINDOWS_AT_ONCE = 4


def choose_device(name: str) -> torch.device:
    """The torch device of this name; ``auto`` is the first GPU if there is one, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def infer_logits(
    network: nn.Module,
    task: Task,
    image: torch.Tensor,
    overlap: float,
    device: torch.device,
    check_abort: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Logits [1, output_channels, X, Y, Z] on the CPU for an image [C, X, Y, Z], windows of the task's patch size.

    Where the task says so, they are the mean over the image and its mirror images along all sets of the task's axes
    (test-time augmentation as in nnU-Net, Isensee et al., Nat Methods 2021), which takes twice as long for each axis.
    """

    def predict(window: torch.Tensor) -> torch.Tensor:
        check_abort()
        return network(window)

    def over_windows(values: torch.Tensor) -> torch.Tensor:
        logits = sliding_window_inference(
            values[None],
            roi_size=task.patch_size,
            sw_batch_size=WINDOWS_AT_ONCE,
            predictor=predict,
            overlap=overlap,
            mode="gaussian",
            sw_device=device,
            device="cpu",
        )
        assert isinstance(logits, torch.Tensor)
        return logits.float()

    axes = sorted(set(task.flip_axes)) if task.mirrored else []
    views = [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]
    with torch.inference_mode():
        total = over_windows(image)
        for chosen in views[1:]:
            total += over_windows(image.flip([1 + a for a in chosen])).flip([2 + a for a in chosen])
        return total / len(views)


def predict_values(kind: Objective, case: PreparedCase, logits: torch.Tensor) -> np.ndarray:
    """The activated values [K, X, Y, Z] on the case's original grid from logits [1, output_channels, ...]: in
    segmentation the probabilities of the regions.

    Activated values, not predictions, are brought to the original grid; outside the prepared image they are 0.
    """
    return to_grid(kind.activate(logits)[0].numpy(), case.grid, case.original)


def decide_case(kind: Objective, case: PreparedCase, values: np.ndarray) -> np.ndarray:
    """The prediction [X, Y, Z] from the values [K, X, Y, Z] on the case's original grid: class values (uint8) in
    segmentation."""
    return kind.refine(kind.decide(values), case.original.spacing)


def predict_case(kind: Objective, case: PreparedCase, logits: torch.Tensor) -> np.ndarray:
    """The prediction [X, Y, Z] on the case's original grid from logits [1, output_channels, ...]."""
    return decide_case(kind, case, predict_values(kind, case, logits))
