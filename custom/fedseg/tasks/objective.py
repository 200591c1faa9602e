"""What a kind of task gives training, validation, aggregation and reports; ``segmentation`` is the first kind."""

from __future__ import annotations

import importlib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fedseg.allowed import is_count, is_number
from fedseg.errors import ConfigurationError
from fedseg.tasks.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

# Of a score: what is above could not be summed over all cases.
_LARGEST = 1e12
MEAN = "mean"
"""Beside the outputs: the mean over those that have a score."""
SCORED = "scored"
"""Key of a summary: how many cases have each score but the primary one."""


@dataclass(frozen=True)
class Score:
    """One number by which a prediction is judged, for each output.

    Attributes:
        name: its key in reports and summaries.
        title: what people call it.
        unit: of the number; empty for a share.
        higher_is_better: which way is up.
        zero_is_best: whether values on both sides of 0 are worse than 0, as of a signed error.
        main: whether it is one of those that figures show and runs are ranked by; tables have the others apart.
        lowest, highest: its range.
        form: how reports print it.
        hint: how to read it, in a few words.
        meaning: what it is, in sentences.
        caveat: what to know of its mean over cases.
    """

    name: str
    title: str
    unit: str = ""
    higher_is_better: bool = True
    zero_is_best: bool = False
    main: bool = True
    lowest: float = 0.0
    highest: float = math.inf
    form: str = ".3f"
    hint: str = ""
    meaning: str = ""
    caveat: str = ""

    @property
    def axis(self) -> str:
        """What stands at an axis of a figure."""
        unit = f" in {self.unit}" if self.unit else ""
        better = "0 is best" if self.zero_is_best else "" if self.higher_is_better else "smaller is better"
        return f"{self.title}{unit}{better and f' ({better})'}"

    @property
    def short_form(self) -> str:
        """How figures print it."""
        return self.form if self.unit else ".2f"

    def goodness(self, value: float) -> float:
        """A number that is larger, the better the value is."""
        if self.zero_is_best:
            return -abs(value)
        return value if self.higher_is_better else -value

    def better(self, value: float, other: float) -> bool:
        """Whether a value is better than another one."""
        return self.goodness(value) > self.goodness(other)

    def best(self, values: Iterable[float | None]) -> float | None:
        """The best of the values that are defined; None where none is."""
        return max((value for value in values if value is not None), key=self.goodness, default=None)

    def worst(self, values: Iterable[float | None]) -> float | None:
        """The worst of the values that are defined; None where none is."""
        return min((value for value in values if value is not None), key=self.goodness, default=None)

    def in_range(self, value: Any) -> bool:
        """Whether this is a number in the score's range, and none beyond reason."""
        return is_number(value) and self.lowest <= value <= self.highest and abs(value) <= _LARGEST


@dataclass(frozen=True)
class ScoredCase:
    """One case scored: its name, its loss on the prepared grid, its scores on the original grid, and its patient."""

    id: str
    loss: float
    score: Any
    patient: str


