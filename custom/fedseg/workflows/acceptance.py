"""A site's answer to ``prepare``, read without trusting anything in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedseg.errors import RefusalError
from fedseg.executors.protocol import STATISTICS

_SPLITS = ("training", "validation", "test")


@dataclass(frozen=True)
class Acceptance:
    """What a site that takes part says of itself.

    Attributes:
        cases: number of cases by split.
        statistics: numbers that are added up over all sites, see ``TrainingHook.statistics``.
    """

    cases: Mapping[str, int]
    statistics: Mapping[str, float] = field(default_factory=dict)


def read_acceptance(answer: Any) -> Acceptance:
    """Check an answer.

    Raises:
        RefusalError: a count or a statistic is missing, negative or not finite (reason ``report``).
    """
    content = answer if isinstance(answer, Mapping) else {}
    cases: dict[str, Any] = {split: content.get(split) for split in _SPLITS}
    if not all(type(count) is int and count >= 0 for count in cases.values()) or not cases["training"]:
        raise RefusalError("report", "The site's numbers of cases are missing, or it has no training cases.")
    statistics = content.get(STATISTICS, {})
    if not isinstance(statistics, Mapping) or not all(
        isinstance(name, str) and type(value) in (int, float) and math.isfinite(value) and value >= 0
        for name, value in statistics.items()
    ):
        raise RefusalError("report", "The site's statistics are not finite numbers from 0 up.")
    return Acceptance(cases, {name: float(value) for name, value in statistics.items()})
