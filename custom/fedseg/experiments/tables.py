"""The tables of an experiment, put together from what its units left: results, costs and curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedseg.evaluation.experiment_folder import (
    COST_COLUMNS,
    COSTS,
    CURVE_COLUMNS,
    CURVES,
    RESULT_COLUMNS,
    RESULTS,
)
from fedseg.experiments.definition import Definition
from fedseg.experiments.rows import LARGEST_OF, QUANTITIES, Row, as_csv, ordered
from fedseg.experiments.unit_run import Done, read_done
from fedseg.experiments.units import Unit
from fedseg.files.documents import write_whole

TABLES = (RESULTS, COSTS, CURVES)
Finished = Sequence[tuple[Unit, Done]]


def finished(units: Sequence[Unit], out: Path) -> list[tuple[Unit, Done]]:
    """The units that are done, with what they left."""
    found = ((unit, read_done(out, unit.name)) for unit in units)
    return [(unit, done) for unit, done in found if done is not None and done.digest == unit.digest]


def result_rows(definition: Definition, units: Finished) -> list[Row]:
    """Every value of every case, in the order of ``results.csv``."""
    rows = [{**_about(definition, unit), **row} for unit, done in units for row in done.results]
    # Regions and metrics stay in the order of the task, since sorting keeps the order of equal rows.
    return ordered(rows, list(definition.arms), lambda row: (row["site"], row["evaluated_at"], row["case"]))


def cost_rows(definition: Definition, units: Finished) -> list[Row]:
    """What each arm cost with each seed in each fold: of the units of single sites the sum, or the largest."""
    found: dict[tuple[str, int, str], dict[str, float]] = {}
    for unit, done in units:
        costs = found.setdefault((unit.arm.name, unit.seed, unit.fold.name), {})
        for name, value in done.costs.items():
            costs[name] = max(costs.get(name, 0), value) if name in LARGEST_OF else costs.get(name, 0) + value
    rows = [
        {"experiment": definition.name, "arm": arm, "seed": seed, "fold": fold, "quantity": name, "value": costs[name]}
        for (arm, seed, fold), costs in found.items()
        for name in QUANTITIES
        if name in costs
    ]
    return ordered(rows, list(definition.arms), lambda row: (QUANTITIES.index(row["quantity"]),))


def curve_rows(definition: Definition, units: Finished) -> list[Row]:
    """How scores and losses went over the samples seen."""
    rows = [{**_about(definition, unit), **row} for unit, done in units for row in done.curves]
    # A model that visits sites one after the other has its rows in the order of the visits.
    return ordered(rows, list(definition.arms), lambda row: (row["samples"], row["site"]))


def _about(definition: Definition, unit: Unit) -> dict[str, Any]:
    return {"experiment": definition.name, "arm": unit.arm.name, "seed": unit.seed, "fold": unit.fold.name}


def write_tables(definition: Definition, units: Finished, out: Path) -> list[Row]:
    """Write the three tables of what is finished; returns the rows of the results."""
    results = result_rows(definition, units)
    write_whole(out / RESULTS, as_csv(RESULT_COLUMNS, results))
    write_whole(out / COSTS, as_csv(COST_COLUMNS, cost_rows(definition, units)))
    write_whole(out / CURVES, as_csv(CURVE_COLUMNS, curve_rows(definition, units)))
    return results
