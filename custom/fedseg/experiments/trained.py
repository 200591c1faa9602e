"""What an arm trains in one unit: its models as files, how scores went over the rounds, and what it cost."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedseg.contract.scores import BESIDE
from fedseg.data.datalist import FILE_NAME, Datalist, write_datalist
from fedseg.evaluation.experiment_folder import GLOBAL
from fedseg.evaluation.summary import last_models, part, write_summary
from fedseg.experiments.arms import CENTRAL, CIIL, JOB_ARM, LOCAL
from fedseg.experiments.folds import pooled
from fedseg.experiments.rows import Row
from fedseg.experiments.units import Unit
from fedseg.models.model_file import initial_weights, write_model
from fedseg.simulation.in_process import simulate_in_process
from fedseg.simulation.results import build_summary
from fedseg.simulation.run_folder import LOG, MARKER, check_enough_sites, prepare_output
from fedseg.tasks.objective import MEAN
from fedseg.training.carried import Visit, cyclic, incremental, train_carried
from fedseg.training.trainer import SiteTrainer, TrainerSetup

Told = Callable[[float], None]
"""Gets the share of the training that is done, from 0 to 1."""
RUN = "run"


@dataclass
class Trained:
    """What a unit has trained.

    Attributes:
        models: files by the site that uses them; ``-`` is a model of all sites.
        curves: rows with ``site``, ``round``, ``samples``, ``metric`` and ``value``.
        costs: ``rounds``, ``steps``, ``samples``, ``bytes_sent`` and ``bytes_received`` as they were.
        order: sites in the order in which a carried model visited them first.
    """

    models: dict[str, Path]
    curves: list[Row]
    costs: dict[str, float]
    order: list[str] = field(default_factory=list)


def train(unit: Unit, folder: Path, cache: Path, tell: Told) -> Trained:
    """Train what a unit trains.

    Args:
        unit: of any kind but an ensemble.
        folder: an empty folder for what is left.
        cache: folder for prepared cases, for ``cache: disk``.
        tell: see ``Told``.

    Raises:
        FedsegError: the training failed; the text says why.
    """
    return _run_job(unit, folder, tell) if unit.arm.kind == JOB_ARM else _carry(unit, folder, cache, tell)


def _carry(unit: Unit, folder: Path, cache: Path, tell: Told) -> Trained:
    """Central, local, and incremental training: one model, carried over one place or several."""
    plan, arm, lists = unit.job.plan, unit.arm, _places(unit)
    torch.set_num_threads(plan.training.threads)
    visited = arm.visited({name: len(datalist.training) for name, datalist in lists.items()}, unit.seed)
    course = (cyclic if arm.kind == CIIL else incremental)(visited, unit.rounds)
    setup = TrainerSetup(cache=cache, alone=len(lists) == 1)
    trainers = {n: SiteTrainer(plan, n, datalist, setup) for n, datalist in lists.items()}
    carried = train_carried(
        trainers, course, unit.rounds, scored=True, patience=arm.patience,
        on_visit=lambda done: tell(done / len(course)), start=initial_weights(plan, unit.job.initial),
    )  # fmt: skip
    owner = unit.site if arm.kind == LOCAL else GLOBAL
    model = write_model(folder / _file(owner), plan, carried.weights, unit.rounds - 1)
    size = sum(array.nbytes for array in carried.weights.values())
    costs = _sums(unit, carried.visits) | _traffic(unit, lists, len(carried.visits), size)
    curves = _visit_curves(plan.objective.primary.name, owner, carried.visits)
    order = [] if len(visited) == 1 else list(dict.fromkeys(visit.site for visit in carried.visits))
    return Trained({owner: model}, curves, costs, order)


def _places(unit: Unit) -> dict[str, Datalist]:
    if unit.arm.kind == CENTRAL:
        return dict([pooled(unit.fold)])
    return {unit.site: unit.fold.training[unit.site]} if unit.arm.kind == LOCAL else dict(unit.fold.training)


def _sums(unit: Unit, visits: Iterable[Visit]) -> dict[str, float]:
    steps, samples = (sum(getattr(visit, name) for visit in visits) for name in ("num_steps", "num_samples"))
    return {"rounds": unit.rounds, "steps": steps, "samples": samples}


def _traffic(unit: Unit, lists: Mapping[str, Datalist], visits: int, size: int) -> dict[str, float]:
    """What would travel: pooled training needs the images, a carried model its arrays, a site by itself nothing."""
    if unit.arm.kind == CENTRAL:
        files = {file for datalist in lists.values() for file in datalist.files}
        return {"bytes_sent": sum(file.stat().st_size for file in files), "bytes_received": 0}
    moved = 0 if unit.arm.kind == LOCAL else visits * size
    return {"bytes_sent": moved, "bytes_received": moved}


def _visit_curves(metric: str, owner: str, visits: Iterable[Visit]) -> list[Row]:
    rows: list[Row] = []
    seen = 0
    for visit in visits:
        # A carried model is scored where it arrives; of a model that stays, that is its own place.
        site = owner if owner != GLOBAL else visit.site
        about = {"site": site, "round": visit.round, "samples": seen}
        rows += [{**about, "metric": n, "value": v} for n, v in ((metric, visit.score), ("val_loss", visit.loss))]
        rows.append({**about, "metric": "train_loss", "value": visit.train_loss})
        seen += visit.num_samples
    return [row for row in rows if row["value"] is not None]


def _run_job(unit: Unit, folder: Path, tell: Told) -> Trained:
    """A job, as ``fedseg simulate --in-process`` runs it; the sites have no test cases, and nobody else is there."""
    data, out, job = folder / "data", folder / RUN, copy.deepcopy(unit.job)
    for site, datalist in unit.fold.training.items():
        write_datalist(datalist, data / site / FILE_NAME)
    sites = sorted(unit.fold.training)
    check_enough_sites(job, data, sites)
    prepare_output(out, False)

    def on_event(event: Mapping[str, Any]) -> None:
        if event["event"] == "round_done":
            tell((event["round"] + 1) / event["total"])

    torch.set_num_threads(job.plan.training.threads)
    summary = build_summary(job, simulate_in_process(job, data, out, sites, on_event), out / "state")
    models = {site: (out / file).rename(folder / _file(site)) for site, file in _models_of(summary).items()}
    write_summary(summary, folder)
    for name in (LOG, MARKER):
        shutil.move(out / name, folder / name)
    for rest in (out, data):
        shutil.rmtree(rest)
    return Trained(models, _run_curves(summary, unit), _run_costs(summary, unit))


def _models_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """The files of a run's last models: the one of all sites, and what a site uses in its place or beside it."""
    shared = summary["final"].get("model")
    found = {site: file for site, file in last_models(summary).items() if file != shared}
    for site, files in part(summary["final"], "site_models").items():
        beside = [files[kind] for kind in BESIDE if kind in files]
        found |= {site: beside[0]} if beside else {}
    # With arrays that each site has for itself, the file of all sites has them as the run began.
    alone = bool(last_models(summary)) and all(file != shared for file in last_models(summary).values())
    return found if alone or not shared else {GLOBAL: shared, **found}