class Objective(ABC):
    """A kind of task: what its cases are compared with, its loss and its scores, the first of which is the one number
    by which models of a run are compared.

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
        scores: of a case; the first is the primary one.
        counts: further facts of a case and output that are counted: their kinds, and what reports call these.
        needs_label: whether cases without a label file can be neither trained on nor scored.
        discrete: whether the reference has classes, each of which is brought to another grid by itself; else values.
        masks: whether predictions are label maps, which ``predict`` writes and pictures show.
        glossary: further terms of its reports, and what they mean.
    """

    title: ClassVar[str]
    output: ClassVar[str] = "output"
    scores: ClassVar[tuple[Score, ...]]
    counts: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    needs_label: ClassVar[bool] = True
    discrete: ClassVar[bool] = False
    masks: ClassVar[bool] = False
    glossary: ClassVar[Mapping[str, str]] = {}

    def __init__(self, task: Task) -> None:
        """Take the task, and refuse one that this kind cannot work with (ConfigurationError)."""
        self.task = task

    @property
    def primary(self) -> Score:
        """The score by which models of a run are compared."""
        return self.scores[0]

    @property
    def main_scores(self) -> tuple[Score, ...]:
        """Those that figures show and runs are ranked by."""
        return tuple(score for score in self.scores if score.main)

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """Names of what is predicted and scored."""

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

    def check_label(self, label: np.ndarray) -> None:
        """Refuse values of a label file that are not those of the task (DataError), where the kind needs labels."""
        if self.needs_label:
            self.reference(np.empty((0, *label.shape)), label)

    def targets(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the loss compares the network's output with.

        Args:
            batch: ``image`` [B, C, ...], and ``classes`` [B, 1, ...] where there is a reference.
        """
        return batch["classes"]

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

    @classmethod
    def summarise(cls, scores: Sequence[Any]) -> dict[str, Any]:
        """Means over the cases of one site, ready for JSON.

        Returns:
            ``cases``; the primary score per output and its ``mean`` over the outputs that have a value; each further
            score per output ({} unless every case has it); ``defined``: cases per output that have a primary score;
            ``scored``: of each further score that there is, cases per output that have it; for each of ``counts``, per
            output, in how many cases it was of which kind. An output without any scored case has None, never NaN.
        """
        first, *others = (score.name for score in cls.scores)
        outputs = list(getattr(scores[0], first)) if scores else []

        def means(name: str) -> dict[str, float | None]:
            return {r: mean([getattr(s, name)[r] for s in scores]) for r in outputs}

        def defined(name: str) -> dict[str, int]:
            return {r: sum(getattr(s, name)[r] is not None for s in scores) for r in outputs}

        def count(name: str, output: str) -> dict[str, int]:
            found = [getattr(s, name).get(output) for s in scores]
            return {kind: found.count(kind) for kind in cls.counts[name]}

        primary = means(first)
        measured = {name: bool(scores) and all(getattr(s, name) for s in scores) for name in others}
        return {
            "cases": len(scores),
            first: {**primary, MEAN: mean(list(primary.values()))},
            **{name: means(name) if measured[name] else {} for name in others},
            "defined": defined(first),
            SCORED: {name: defined(name) for name in others if measured[name]},
            **{name: {r: count(name, r) for r in outputs} for name in cls.counts},
        }

    @classmethod
    def read_case(cls, entry: Mapping[str, Any]) -> SimpleNamespace:
        """What ``score`` gave, from the form in which a site wrote it.

        Raises:
            KeyError: the entry lacks a score.
        """
        return SimpleNamespace(**{name: entry[name] for name in (*(score.name for score in cls.scores), *cls.counts)})

    @classmethod
    def pool(cls, summaries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """The summary of all cases of several sites, from the sites' own summaries: each case counts once."""
        parts = [s for s in summaries if s["cases"]]
        first, *others = (score.name for score in cls.scores)
        outputs = list(parts[0]["defined"]) if parts else []

        def defined(name: str, output: str) -> int:
            return sum(cases_with(s, name, output) for s in parts)

        def means(name: str) -> dict[str, float | None]:
            return {r: _weighted_mean(parts, name, r) for r in outputs}

        def count(name: str, output: str) -> dict[str, int]:
            return {kind: sum(s[name][output][kind] for s in parts) for kind in cls.counts[name]}

        primary = means(first)
        measured = {name: bool(parts) and all(s.get(name) for s in parts) for name in others}
        return {
            "cases": sum(s["cases"] for s in parts),
            first: {**primary, MEAN: mean(list(primary.values()))},
            **{name: means(name) if measured[name] else {} for name in others},
            "defined": {r: defined(first, r) for r in outputs},
            SCORED: {name: {r: defined(name, r) for r in outputs} for name in others if measured[name]},
            **{name: {r: count(name, r) for r in outputs} for name in cls.counts},
        }

    def fault(self, summary: Mapping[str, Any], further: Collection[str] = ()) -> str:
        """What is wrong with a summary that came from elsewhere; empty where ``summarise`` could have given it.

        Args:
            summary: as it came.
            further: keys that may stand beside those of ``summarise``.
        """
        numbers = {"defined": is_count, **{score.name: score.in_range for score in self.scores}}
        if set(summary) - {"cases", SCORED, *numbers, *self.counts, *further}:
            return "its scores have unknown parts"
        names = {*self.outputs, MEAN}
        found = [_fault(summary.get(name, {}), names, fits) for name, fits in numbers.items()]
        scored = summary.get(SCORED, {})
        found.append(_fault(scored, {score.name for score in self.scores}, lambda each: isinstance(each, Mapping)))
        found += [_fault(each, names, is_count) for each in (scored.values() if not found[-1] else ())]
        for name, kinds in self.counts.items():
            part = summary.get(name, {})
            found.append(_fault(part, names, lambda count: isinstance(count, Mapping)))
            found += [_fault(count, kinds, is_count) for count in (part.values() if not found[-1] else ())]
        return next(filter(None, found), "") or self._gap(summary)

    def _gap(self, summary: Mapping[str, Any]) -> str:
        """What a summary of cases lacks, with which it could not be pooled with those of other sites."""
        first, *others = (score.name for score in self.scores)
        needed = ("defined", *self.counts, *(name for name in others if summary.get(name)))
        parts = [(first, summary.get(first, {}), {*self.outputs, MEAN})]
        parts += [(name, summary.get(name, {}), {*self.outputs}) for name in needed]
        parts += [(SCORED, counts, {*self.outputs}) for counts in summary.get(SCORED, {}).values()]
        lacking = [name for name, part, names in parts if summary.get("cases") and names - set(part)]
        return f"its {lacking[0]} lacks numbers" if lacking else ""


def _fault(part: Any, names: Collection[str], fits: Callable[[Any], bool]) -> str:
    """What is wrong with numbers by name; None may stand for a number that there is not."""
    if not isinstance(part, Mapping):
        return "it holds something else where numbers by name are expected"
    if not set(part) <= set(names):
        return "it holds numbers under unknown names"
    sound = all(value is None or fits(value) for value in part.values())
    return "" if sound else "it holds something else than finite numbers in their range"


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are defined; None where none is."""
    defined = [v for v in values if v is not None]
    return math.fsum(defined) / len(defined) if defined else None


def cases_with(summary: Mapping[str, Any], score: str, output: str) -> int:
    """How many cases of a summary have a score of an output."""
    counts: Mapping[str, int] = summary.get(SCORED, {}).get(score, summary["defined"])
    return counts[output]


def _weighted_mean(parts: Sequence[Mapping[str, Any]], metric: str, output: str) -> float | None:
    counted = [(s, cases_with(s, metric, output)) for s in parts]
    pairs = [(s[metric][output], count) for s, count in counted if count]
    total = sum(count for _, count in pairs)
    return math.fsum(value * count for value, count in pairs) / total if total else None


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
