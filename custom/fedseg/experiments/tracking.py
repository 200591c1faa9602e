"""An experiment for trackers of experiments: each of its units a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedseg.contract.round_numbers import nth
from fedseg.errors import DataError
from fedseg.evaluation.experiment_folder import FACTS, GLOBAL
from fedseg.evaluation.report.text_tables import plain
from fedseg.evaluation.summary import part
from fedseg.evaluation.tracking import NESTED, Point, Tracked, flat, known_point
from fedseg.experiments.unit_run import UNITS, Done, read_done
from fedseg.experiments.units import unit_name
from fedseg.files.documents import load_json

_SHARED = "pooled"
"""In the place of a site, for numbers of a model of all sites."""


def tracked_units(folder: Path, models: bool = False) -> list[Tracked]:
    """What a tracker gets of each finished unit of an experiment: settings, curves, scores by site, and costs.

    Args:
        folder: of the experiment.
        models: also the model files.

    Raises:
        DataError: the folder is not that of an experiment, or no unit of it is done.
    """
    try:
        facts = load_json(folder / FACTS)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / FACTS} is not readable as JSON: {error}.") from None
    found = []
    for name, about in _units(facts).items():
        done = read_done(folder, name)
        if done is not None and done.digest == part(facts, "units", name).get("digest"):
            files = [(folder / UNITS / name / file, "models") for file in sorted(set(done.models.values()))]
            found.append(_tracked(name, about, facts, done, files if models else []))
    if not found:
        raise DataError(f"No unit of the experiment in {folder} is done. Run it first.")
    return found


def _units(facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What each unit is, by its name: ``arm``, ``seed``, ``fold`` and ``site``."""
    seeds = part(facts, "definition").get("seeds", [0])
    every = {
        unit_name(arm, seed, fold, site): {"arm": arm, "seed": seed, "fold": fold, "site": site}
        for arm in part(facts, "arms")
        for seed in seeds
        for fold in part(facts, "folds")
        for site in [GLOBAL, *part(facts, "sites")]
    }
    return {name: every[name] for name in part(facts, "units") if name in every}


def _tracked(
    name: str, about: Mapping[str, Any], facts: Mapping[str, Any], done: Done, files: list[tuple[Path, str]]
) -> Tracked:
    arm = part(facts, "arms", str(about["arm"]))
    said = {name: arm[name] for name in ("kind", "method", "job") if arm.get(name)}
    plan = part(arm, "plan")
    settings = {key: value for group in NESTED for key, value in flat(part(plan, group), group).items()}
    parameters = {"experiment": facts.get("experiment"), **about, **said, **settings, "rounds": done.costs["rounds"]}
    versions = {f"version.{package}": str(value) for package, value in part(facts, "versions").items()}
    tags = {"run_id": done.digest, "date": str(facts.get("finished") or facts.get("started")), **versions}
    trained = list(part(facts, "folds", str(about["fold"]), "training"))
    points = [*_curves(done), *_final(done, str(about["site"]), trained)]
    ordered = sorted(points, key=lambda point: point.step)
    return Tracked(name, {key: plain(value) for key, value in parameters.items()}, tags, ordered, files)


def _curves(done: Done) -> Iterator[Point]:
    """Scores stand at the round after which their model was made, as those of a run do; 0 is before the training."""
    for row in done.curves:
        step = nth(row["round"]) if row["metric"] == "train_loss" else row["round"]
        name = row["metric"] if row["metric"].endswith("_loss") else f"val_{row['metric']}"
        yield from known_point(f"{name}/{_SHARED if row['site'] == GLOBAL else row['site']}", row["value"], step)


def _final(done: Done, owner: str, trained: Sequence[str]) -> Iterator[Point]:
    """Means over the test cases of each site, of the unit's model; of sites' own models beside it those at home."""
    last = done.costs["rounds"]
    frame = pd.DataFrame.from_records(done.results)
    frame = frame.assign(value=frame["value"].astype(float)).dropna(subset=["value"])
    for prefix, rows in (
        ("final", frame[frame["site"] == owner]),
        ("own", frame[(frame["site"] != owner) & (frame["site"] == frame["evaluated_at"])]),
    ):
        means = rows.groupby(["metric", "region", "evaluated_at"], sort=False)["value"].mean()
        for (metric, region, site), value in means.items():
            yield from known_point(f"{prefix}_{metric}/{site}/{region}", float(value), last)
        at_home = means[means.index.get_level_values("evaluated_at").isin(trained)]
        for (metric, region), value in at_home.groupby(["metric", "region"], sort=False).mean().items():
            yield from known_point(f"{prefix}_{metric}/mean/{region}", float(value), last)
    for quantity, value in done.costs.items():
        yield from known_point(f"cost/{quantity}", value, last)
