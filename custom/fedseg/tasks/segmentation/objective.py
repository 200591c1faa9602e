"""Segmentation: regions judged beside a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from fedseg.tasks.drawn import undrawn_classes
from fedseg.tasks.objective import Objective
from fedseg.tasks.segmentation.components import keep_components
from fedseg.tasks.segmentation.labels import paint_regions, to_classes
from fedseg.tasks.segmentation.losses import SegmentationLoss, loss_of_settings, predict_regions
from fedseg.tasks.segmentation.metrics import CaseScore, score_case
from fedseg.tasks.segmentation.partial_loss import coarser_targets, join_targets
from fedseg.tasks.segmentation.scores import GLOSSARY, SCORES


class Segmentation(Objective):
    """A label map with the classes of a task. Outputs are its regions; the primary score is the mean Dice over them."""

    title = "segmentation"
    output = "region"
    scores = SCORES
    counts: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "empty": {
            "both": "in both (agreement)",
            "reference": "only in the reference (false alarm)",
            "prediction": "only in the prediction (missed)",
        }
    }
    discrete = True
    partial = True
    masks = True
    glossary = GLOSSARY

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.task.region_names

    @property
    def output_channels(self) -> int:
        return self.task.output_channels

    def reference(self, image: np.ndarray, label: np.ndarray | None) -> np.ndarray | None:
        """Internal class values, uint8."""
        return None if label is None else to_classes(self.task, label)

    def targets(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Class values, which also say what nobody drew in a batch that has such cases."""
        return join_targets(batch["classes"], batch["drawn"]) if "drawn" in batch else batch["classes"]

    def coarser(self, targets: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        return coarser_targets(targets, tuple(size)) if targets.dtype == torch.int64 else super().coarser(targets, size)

    def only_drawn(self, reference: np.ndarray, drawn: Sequence[bool]) -> np.ndarray:
        """The background in place of classes that lie in no drawn region."""
        gone = [self.task.classes.index(name) + 1 for name in undrawn_classes(self.task, drawn)]
        return np.where(np.isin(reference, gone), 0, reference).astype(reference.dtype) if gone else reference

    def loss(self, settings: Mapping[str, Any]) -> SegmentationLoss:
        return loss_of_settings(self.task, settings)

    def losses(self, settings: Mapping[str, Any]) -> tuple[float, float]:
        """Far above what a term of regions and one of voxels together can be."""
        return 0.0, 1000.0 * max(1.0, settings["dice_weight"])

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

    def refine(self, predicted: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
        """Internal class values of the connected parts that the task keeps."""
        return keep_components(self.task, predicted, spacing)

    def score(
        self,
        predicted: np.ndarray,
        reference: np.ndarray | None,
        spacing: tuple[float, float, float],
        settings: Mapping[str, Any],
        full: bool = True,
        values: np.ndarray | None = None,
    ) -> CaseScore:
        assert reference is not None
        form = settings.get("hd95", "larger")
        return score_case(self.task, predicted, reference, spacing, settings["empty"], full, form, values)
