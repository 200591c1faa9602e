"""Rows of an experiment's tables: their columns, how they are ordered, and how numbers stand in them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
QUANTITIES = (
    "rounds", "steps", "samples", "cpu_seconds", "gpu_seconds", "wall_seconds", "bytes_sent", "bytes_received",
    "peak_memory_mib", "kwh",
)  # fmt: skip
LARGEST_OF = ("rounds", "peak_memory_mib")
"""Quantities of which several units together have the largest; of the others they have the sum."""


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Comma-separated values with a header; numbers as Python's ``repr`` has them, None as an empty cell."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(columns)
    for row in rows:
        table.writerow([_cell(row[column]) for column in columns])
    return file.getvalue()


def _cell(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def ordered(rows: Iterable[Row], arms: Sequence[str], order: Callable[[Row], tuple[Any, ...]]) -> list[Row]:
    """Rows by arm in the order of the experiment, seed and fold, and then as ``order`` says."""
    place = {arm: number for number, arm in enumerate(arms)}
    return sorted(rows, key=lambda row: (place[row["arm"]], row["seed"], row["fold"], *order(row)))
