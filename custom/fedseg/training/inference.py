"""Sliding-window inference on whole cases, and its result on the grid of the original files."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from fedseg.data.grid import to_grid
from fedseg.tasks.segmentation.labels import paint_regions
from fedseg.tasks.segmentation.losses import predict_regions
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
    """Logits [1, output_channels, X, Y, Z] on the CPU for an image [C, X, Y, Z], windows of the task's patch size."""

    def predict(window: torch.Tensor) -> torch.Tensor:
        check_abort()
        return network(window)

    with torch.inference_mode():
        logits = sliding_window_inference(
            image[None],
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


def segment(task: Task, case: PreparedCase, logits: torch.Tensor) -> np.ndarray:
    """Internal class values [X, Y, Z] (uint8) on the case's original grid from logits [1, output_channels, ...].

    Probabilities, not labels, are brought to the original grid; outside the prepared image all is background.
    """
    regions = predict_regions(task, logits)[0].numpy()
    if not task.exclusive:
        return paint_regions(task, to_grid(regions, case.grid, case.original) > 0.5)
    moved = to_grid(regions, case.grid, case.original)
    background = np.clip(1 - moved.sum(axis=0, keepdims=True), 0, 1)
    winner = np.concatenate([background, moved]).argmax(axis=0)
    values = np.array([0, *(task.region_values(region)[0] for region in task.regions)], np.uint8)
    return values[winner]
