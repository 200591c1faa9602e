"""What the benchmarks of labels share: arms of training on the hippocampus images at four equal sites, and tests."""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from kept_runs import keep, kept, load, made_once, run_all, write_table

from fedseg.data.datalist import Datalist, read_datalist
from fedseg.data.intake.sources import read_source
from fedseg.data.partition import partition_equally
from fedseg.data.site_folders import write_sites
from fedseg.data.undrawn_labels import PartialLabels
from fedseg.data.weak_labels import WeakLabels
from fedseg.jobs.job import Job, parse_setting, read_job
from fedseg.simulation.in_process import InProcessFederation
from fedseg.training.trainer import SiteTrainer

JOBS = Path(__file__).parents[1] / "jobs"
SITES = ("site-1", "site-2", "site-3", "site-4")
FRACTIONS = {"validation": 0.15, "test": 0.25}
COARSE = {
    "task": {"name": "hippocampus", "spacing": [2.0, 2.0, 2.0], "patch_size": [24, 32, 24]},
    "network.name": "residual_unet",
    "network.channels": [8, 16, 32],
    "network.strides": [2, 2],
    "network.res_units": 1,
    "training.local_epochs": 1,
    "training.learning_rate": 0.01,
}
"""A small network at 2 mm: a run takes minutes instead of an hour."""
SETTINGS = ("patients", "rounds", "coarse", "set")
"""Options that all runs of a folder share."""
FULL = "full"
"""The form of the labels in which every case has all of them."""
Result = dict[str, Any]
Lists = dict[str, Datalist]


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        job: name of its folder.
        labels: which form of the sites' labels it trains on, ``FULL`` or another.
        settings: of the job, as ``Job.set`` takes them.
    """

    job: str
    labels: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def make_sites(
    source: Path,
    patients: int | None,
    folder: Path,
    partial: PartialLabels | None = None,
    weak: WeakLabels | None = None,
) -> Lists:
    """The sites with one form of labels; every form has the same cases in the same splits.

    Args:
        source: folder of Task04_Hippocampus.
        patients: how many of them; None: all.
        folder: of the sites; nothing is written if they are there, and what an interrupted call left is replaced.
        partial, weak: what becomes of the labels, see ``write_sites``.
    """

    def make(folder: Path) -> None:
        task = read_job(JOBS / "hippocampus_fedavg").plan.task
        cases = read_source(source, task)[:patients]
        write_sites(partition_equally(cases, SITES, 0), folder, task, FRACTIONS, 0, partial=partial, weak=weak)

    made_once(folder, make)
    return {site: read_datalist(folder / site) for site in SITES}


def arguments(description: str | None, arms: Mapping[str, Arm], small: int) -> argparse.Namespace:
    """The arguments of a benchmark.

    Args:
        description: of the benchmark.
        arms: by name.
        small: patients of ``--small``.

    Returns:
        With ``patients``, None for all, beside what the command line has.

    Raises:
        SystemExit: the folder holds runs of other settings.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of Task04_Hippocampus")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=list(arms), choices=list(arms), metavar="ARM")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, help="instead of those of the jobs")
    parser.add_argument("--coarse", action="store_true", help="a small network at 2 mm")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of all arms, as for fedseg simulate")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument(
        "--small", action="store_true", help=f"{small} patients, 2 rounds, one seed: whether it runs at all"
    )
    options = parser.parse_args()
    options.patients = None
    if options.small:
        options.patients, options.rounds, options.seeds = small, 2, options.seeds[:1]
    if (why := other_settings(options)) is not None:
        parser.error(why)
    return options


def other_settings(options: argparse.Namespace) -> str | None:
    """Why kept runs of the folder cannot go on with these settings; None where they can, and these are written down."""
    path, settings = options.out / "settings.json", {name: getattr(options, name) for name in SETTINGS}
    if not path.exists():
        if any((options.out / "runs").glob("*.json")):
            return f"{options.out} holds runs, but no settings.json that says how they were made: take another --out."
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
        return None
    former = json.loads(path.read_text())
    changed = [f"{name} {former.get(name)!r}, now {now!r}" for name, now in settings.items() if former.get(name) != now]
    told = f"{options.out} holds runs of other settings ({'; '.join(changed)}): take another --out."
    return told if changed else None


def run(
    options: argparse.Namespace,
    arms: Mapping[str, Arm],
    forms: Mapping[str, Lists],
    table: Callable[[list[Result]], list[str]],
) -> None:
    """Train what is not yet there, and write ``table.md``.

    Args:
        options: see ``arguments``.
        arms: by name.
        forms: by the form of the labels, the datalists of the sites; a site that has nothing to train on is not there.
        table: its lines, from all results.
    """
    work = [(name, arms[name], seed, forms, options) for seed in options.seeds for name in options.arms]
    run_all(train, work, options.jobs)
    write_table(options.out, table(load(options.out)))


def train(name: str, arm: Arm, seed: int, forms: Mapping[str, Lists], options: argparse.Namespace) -> Path:
    """Train an arm with a seed, and keep its test Dice by site and region.

    Raises:
        RuntimeError: something went wrong at a site.
    """
    path = kept(options.out, name, seed)
    if path.exists():
        return path
    job = make_job(arm, seed, options)
    plan = job.check()
    torch.set_num_threads(plan.training.threads)
    federation = InProcessFederation(job, forms[arm.labels])
    federation.run()
    if federation.events:
        raise RuntimeError(f"{name}, seed {seed}: {federation.events[0]}")
    dice = {}
    for site, datalist in forms[FULL].items():
        scored = SiteTrainer(plan, site, datalist).validate(federation.model.weights, "test")
        dice[site] = plan.objective.summarise([case.score for case in scored])["dice"]
    return keep(path, {"arm": name, "seed": seed, "rounds": federation.rounds, "dice": dice})


def make_job(arm: Arm, seed: int, options: argparse.Namespace) -> Job:
    """The job of an arm at the size that is asked for."""
    job = read_job(JOBS / arm.job)
    asked = dict(map(parse_setting, options.set))
    settings = {**(COARSE if options.coarse else {}), **asked, **arm.settings, "seed": seed}
    if options.rounds is not None:
        settings["workflow.num_rounds"] = options.rounds
    for key, value in settings.items():
        job.set(key, value)
    return job


def means(results: Sequence[Result], arm: str, region: str, sites: Sequence[str] = SITES) -> list[float]:
    """By seed, the mean test Dice over sites."""
    runs = sorted((result for result in results if result["arm"] == arm), key=lambda result: result["seed"])
    return [statistics.mean(run["dice"][site][region] for site in sites) for run in runs]


def share(found: Sequence[float], full: Sequence[float]) -> str:
    """How much was reached of the mean over the seeds of ``full``; nothing where it is not there."""
    return f"{statistics.mean(found) / statistics.mean(full):.3f}" if full else ""
