"""Estimate the noise-free intensity of every voxel: a kind of task without labels, regions or Dice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import uniform_filter

from fedseg.tasks.objective import Objective, Score


@dataclass(frozen=True)
class Errors:
    """Mean absolute error per output."""

    mae: dict


class MeanSquares(torch.nn.Module):
    def forward(self, logits, target):
        return ((logits - target) ** 2).mean()


class Intensity(Objective):
    """The mean of the 27 voxels around each one, in hundreds of the file's units."""

    title = "intensity regression"
    scores = (Score("mae", "Error", "units", higher_is_better=False, form=".2f", hint="smaller is better"),)
    needs_label = False
    outputs = ("intensity",)
    output_channels = 1

    def reference(self, image, label):
        return (uniform_filter(image[0], 3) / 100).astype(np.float32)

    def loss(self, settings):
        return MeanSquares()

    def activate(self, logits):
        return logits

    def decide(self, values):
        return values[0]

    def score(self, predicted, reference, spacing, settings, full=True, values=None):
        return Errors({"intensity": float(100 * np.abs(predicted - reference).mean())})
