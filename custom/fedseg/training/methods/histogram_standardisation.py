"""Federated histogram standardisation, the site's side: landmarks of the site's images."""

from __future__ import annotations

import numpy as np
import torch

from fedseg.contract.plan import Plan
from fedseg.data.case_reading import read_case
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.parts.standard_scale import LANDMARK_SUMS, STANDARD_SCALE
from fedseg.networks.weights import Arrays
from fedseg.tasks.landmarks import LEVELS, landmarks, relative
from fedseg.tasks.normalisation import counted_voxels
from fedseg.tasks.task import LANDMARKS
from fedseg.training.hooks import LocalTraining, TrainingHook
from fedseg.training.prepare import resample


class HistogramStandardisation(TrainingHook):
    """Brings the histograms of all sites' images to one standard scale (Nyul and Udupa, Magn Reson Med 1999).

    1. Every image is normalised by its own landmarks (``landmarks`` of the task).
    2. Before round 0 a site sends, for each channel, the sum of the relative landmarks of its training images and how
       many they are, and nothing else of them; ``aggregators.standard_landmarks.StandardLandmarks`` adds them up.
    3. The part ``standard_scale`` of every site's network maps the landmarks of each image to their mean over all.

    Missing channels do not count.
    """

    prefix = "landmarks/"

    def check_plan(self, plan: Plan) -> None:
        plan.network.require_part(STANDARD_SCALE, "HistogramStandardisation")
        if plan.task.normalisation != LANDMARKS:
            found = plan.task.normalisation
            raise ConfigurationError("task.normalisation", found, f"{LANDMARKS} for HistogramStandardisation")

    def arrays_before_rounds(self, training: LocalTraining) -> Arrays:
        task = training.training_cases.task
        sums = np.zeros((len(task.channels), len(LEVELS) + 1))
        for case in training.training_cases.cases:
            array, grid, _ = read_case(task, case)
            for channel, values in enumerate(resample(task, array, grid).as_tensor()):
                sums[channel] += _counted(values[counted_voxels(task, values)].double())
        return {f"{self.prefix}sums": sums.astype(np.float32)}

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        if not global_weights[LANDMARK_SUMS].any():
            raise RefusalError("weights", "The model has no landmarks: its job lacks StandardLandmarks.")


def _counted(values: torch.Tensor) -> np.ndarray:
    """Relative landmarks and the number 1; zeros of an image that is missing, or too flat to have landmarks."""
    found = landmarks(values.numpy()) if len(values) else np.zeros(len(LEVELS))
    return np.append(relative(found), 1.0) if found[-1] > found[0] else np.zeros(len(LEVELS) + 1)
