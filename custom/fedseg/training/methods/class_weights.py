"""A loss weighted by how rare each class is over all sites (Qu, Balachandar and Rubin, 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedseg.contract.combinations import EVERY_REGION, STATISTICS
from fedseg.contract.plan import Plan
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.weights import Arrays
from fedseg.tasks.segmentation.loss_terms import LOSSES, LossTerms
from fedseg.tasks.segmentation.losses import loss_of_settings, terms_of_settings
from fedseg.tasks.task import Task
from fedseg.training.hooks import LocalTraining, TrainingHook

VOXELS = "voxels"
_LEAST_WEIGHT = 1e-30


class ClassWeights(TrainingHook):
    """Weighs the cross-entropy by the inverse frequency of the classes in all sites' training cases together.

    1. Before the first round each site counts the voxels of its training cases and of each region in them.
       The counts, and nothing else, leave the site; the server adds them up.
    2. Every site makes the same weights of the sums, see ``weights_from_totals``, and trains with them. A site whose
       own cases are skewed so gets no weights that fit to its own skew.

    Scores (``val_loss`` and others) stay unweighted. A site that joins later gets the sums of those before it. The
    frequencies are those of whole cases: a task with ``sampling`` frequencies draws patches with more of the rare
    classes, so both together may be too much.
    """

    needs = TrainingHook.needs | {STATISTICS, EVERY_REGION}

    def check_plan(self, plan: Plan) -> None:
        """Refuse a loss without the cross-entropy."""
        if not terms_of_settings(plan.training.to_dict()).weighs_classes:
            known = sorted(name for name in LOSSES if LossTerms(name).weighs_classes)
            raise ConfigurationError("training.loss", plan.training.loss, f"one of {known} with class weights")

    def statistics(self, training: LocalTraining) -> dict[str, float]:
        return count_voxels(training)

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        self._weigh(training)

    def before_fine_tuning(self, training: LocalTraining) -> None:
        """Sites go on with the loss that they trained with."""
        self._weigh(training)

    def _weigh(self, training: LocalTraining) -> None:
        weights = weights_from_totals(training.task, training.totals)
        # Equal weights are no weights: the plain mean then gives the same bits as without this hook.
        chosen = None if bool((weights == 1).all()) else weights
        training.loss = loss_of_settings(training.task, training.settings.to_dict(), chosen)


def count_voxels(training: LocalTraining) -> dict[str, float]:
    """Voxels of the site's training cases on the task's grid (``voxels``) and of each region in them
    (``voxels/<region>``). What a small image is padded with to fill a patch does not count."""
    task, cases = training.task, training.training_cases
    classes = torch.zeros(len(task.classes) + 1, dtype=torch.float64)
    for index in range(len(cases)):
        classes += torch.tensor(cases[index].voxels)
    inside = [float(classes[list(task.region_values(region))].sum()) for region in task.regions]
    return {VOXELS: float(classes.sum()), **dict(zip(_names(task), inside, strict=True))}


def weights_from_totals(task: Task, totals: Mapping[str, float]) -> torch.Tensor:
    """Weights for ``SegmentationLoss`` from voxel counts of all sites.

    Args:
        task: exclusive regions: the classes are the background and the regions, weights [output_channels];
            overlapping ones: each region has the two classes outside and inside, weights [R, 2].
        totals: what ``count_voxels`` gives, added up.

    Raises:
        RefusalError: a count is missing or impossible (reason ``report``).
    """
    counts = [totals.get(name) for name in (VOXELS, *_names(task))]
    if not all(isinstance(count, int | float) and 0 <= count <= totals[VOXELS] for count in counts):
        raise RefusalError("report", "The server's sums of voxels per region are missing or impossible.")
    if task.exclusive and sum(totals[name] for name in _names(task)) > totals[VOXELS]:
        raise RefusalError("report", "The server's sums hold more voxels in regions than there are.")
    total, *regions = (float(totals[name]) for name in (VOXELS, *_names(task)))
    if task.exclusive:
        return inverse_frequencies(torch.tensor([total - sum(regions), *regions], dtype=torch.float64))
    return inverse_frequencies(torch.tensor([[total - inside, inside] for inside in regions], dtype=torch.float64))


def inverse_frequencies(counts: torch.Tensor) -> torch.Tensor:
    """Weights in proportion to 1 / count over the last axis, with mean 1.

    A class of which there is no voxel gets 1, and the mean is over the others: it has no voxel to weigh, and must not
    draw the weights of the others towards 0. Equal counts give exactly 1, and no weight is below 1e-30: a batch that
    holds only the most frequent class would otherwise have no weight at all.
    """
    present = counts > 0
    smallest = torch.where(present, counts, torch.inf).amin(dim=-1, keepdim=True)
    inverse = torch.where(present, smallest / counts, 0.0)
    mean = inverse.sum(dim=-1, keepdim=True) / present.sum(dim=-1, keepdim=True)
    return torch.where(present, (inverse / mean).clamp_min(_LEAST_WEIGHT), 1.0)


def _names(task: Task) -> list[str]:
    return [f"{VOXELS}/{region}" for region in task.region_names]