def _run_costs(summary: Mapping[str, Any], unit: Unit) -> dict[str, float]:
    parts = [part for entry in summary["rounds"] for part in entry["sites"].values()]
    epochs = unit.job.plan.training.local_epochs * unit.job.plan.training.patches_per_case
    return {
        "rounds": len(summary["rounds"]),
        "steps": sum(part["num_steps"] for part in parts),
        "samples": epochs * sum(_epoch_cases(part) for part in parts),
        "bytes_sent": summary["cost"]["bytes_up"],
        "bytes_received": summary["cost"]["bytes_down"],
    }


def _epoch_cases(told: Mapping[str, Any]) -> int:
    """Training cases of each of a site's local epochs in a round, which a selection may have shortened."""
    return min(int(told["num_samples"]), int(told.get("epoch_cases") or told["num_samples"]))


def _run_curves(summary: Mapping[str, Any], unit: Unit) -> list[Row]:
    """A round's scores are those of the model that it began with; those of the last model come after them."""
    name, settings = unit.job.plan.objective.primary.name, unit.job.plan.training
    epochs = settings.local_epochs * settings.patches_per_case
    rows: list[Row] = []
    seen = 0
    for entry in summary["rounds"]:
        about = {"round": entry["round"], "samples": seen}
        rows.append({**about, "site": GLOBAL, "metric": name, "value": entry[f"val_{name}"]})
        for site, found in entry["sites"].items():
            own = {
                name: found[f"val_{name}"].get(MEAN),
                "val_loss": found["val_loss"],
                "train_loss": found["train_loss"],
            }
            rows += [{**about, "site": site, "metric": n, "value": value} for n, value in own.items()]
            seen += epochs * _epoch_cases(found)
    for site, found in part(summary["final"], "validation").items():
        about = {"round": len(summary["rounds"]), "samples": seen, "site": site}
        rows.append({**about, "metric": name, "value": part(found, name).get(MEAN)})
    return [row for row in rows if row["value"] is not None]


def _file(site: str) -> str:
    return "global.safetensors" if site == GLOBAL else f"{site}.safetensors"
