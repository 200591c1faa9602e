"""In how many cases of a site each region is drawn, and each channel acquired, as the statistics tell it."""

from __future__ import annotations

from fedseg.statistics import quantities as q
from fedseg.statistics.quantities import named
from fedseg.statistics.site_statistics import Statistics
from fedseg.statistics.tally import OTHER
from fedseg.tasks.task import Task


def cases_drawn(statistics: Statistics, task: Task) -> dict[str, float | None]:
    """Cases in which each region is drawn (with noise, patients).

    A case in which a region is not drawn does not say whether it is there, so the weights of those that do are the
    number. None where too few patients are behind it to be told.
    """
    return {r: _weight(statistics, named(q.PRESENT, r)) for r in (task.region_names if task.classes else ())}


def share_acquired(statistics: Statistics, channel: str) -> float | None:
    """The share of cases that have a channel which a case may lack; None where it is not told."""
    name = named(q.ACQUIRED, channel)
    total, found = _weight(statistics, name), statistics.categories.get(name, {})
    if total is None or OTHER in found:
        return None
    return max(0.0, found.get(q.YES, 0.0)) / total


def _weight(statistics: Statistics, name: str) -> float | None:
    total = sum(max(0.0, weight) for weight in statistics.categories.get(name, {}).values())
    return total if total > 0 else None
