"""Segmentation: regions judged by their overlap with a reference, and by the distance between the two surfaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from fedseg.tasks.objective import Objective, Score
from fedseg.tasks.segmentation.labels import paint_regions, to_classes
from fedseg.tasks.segmentation.losses import SegmentationLoss, predict_regions
from fedseg.tasks.segmentation.metrics import CaseScore, score_case


class Segmentation(Objective):
    """A label map with the classes of a task. Outputs are its regions; the primary score is the mean Dice over them."""

    title = "segmentation"
    output = "region"
    scores = (Score("dice", "Dice", highest=1.0), Score("hd95", "HD95", "mm", higher_is_better=False, form=".1f"))
    counts: ClassVar[Mapping[str, tuple[str, ...]]] = {"empty": ("both", "reference", "prediction")}
    interpolation = "nearest"
    masks = True

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.task.region_names

    @property
    def output_channels(self) -> int:
        return self.task.output_channels

    def reference(self, image: np.ndarray, label: np.ndarray | None) -> np.ndarray | None:
        """Internal class values, uint8."""
        return None if label is None else to_classes(self.task, label)

    def loss(self, settings: Mapping[str, Any]) -> SegmentationLoss:
        return SegmentationLoss(self.task, settings["dice_weight"], settings["batch_dice"])

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities of the regions: probabilities, not labels, are brought to the grid of the files."""
        return predict_regions(self.task, logits)

    def decide(self, values: np.ndarray) -> np.ndarray:
        """Internal class values, uint8; where no region is likely enough there is background."""
        if not self.task.exclusive:
            return paint_regions(self.task, values > 0.5)
        background = np.clip(1 - values.sum(axis=0, keepdims=True), 0, 1)
        winner = np.concatenate([background, values]).argmax(axis=0)
        classes = np.array([0, *(self.task.region_values(region)[0] for region in self.task.regions)], np.uint8)
        return classes[winner]

    def score(
        self,
        predicted: np.ndarray,
        reference: np.ndarray | None,
        spacing: tuple[float, float, float],
        settings: Mapping[str, Any],
        full: bool = True,
    ) -> CaseScore:
        assert reference is not None
        return score_case(self.task, predicted, reference, spacing, settings["empty"], distances=full)
