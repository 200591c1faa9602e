"""The folder of an experiment: names and columns of its files, and the reading of them for whoever makes statistics."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from fedseg.errors import DataError
from fedseg.files.documents import load_json
from fedseg.statistics.document import FILE as STATISTICS
from fedseg.statistics.document import FederationStatistics, read_statistics

FACTS, RESULTS, COSTS, CURVES = "experiment.json", "results.csv", "costs.csv", "curves.csv"
RESULT_COLUMNS = (
    *("experiment", "arm", "seed", "fold", "site", "evaluated_at"),
    *("case", "patient", "region", "metric", "value", "empty"),
)
COST_COLUMNS = ("experiment", "arm", "seed", "fold", "quantity", "value")
CURVE_COLUMNS = ("experiment", "arm", "seed", "fold", "site", "round", "samples", "metric", "value")
GLOBAL = "-"
"""In the column ``site``: the one model of all sites. In ``fold``: there are no folds."""
LEFT_OUT = "loso-"
"""How a fold begins that leaves out the site whose name follows."""
OWN = " (own)"
"""After the name of an arm that has both a model of all sites and own models of sites: the latter, as an arm apart."""
_NUMBERS = ("seed", "round", "samples")
_WORDS = {"neither", "both", "reference", "prediction", ""}


@dataclass(frozen=True, eq=False)
class Experiment:
    """What an experiment left.

    Attributes:
        folder: where it lies.
        facts: content of ``experiment.json``.
        results: the long table, one row a value: ``RESULT_COLUMNS``. ``value`` is NaN where the convention for empty
            regions leaves a case out. Own models of an arm that has a model of all sites, too, are an arm apart: see
            ``OWN``.
        costs: one row a quantity of a trained arm: ``COST_COLUMNS``; empty where there is no such file.
        curves: one row a point of a curve: ``CURVE_COLUMNS``; empty where there is no such file.
        statistics: of the sites' data, of ``statistics.json``; None where there is none.
        digests: SHA-256 of each file that was read, by its name.
    """

    folder: Path
    facts: Mapping[str, Any]
    results: pd.DataFrame
    costs: pd.DataFrame
    curves: pd.DataFrame
    statistics: FederationStatistics | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the experiment is called."""
        return str(self.facts.get("experiment") or next(iter(self.results["experiment"]), self.folder.name))

    @cached_property
    def arms(self) -> list[str]:
        """Arms with results, in the order of the table."""
        return [str(arm) for arm in self.results["arm"].unique()]

    @cached_property
    def sites(self) -> list[str]:
        """Sites whose cases were scored, in alphabetical order."""
        return sorted(map(str, self.results["evaluated_at"].unique()))

    @cached_property
    def main_rows(self) -> pd.DataFrame:
        """The results that say how good an arm is: of the folds that leave no site out.

        Where each fold leaves one out, those at the site that was left out.
        """
        whole = self.whole_rows
        return self.left_out_rows if whole.empty else whole

    @cached_property
    def whole_rows(self) -> pd.DataFrame:
        """The results of the folds that leave no site out."""
        return self.results[~self.results["fold"].str.startswith(LEFT_OUT)]

    @cached_property
    def left_out_rows(self) -> pd.DataFrame:
        """The results at a site that was left out of the training."""
        return self.results[self.results["fold"] == LEFT_OUT + self.results["evaluated_at"]]


def is_experiment(folder: Path) -> bool:
    """Whether this is the folder of an experiment rather than that of a run."""
    return (folder / FACTS).is_file()


def read_experiment(folder: Path) -> Experiment:
    """Read and check the files of an experiment.

    Raises:
        DataError: a file is missing, or is not what ``Experiment`` says; names the file and what is wrong with it.
    """
    facts = _read_object(folder / FACTS)
    if not (folder / RESULTS).exists():
        raise DataError(
            f"The experiment in {folder} has not ended: it has no {RESULTS} yet. The command fedseg experiment that "
            "began it goes on with it; units that are done stay."
        )
    results = _read_table(folder / RESULTS, RESULT_COLUMNS)
    if results.empty:
        raise DataError(f"{folder / RESULTS} has no rows: no part of the experiment is done. Run it first.")
    both = set(results["arm"][results["site"] == GLOBAL])
    results["arm"] = results["arm"].mask((results["site"] != GLOBAL) & results["arm"].isin(both), results["arm"] + OWN)
    if unknown := set(results["empty"]) - _WORDS:
        raise DataError(f"{folder / RESULTS}, column empty: {sorted(unknown)[0]!r} is not one of {sorted(_WORDS)}.")
    costs, curves = (
        _read_table(folder / name, columns) if (folder / name).is_file() else pd.DataFrame(columns=list(columns))
        for name, columns in ((COSTS, COST_COLUMNS), (CURVES, CURVE_COLUMNS))
    )
    statistics = read_statistics(folder / STATISTICS) if (folder / STATISTICS).is_file() else None
    read = [folder / name for name in (FACTS, RESULTS, COSTS, CURVES, STATISTICS)]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in read if path.is_file()}
    return Experiment(folder, facts, results, costs, curves, statistics, digests)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = load_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable as JSON: {error}.") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} is not a JSON object, as the runner of experiments writes it.")
    return found


def _read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A CSV with exactly these columns; all text but the numbers, of which an empty cell is NaN."""
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable as a table: {error}.") from None
    if list(frame.columns) != list(columns):
        raise DataError(f"{path} has the columns {', '.join(frame.columns)}, but must have {', '.join(columns)}.")
    for name in (*_NUMBERS, "value"):
        if name in frame:
            frame[name] = _numbers(path, frame[name], empty=name == "value")
    return frame


def _numbers(path: Path, texts: pd.Series, empty: bool) -> pd.Series:
    """A column as numbers: whole ones, or finite ones with NaN for empty cells."""
    values = pd.to_numeric(texts, errors="coerce")
    known = texts != "" if empty else pd.Series(True, index=texts.index)
    wrong = known & (values.isna() | values.isin([math.inf, -math.inf]))
    if wrong.any():
        line = int(wrong.to_numpy().argmax()) + 2
        raise DataError(f"{path}, line {line}, column {texts.name}: {texts[wrong].iloc[0]!r} is not a finite number.")
    return values.astype(float) if empty else values.astype(int)
