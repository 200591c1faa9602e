"""Segmentation: regions judged by their overlap with a reference, and by the distance between the two surfaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from fedseg.tasks.objective import Objective, Score
from fedseg.tasks.segmentation.components import keep_components
from fedseg.tasks.segmentation.labels import paint_regions, to_classes
from fedseg.tasks.segmentation.losses import SegmentationLoss, predict_regions
from fedseg.tasks.segmentation.metrics import CaseScore, score_case


class Segmentation(Objective):
    """A label map with the classes of a task. Outputs are its regions; the primary score is the mean Dice over them."""

    title = "segmentation"
    output = "region"
    scores = (
        Score(
            "dice",
            "Dice",
            highest=1.0,
            hint="1 is perfect, 0 is no overlap",
            meaning="Twice the shared volume of prediction and reference over the sum of their volumes. It is "
            "unforgiving to small structures: one voxel matters more there.",
        ),
        Score(
            "hd95",
            "HD95",
            "mm",
            higher_is_better=False,
            form=".1f",
            hint="smaller is better",
            meaning="The distance in millimetres within which 95\N{NO-BREAK SPACE}% of one surface lies from the "
            "other; computed in both directions, the larger counts. Always on the image's original grid.",
            caveat="A region that was missed or invented altogether counts as a very large distance and dominates such "
            "a mean.",
        ),
    )
    counts: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "empty": {
            "both": "in both (agreement)",
            "reference": "only in the reference (false alarm)",
            "prediction": "only in the prediction (missed)",
        }
    }
    discrete = True
    masks = True
    glossary: ClassVar[Mapping[str, str]] = {
        "Empty regions": "A patient may have no voxel of a region, such as no enhancing tumour. The BraTS convention: "
        "if prediction and reference are both empty, Dice is 1 and HD95 is 0; if only one is, Dice is 0 and HD95 is "
        'the diagonal of the image (373\N{NO-BREAK SPACE}mm for a BraTS image). The convention "exclude" leaves '
        "cases with an empty reference out of the means instead."
    }

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

    def losses(self, settings: Mapping[str, Any]) -> tuple[float, float]:
        """Far above what cross-entropy and Dice loss together can be."""
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
    ) -> CaseScore:
        assert reference is not None
        form = settings.get("hd95", "larger")
        return score_case(self.task, predicted, reference, spacing, settings["empty"], distances=full, form=form)
