"""What a site says of itself, checked as far as it can be known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedseg.contract.protocol import STATISTICS
from fedseg.contract.report import SiteReport
from fedseg.contract.settings import TrainingSettings
from fedseg.errors import RefusalError
from fedseg.workflows.run.site_selection import SiteFacts

# Dice and cross-entropy together stay far below it.
_LARGEST_LOSS = 1000
_LARGEST_STATISTIC = 1e15
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


def check_report(report: SiteReport, facts: SiteFacts, settings: TrainingSettings) -> None:
    """Compare what a site reports of a round with what it said before, and with what the plan makes of it.

    Rules weigh by these numbers, so none is believed that can be known.

    Raises:
        RefusalError: a number differs, or a loss is no loss (reason ``report``).
    """
    steps = settings.local_epochs * -(-facts.num_samples // settings.batch_size)
    for name, expected in (
        ("num_samples", facts.num_samples),
        ("val_cases", facts.val_cases),
        ("num_steps", steps),
    ):
        found = getattr(report, name)
        if found != expected:
            raise RefusalError("report", f"The site reports {name} {found}, but by its own account it is {expected}.")
    for name in ("train_loss", "val_loss", "val_loss_after"):
        loss = getattr(report, name)
        if loss is not None and not 0 <= loss <= _LARGEST_LOSS:
            raise RefusalError("report", f"The reported {name} {loss} is not from 0 to {_LARGEST_LOSS}.")


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
        isinstance(name, str) and type(value) in (int, float) and 0 <= value <= _LARGEST_STATISTIC
        for name, value in statistics.items()
    ):
        raise RefusalError("report", "The site's statistics are not numbers from 0 to 1e15.")
    return Acceptance(cases, {name: float(value) for name, value in statistics.items()})
