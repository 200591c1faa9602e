"""ConDistFL: undrawn regions are distilled from the global model (Wang et al., MICCAI DeCaF 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import nn

from fedseg import allowed
from fedseg.contract.combinations import EVERY_REGION, PLAIN_STEPS
from fedseg.contract.plan import Plan
from fedseg.errors import ConfigurationError
from fedseg.networks.weights import Arrays
from fedseg.tasks.segmentation.losses import channel_of_class
from fedseg.tasks.segmentation.partial_loss import split_targets
from fedseg.tasks.task import Task
from fedseg.training.hooks import LocalTraining, TrainingHook

_SMOOTH = 1e-5


class ConditionalDistillation(TrainingHook):
    """Teaches the network, where a site has drawn nothing, what the received global model says of undrawn regions.

    1. Of each case, the probabilities of the background and of the classes that nobody drew are taken under the
       condition that no drawn class is there; those of the regions of a group are added up.
    2. Voxels count that are labelled as no drawn class, and for which the global model predicts none.
    3. The loss grows by the soft Dice loss between the network and the global model, both at the same temperature: the
       mean over cases with undrawn regions, and over their groups and the background, of
       ``1 - (2 sum(s g) + e) / (sum(s) + sum(g) + e)``.
    4. Its weight grows from 0 in the first round, whose global model knows nothing, to ``strength`` in the last one.

    The authors' code (``research/condist-fl`` of NVIDIA FLARE) has a temperature of 2 where none is given, a weight
    that grows from 0.01 to 1 in its jobs, and one term over the whole batch with all of the site's undrawn classes.

    Cases in which all is drawn add nothing. Each step with others runs one forward pass more, without gradients.
    """

    withholds = frozenset({PLAIN_STEPS, EVERY_REGION})
    # The received model as a network of its own.
    copies = 1

    def __init__(self, strength: float = 1.0, temperature: float = 0.5, groups: Sequence[Sequence[str]] = ()) -> None:
        """Choose how strongly.

        Args:
            strength: weight of the term in the last round, from 0 up; 0 adds nothing.
            temperature: of both softmaxes, above 0; below 1 it sharpens both, above 1 (the authors' code) it flattens
                them.
            groups: regions that count as one structure, such as an organ and its tumour; any other region counts by
                itself.
        """
        allowed.number("strength", strength, least=0)
        allowed.number("temperature", temperature, above=0)
        names = [name for group in groups for name in group] if _is_lists(groups) else [""]
        if not all(names) or len(set(names)) != len(names):
            raise ConfigurationError("groups", groups, "lists of names of regions, each name once")
        self.strength, self.temperature, self.groups = strength, temperature, [list(group) for group in groups]
        self._global: nn.Module | None = None
        self._weight = 0.0

    def check_plan(self, plan: Plan) -> None:
        """Refuse a task whose regions do not exclude each other, and groups of regions that it does not have."""
        task = plan.task
        if not plan.objective.partial or not task.exclusive:
            names = list(task.region_names)
            raise ConfigurationError("task.regions", names, "regions that exclude each other, for this distillation")
        unknown = sorted({name for group in self.groups for name in group} - set(task.region_names))
        if unknown:
            raise ConfigurationError("groups", unknown, f"some of the regions {list(task.region_names)}")

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        last = training.total_rounds - 1
        self._weight = self.strength * (round_number / last if last > 0 else 1.0)
        self._global = deepcopy(training.network).requires_grad_(False).eval() if self._weight else None

    def loss(
        self, training: LocalTraining, images: torch.Tensor, logits: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor | None:
        labels, undrawn = split_targets(classes, len(training.task.regions))
        if self._global is None or undrawn is None:
            return None
        with torch.no_grad(), training.autocast():
            teacher = self._global(images).float()
        groups = group_matrix(training.task, self.groups).to(logits.device)
        channels = channel_of_class(training.task).to(logits.device)[labels.long()]
        term = distillation_term(logits.float(), teacher, channels, undrawn, groups, self.temperature)
        return self._weight * term

    def after_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        self._global = None


def group_matrix(task: Task, groups: Sequence[Sequence[str]]) -> torch.Tensor:
    """Which channels of the output each group has: [1 + groups, 1 + R], the background first, then the named groups,
    then every other region by itself."""
    names = task.region_names
    named = {name for group in groups for name in group}
    every = [*groups, *([name] for name in names if name not in named)]
    rows = [[1.0, *[0.0] * len(names)], *([0.0, *(float(name in group) for name in names)] for group in every)]
    return torch.tensor(rows)


def distillation_term(
    logits: torch.Tensor,
    teacher: torch.Tensor,
    channels: torch.Tensor,
    undrawn: torch.Tensor,
    groups: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """The term of ``ConditionalDistillation``, a scalar.

    Args:
        logits: of the network, [B, 1 + R, ...], background first.
        teacher: likewise of the global model.
        channels: the true output channel of each voxel [B, 1, ...]; undrawn regions count as background.
        undrawn: [B, R], True somewhere.
        groups: see ``group_matrix``.
        temperature: by which logits are divided.
    """
    partial = undrawn.any(dim=1)
    logits, teacher, channels, undrawn = logits[partial], teacher[partial], channels[partial].long(), undrawn[partial]
    drawn = torch.cat([torch.zeros_like(undrawn[:, :1]), ~undrawn], dim=1)
    labelled, predicted = (drawn.gather(1, value.flatten(1)) for value in (channels, teacher.argmax(dim=1)))
    counted = (~(labelled | predicted)).to(logits)[:, None]
    own, wanted = (
        torch.einsum("gc,bcv->bgv", groups.to(value), _conditional(value, drawn, temperature)) * counted
        for value in (logits, teacher)
    )
    both, size = (own * wanted).sum(dim=2), own.sum(dim=2) + wanted.sum(dim=2)
    there = (groups.to(logits) @ (~drawn).to(logits).T).T > 0
    return (1 - (2 * both + _SMOOTH) / (size + _SMOOTH))[there].mean()


def _conditional(logits: torch.Tensor, drawn: torch.Tensor, temperature: float) -> torch.Tensor:
    """Probabilities [B, channels, voxels] under the condition that no drawn channel is there."""
    return (logits.flatten(2) / temperature).masked_fill(drawn[:, :, None], -torch.inf).softmax(dim=1)


def _is_lists(groups: object) -> bool:
    return isinstance(groups, list | tuple) and all(
        isinstance(group, list | tuple) and group and all(isinstance(name, str) for name in group) for group in groups
    )
