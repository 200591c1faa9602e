"""Statistics of the tiny task, measured and made up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedseg.data.datalist import Case
from fedseg.statistics.histogram import Histogram
from fedseg.statistics.measuring import measure
from fedseg.statistics.quantities import quantities
from fedseg.statistics.site_statistics import Statistics, released
from fedseg.tasks.registry import resolve_task
from tiny import TASK, write_case

TINY = resolve_task(TASK)


def tiny_cases(folder: Path, numbers: Sequence[int], spacing: float = 1.0) -> list[Case]:
    """A case for each number, of a patient of its own."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    return [write_case(folder, f"case{number}", number, affine) for number in numbers]


def measured(cases: Sequence[Case], minimum: int = 1) -> Statistics:
    """What would leave of these cases without noise."""
    return released(measure(TINY, cases), minimum)


def with_spacings(spacings: Sequence[float], shape: int = 20) -> Statistics:
    """Statistics of made-up cases that tell their geometry only."""
    scales, histograms = quantities(TINY, fine=True).scales, {}
    for name in scales:
        what = name.partition(": ")[0]
        values = {"spacing": spacings, "shape": [shape] * len(spacings), "extent": [shape * s for s in spacings]}
        if what in values:
            numbers, counts = np.unique(scales[name].index(np.array(values[what])), return_counts=True)
            bins = {(int(n), int(n)): float(c) for n, c in zip(numbers, counts, strict=True)}
            histograms[name] = Histogram(scales[name], bins)
    return Statistics(len(spacings), len(spacings), 1, True, histograms)
