"""An experiment as a whole: read, planned, run, and put together in its folder."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fedseg.data.datalist import DRAWN, SPLITS, Datalist
from fedseg.data.progress import Progress, silent
from fedseg.data.splits import by_patient
from fedseg.errors import FedsegError, UsageError
from fedseg.evaluation.experiment_folder import FACTS
from fedseg.evaluation.report.experiment.page import write_experiment_report
from fedseg.experiments.arms import JOB_ARM
from fedseg.experiments.cohort import Cohort, read_cohort
from fedseg.experiments.definition import Definition, read_definition
from fedseg.experiments.folds import Fold, make_folds
from fedseg.experiments.pictures import write_pictures
from fedseg.experiments.same_patients import names_in_common
from fedseg.experiments.site_statistics import KEPT, check_minimum, leave_statistics
from fedseg.experiments.summary import SUMMARY_FILES, write_summary
from fedseg.experiments.tables import TABLES, finished, write_tables
from fedseg.experiments.unit_run import CACHE, UNITS, WORK, is_done
from fedseg.experiments.units import Unit, base_job, make_units
from fedseg.files.digest import model_digest
from fedseg.files.documents import load_json, write_json
from fedseg.files.folders import clear_output
from fedseg.files.outputs import check_new_folder, check_outputs
from fedseg.jobs.job import Job
from fedseg.memory import machine_memory
from fedseg.models.model_file import read_model
from fedseg.statistics.document import FILE
from fedseg.tasks.drawn import drawn_outputs
from fedseg.tasks.objective import Objective
from fedseg.version import versions

REPORT = "report"
SCHEMA = "fedseg-experiment-1"
SITES = "sites"
PARTS = (UNITS, WORK, CACHE, SITES, REPORT, KEPT)
"""Folders that an experiment makes in its own."""


@dataclass(frozen=True)
class Experiment:
    """A definition with all that follows from it.

    Attributes:
        file: the definition's file.
        data: folder from which its paths of data count.
        definition: as read.
        base: its job.
        cohort: its cases.
        folds: in order.
        units: in an order in which those that others need come first.
    """

    file: Path
    data: Path
    definition: Definition
    base: Job
    cohort: Cohort
    folds: list[Fold]
    units: list[Unit]


def load_experiment(file: Path, data: Path | None, sites: Path, progress: Progress = silent) -> Experiment:
    """Read a definition, its job, its data and the jobs of its arms; everything is checked before anything runs.

    Args:
        file: the definition.
        data: folder from which its paths of data count; None for the file's own.
        sites: folder for the sites of a pool, see ``read_cohort``.
        progress: shows how far long reading is.

    Raises:
        FedsegError: something cannot be used; the text says what.
    """
    definition = read_definition(file)
    base = base_job(definition)
    place = file.parent if data is None else data
    cohort = read_cohort(definition, base.plan.task, place, sites, progress)
    check_minimum(cohort, definition.statistics)
    folds = make_folds(definition, cohort)
    return Experiment(file, place, definition, base, cohort, folds, make_units(definition, base, folds, cohort))


def prepare_folder(out: Path, name: str, overwrite: bool, inputs: Mapping[str, Path | None]) -> None:
    """Make sure that a folder can be that of an experiment: a new one, or one of the same name that goes on.

    Args:
        out: the folder.
        name: of the experiment.
        overwrite: whether a former experiment is removed first.
        inputs: files and folders that are read, by what named them.

    Raises:
        UsageError: it holds something else, or what is read would be replaced.
    """
    for part in PARTS:
        check_new_folder("--out", out / part, inputs)
    files = (FACTS, FILE, *TABLES, *SUMMARY_FILES)
    check_outputs("--out", [out / each for each in files], [path for path in inputs.values() if path and path.exists()])
    former = _former(out)
    if former is not None and not overwrite:
        if former != name:
            raise UsageError(f"--out {out} holds the experiment {former}, not {name}. Name another folder.")
        return
    parts = (*PARTS, *files)
    clear_output(out, "experiment", former is not None, overwrite, parts, inputs)


def _former(out: Path) -> str | None:
    """The name of the experiment in a folder; None where there is none."""
    try:
        content = load_json(out / FACTS)
        return str(content["experiment"]) if content["schema"] == SCHEMA else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def inputs_of(file: Path, data: Path | None) -> dict[str, Path | None]:
    """What an experiment reads, as far as it is known before its data are read."""
    definition = read_definition(file)
    place = file.parent if data is None else data
    settings = definition.data
    named = {f"data.{name}": getattr(settings, name) for name in ("folder", "source", "csv")}
    named |= {f"data.sources.{site}": path for site, path in (settings.sources or {}).items()}
    named |= {f"external.{site}": path for site, path in definition.external.items()}
    jobs = {f"arms.{arm.name}.job": arm.job for arm in definition.arms.values() if arm.job is not None}
    places = {name: place / path for name, path in named.items() if path is not None}
    return {"FILE": file, "job": definition.job, **jobs, **places}


def finish(
    experiment: Experiment,
    out: Path,
    record: Mapping[str, Any],
    failed: Mapping[str, str],
    progress: Progress = silent,
    pictures: bool = False,
) -> dict[str, Any]:
    """Write the tables, the summary and the page of what is done, and what became of each unit.

    Args:
        experiment: as it ran.
        out: its folder.
        record: see ``describe``.
        failed: why units failed, by their names.
        progress: shows how far long reading is.
        pictures: whether the pages of sites show cases.

    Returns:
        The summary.

    Raises:
        FedsegError: units failed; everything that could be written is written.
    """
    done = finished(experiment.units, out)
    rows = write_tables(experiment.definition, done, out)
    summary = write_summary(experiment.definition, experiment.folds, experiment.base.plan.objective, rows, out)
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    orders = {unit.name: each.order for unit, each in done if each.order}
    states = _states(experiment, {unit.name for unit, _ in done})
    for name, reason in failed.items():
        states[name]["failed"] = reason
    content = {**record, "finished": ended, "complete": len(done) == len(states), "units": states, "orders": orders}
    write_json(out / FACTS, content)
    if experiment.definition.statistics is not None:
        task, minimum = experiment.base.plan.task, experiment.definition.statistics
        leave_statistics(task, experiment.cohort, minimum, out, progress)
    if rows and pictures:
        write_pictures(experiment.base.plan, done, out, progress)
    if rows:
        write_experiment_report(out)
    if failed:
        name, reason = next(iter(failed.items()))
        raise FedsegError(
            f"{len(failed)} of {len(states)} units failed, first {name}: {reason} What is done is in {out}; the same "
            "command does the rest."
        )
    return summary


def _states(experiment: Experiment, done: Collection[str]) -> dict[str, dict[str, Any]]:
    """The digest of each unit, and whether it is done."""
    return {unit.name: {"digest": unit.digest, "done": unit.name in done} for unit in experiment.units}


def describe(experiment: Experiment, plan: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """What ``experiment.json`` says before anything runs, so that it is there whatever stops the experiment.

    Args:
        experiment: that is to run.
        plan: of its cost, see ``cost_plan.describe``.
        out: its folder, in which units may be done already.
    """
    definition, cohort, kind = experiment.definition, experiment.cohort, experiment.base.plan.objective
    return {
        "schema": SCHEMA,
        "experiment": definition.name,
        "description": definition.description,
        "definition": dict(definition.raw),
        "digest": definition.digest,
        "versions": versions(),
        "machine": machine(),
        "task": experiment.base.plan.task.to_dict(),
        "reference": definition.reference,
        "sites": {site: _cases(kind, cohort, datalist) for site, datalist in cohort.sites.items()},
        "external": {site: _cases(kind, cohort, datalist) for site, datalist in cohort.external.items()},
        "names_in_common": names_in_common({**cohort.sites, **cohort.external}, cohort.digests),
        "folds": {fold.name: _fold(fold) for fold in experiment.folds},
        "arms": _arms(experiment),
        "watts": {"cpu": definition.watts.cpu, "gpu": definition.watts.gpu},
        "plan": dict(plan),
        "units": _states(experiment, {unit.name for unit in experiment.units if is_done(out, unit)}),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cases(kind: Objective, cohort: Cohort, datalist: Datalist) -> dict[str, Any]:
    every = [case for split in SPLITS for case in datalist.split(split)]
    counts = {split: len(datalist.split(split)) for split in SPLITS}
    phantoms = {"phantoms": True} if datalist.phantoms else {}
    drawn = [drawn_outputs(kind, case.drawn) for case in every if not case.supervision.weak]
    regions = {name: sum(said is None or said[n] for said in drawn) for n, name in enumerate(kind.outputs)}
    told = {DRAWN: regions} if any(said is not None for said in drawn) else {}
    return {**counts, "patients": len(by_patient(every)), "digest": cohort.digest(datalist), **phantoms, **told}


def _fold(fold: Fold) -> dict[str, Any]:
    training = {
        site: {split: len(datalist.split(split)) for split in ("training", "validation")}
        for site, datalist in fold.training.items()
    }
    return {"training": training, "tests": {site: len(datalist.test) for site, datalist in fold.tests.items()}}


def _arms(experiment: Experiment) -> dict[str, Any]:
    """Each arm with the plan that it trains by, as of the first seed."""
    found: dict[str, Any] = {}
    for unit in experiment.units:
        arm = unit.arm
        if arm.name not in found:
            found[arm.name] = {"kind": arm.kind, "method": unit.job.plan.method, "rounds": unit.rounds}
            found[arm.name]["plan"] = unit.job.plan.to_dict()
            if arm.kind == JOB_ARM:
                found[arm.name] |= {"job": unit.job.name, "server": unit.job.server, "client": unit.job.client}
                found[arm.name] |= {"initial": _initial(unit.job.initial)} if unit.job.initial else {}
    return {name: found[name] for name in experiment.definition.arms}


def _initial(path: Path) -> dict[str, Any]:
    """The model file from which a job starts: its digest, and what the file says of its making."""
    model = read_model(path)
    made = {name: model.notes.get(name) for name in ("method", "seed", "round")}
    return {"digest": model_digest(model.weights), **made}


def machine() -> dict[str, Any]:
    """What this machine is, as far as it decides about time."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "memory_mib": machine_memory() // 2**20,
        "gpus": gpus,
    }
