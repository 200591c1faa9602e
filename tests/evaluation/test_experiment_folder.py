"""Reading of an experiment's folder: what is there, and each thing that can be wrong with it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.synthetic_experiment import SITES, write_experiment
from fedseg.errors import DataError
from fedseg.evaluation.experiment_folder import is_experiment, read_experiment


def test_everything_is_read(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "e", arms=("local", "fedavg"), seeds=1)
    found = read_experiment(folder)
    assert is_experiment(folder)
    assert not is_experiment(tmp_path)
    assert (found.name, found.arms, found.sites) == ("sizes", ["local", "fedavg"], sorted(SITES))
    assert len(found.costs) == 2 * 9
    assert set(found.curves["arm"]) == {"local", "fedavg"}
    assert found.statistics is not None
    assert found.statistics.sites["north"].cases == 84
    left_out = found.results[(found.results["empty"] == "both") & (found.results["metric"] == "dice")]
    assert left_out["value"].map(math.isnan).all()
    assert found.digests["results.csv"] == hashlib.sha256((folder / "results.csv").read_bytes()).hexdigest()


def test_only_facts_and_results_must_be_there(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "e", arms=("local",), seeds=1)
    for name in ("costs.csv", "curves.csv", "statistics.json"):
        (folder / name).unlink()
    found = read_experiment(folder)
    assert found.costs.empty
    assert found.curves.empty
    assert found.statistics is None
    assert set(found.digests) == {"experiment.json", "results.csv"}


def change(name: str, old: str, new: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        text = (folder / name).read_text("utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1), "utf-8")

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "experiment.json").write_text("{"), "experiment.json is not readable as JSON"),
        (lambda folder: (folder / "experiment.json").write_text("[]"), "is not a JSON object"),
        (
            lambda folder: (folder / "results.csv").unlink(),
            "has not ended: it has no results.csv yet. The command fedseg",
        ),
        (lambda folder: (folder / "results.csv").write_text(""), "results.csv is not readable as a table"),
        (change("results.csv", "evaluated_at", "where"), "has the columns experiment, arm, seed, fold, site, where"),
        (change("results.csv", ",neither", ",perhaps"), "column empty: 'perhaps' is not one of"),
        (
            change("results.csv", "sizes,local,0", "sizes,local,one"),
            "line 2, column seed: 'one' is not a finite number",
        ),
        (change("costs.csv", "900.0", "inf"), "costs.csv, line 3, column value: 'inf' is not a finite number"),
        (
            lambda folder: (folder / "results.csv").write_text((folder / "results.csv").read_text().splitlines()[0]),
            "has no rows: no part of the experiment is done",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    folder = write_experiment(tmp_path / "e", arms=("local",), seeds=1)
    spoil(folder)
    with pytest.raises(DataError, match=message):
        read_experiment(folder)
