"""How cases of a kind of task are scored, and how the scores of cases become summaries of sites and of all of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

from fedseg.allowed import is_count, is_number

Name = TypeVar("Name")
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

    def order(self, values: Mapping[Name, float], worst_first: bool = False) -> list[Name]:
        """Names by how good their values are, the best first; equal ones keep their order."""
        return sorted(values, key=lambda name: self.goodness(values[name]) * (1 if worst_first else -1))

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


class Scored(ABC):
    """The scores of a kind of task, the first of which is the one number by which models of a run are compared.

    Attributes:
        scores: of a case; the first is the primary one.
        counts: further facts of a case and output that are counted: their kinds, and what reports call these.
    """

    scores: ClassVar[tuple[Score, ...]]
    counts: ClassVar[Mapping[str, Mapping[str, str]]] = {}

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """Names of what is predicted and scored."""

    @property
    def primary(self) -> Score:
        """The score by which models of a run are compared."""
        return self.scores[0]

    @property
    def main_scores(self) -> tuple[Score, ...]:
        """Those that figures show and runs are ranked by."""
        return tuple(score for score in self.scores if score.main)

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
    def leave_out(cls, score: Any, outputs: Collection[str]) -> None:
        """Take outputs out of the scores of a case, in place: they have no value, and are in no count."""
        valued = {each.name for each in cls.scores}
        for part, values in vars(score).items():
            for output in set(outputs) & set(values) if isinstance(values, dict) else ():
                if part in valued:
                    values[output] = None
                else:
                    del values[output]

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
