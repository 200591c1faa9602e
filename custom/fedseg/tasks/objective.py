"""What a kind of task gives training, validation, aggregation and reports; ``segmentation`` is the first kind."""

from __future__ import annotations

import importlib
import inspect
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fedseg.errors import ConfigurationError
from fedseg.tasks.scores import MEAN, SCORED, Score, Scored, ScoredCase, cases_with, mean
from fedseg.tasks.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["MEAN", "SCORED", "Objective", "Score", "ScoredCase", "cases_with", "mean", "objective_of"]


class Objective(Scored):
    """A kind of task: what its cases are compared with, its loss, and its scores (see ``Scored``).

    A new kind is one file, ``fedseg/tasks/<name>.py`` (or ``fedseg/tasks/<name>/objective.py``), with one subclass; a
    job names it in its task: ``{"objective": "<name>", ...}``.

    >>> from fedseg.tasks.registry import BRATS
    >>> segmentation = objective_of(BRATS)
    >>> segmentation.outputs, segmentation.primary.title
    (('ET', 'TC', 'WT'), 'Dice')
    >>> segmentation.primary.better(0.8, 0.7)
    True

    Attributes:
        title: what it is called in the title of a report: "Federated ...".
        output: what one of its outputs is called.
        needs_label: whether cases without a label file can be neither trained on nor scored.
        discrete: whether the reference has classes, each of which is brought to another grid by itself; else values.
        partial: whether its loss and its scores can leave out outputs that nobody drew, see ``tasks.drawn``.
        masks: whether predictions are label maps, which ``predict`` writes and pictures show.
        glossary: further terms of its reports, and what they mean.
    """

    title: ClassVar[str]
    output: ClassVar[str] = "output"
    needs_label: ClassVar[bool] = True
    discrete: ClassVar[bool] = False
    partial: ClassVar[bool] = False
    masks: ClassVar[bool] = False
    glossary: ClassVar[Mapping[str, str]] = {}

    def __init__(self, task: Task) -> None:
        """Take the task, and refuse one that this kind cannot work with (ConfigurationError)."""
        self.task = task

    @property
    @abstractmethod
    def output_channels(self) -> int:
        """Channels of the network's output."""

    @abstractmethod
    def reference(self, image: np.ndarray, label: np.ndarray | None) -> np.ndarray | None:
        """What a prediction is compared with, shape [X, Y, Z], on the grid of the files.

        Args:
            image: the case's channels [C, X, Y, Z] as they stand in the files.
            label: the label file's values [X, Y, Z]; None without one.
        """

    def only_drawn(self, reference: np.ndarray, drawn: Sequence[bool]) -> np.ndarray:
        """The reference without what lies in no drawn output; for kinds that are ``partial``.

        Args:
            reference: as ``reference`` gave it.
            drawn: of each output, whether it is drawn.
        """
        return reference

    def check_label(self, label: np.ndarray) -> None:
        """Refuse values of a label file that are not those of the task (DataError), where the kind needs labels."""
        if self.needs_label:
            self.reference(np.empty((0, *label.shape)), label)

    def targets(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the loss compares the network's output with.

        Args:
            batch: ``image`` [B, C, ...]; ``classes`` [B, 1, ...] where there is a reference; ``drawn`` [B, outputs] if
                not every output is drawn in every case of it.
        """
        return batch["classes"]

    def coarser(self, targets: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """``targets`` as the loss compares them with a coarser output: classes of the nearest voxel, as nnU-Net has
        them, values as means over the area.

        Args:
            targets: [B, 1, ...].
            size: of the output, along each axis.
        """
        from torch.nn import functional

        mode = "nearest-exact" if self.discrete else "area"
        return functional.interpolate(targets.float(), tuple(size), mode=mode).to(targets.dtype)

    @abstractmethod
    def loss(self, settings: Mapping[str, Any]) -> nn.Module:
        """The loss: a scalar from logits [B, output_channels, ...] and ``targets``.

        Args:
            settings: of the plan's ``training``.
        """

    def losses(self, settings: Mapping[str, Any]) -> tuple[float, float]:
        """Lowest and highest value that a site may report of this loss; any number unless a kind knows better.

        Args:
            settings: of the plan's ``training``.
        """
        return -math.inf, math.inf

    @abstractmethod
    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """Values [B, K, ...] that can be interpolated, from logits [B, output_channels, ...]."""

    @abstractmethod
    def decide(self, values: np.ndarray) -> np.ndarray:
        """The prediction [X, Y, Z] from the activated values [K, X, Y, Z] on the grid of the files."""

    def refine(self, predicted: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
        """What the task wants changed of a prediction [X, Y, Z] with voxels of this size in mm; nothing by default."""
        return predicted

    @abstractmethod
    def score(
        self,
        predicted: np.ndarray,
        reference: np.ndarray | None,
        spacing: tuple[float, float, float],
        settings: Mapping[str, Any],
        full: bool = True,
        values: np.ndarray | None = None,
    ) -> Any:
        """Judge one case, on the grid of the files.

        Args:
            predicted: as ``refine`` gave it.
            reference: as ``reference`` gave it.
            spacing: size of a voxel in mm.
            settings: of the plan's ``training``.
            full: also the scores that take long; the primary one is always there.
            values: the activated values [K, X, Y, Z] of which it was decided, for scores that need them; None: without
                these scores.

        Returns:
            A dataclass with a mapping output -> value or None for each of ``scores`` (empty where it was not asked
            for) and output -> kind for each of ``counts``.
        """

    def score_drawn(
        self,
        drawn: Sequence[bool] | None,
        predicted: np.ndarray,
        reference: np.ndarray | None,
        spacing: tuple[float, float, float],
        settings: Mapping[str, Any],
        full: bool = True,
        values: np.ndarray | None = None,
    ) -> Any:
        """Judge one case by what is drawn in it.

        Args:
            drawn: of each output, whether it is drawn; None: all are.
            predicted, reference, spacing, settings, full, values: see ``score``.

        Returns:
            What ``score`` gives; an output that nobody drew has no value, and is in no count.
        """
        found = self.score(predicted, reference, spacing, settings, full, values)
        if drawn is not None:
            self.leave_out(found, [name for name, is_drawn in zip(self.outputs, drawn, strict=True) if not is_drawn])
        return found


def objective_of(task: Task) -> Objective:
    """The kind of a task.

    Raises:
        ConfigurationError: there is no such kind, or it cannot work with this task.
    """
    found = [kind for kind in _kinds(task.objective) if not inspect.isabstract(kind)]
    if len(found) != 1:
        raise ConfigurationError(
            "task.objective", task.objective, "the name of a module of fedseg.tasks with a kind of task"
        )
    return found[0](task)


def _kinds(name: str) -> list[type[Objective]]:
    """Subclasses of Objective that ``fedseg.tasks.<name>`` or its module ``objective`` defines."""
    place = f"fedseg.tasks.{name}"
    spec = find_spec(place)
    if spec is not None and spec.submodule_search_locations is not None:
        place += ".objective"
        spec = find_spec(place)
    if spec is None:
        return []
    content = vars(importlib.import_module(place)).values()
    return [c for c in content if isinstance(c, type) and issubclass(c, Objective) and c.__module__ == place]
