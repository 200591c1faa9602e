"""``fedseg experiment``: arms, seeds and folds of one file, trained and scored on the same test cases."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from fedseg.commands.arguments import Command
from fedseg.console import err, out, print_table, tell, track
from fedseg.errors import UsageError
from fedseg.files.folders import removed_on_failure
from fedseg.files.locks import locked

if TYPE_CHECKING:
    from fedseg.experiments.cost_plan import UnitCost
    from fedseg.experiments.experiment import Experiment
    from fedseg.experiments.units import Unit

COMMAND = "fedseg experiment"


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    command.path("file", "the experiment's definition, e.g. experiments/hippocampus_ten_sites.yaml", "FILE")
    command.path("--out", "folder of the experiment; one that was stopped goes on", "DIR", required=True)
    command.path("--data", "folder from which paths of data count (default: the file's)", "DIR")
    command.value("--jobs", "units at a time (default: as cores allow)", int, metavar="N")
    command.flag("--dry-run", "tell what it will cost, and stop")
    command.flag("--pictures", "also draw the best, median and worst case of each site, for that site's own page")
    command.flag("--overwrite", "remove a former experiment in --out first")


def run(options: argparse.Namespace) -> int:
    """``fedseg experiment``: compare ways of training on the same data.

    Train every arm of a definition with every seed in every fold, score all models on the same test cases, and write
    one long table. What is finished is kept, so that the same command goes on after a stop.

    example: fedseg experiment experiments/hippocampus_ten_sites.yaml --data /data --out runs/ten-sites --dry-run
    """
    if options.jobs is not None and options.jobs < 1:
        raise UsageError(f"--jobs {options.jobs}: the number of units at a time must be at least 1.")
    from fedseg.experiments.definition import read_definition
    from fedseg.experiments.experiment import SITES, inputs_of, load_experiment, prepare_folder

    if options.dry_run:
        with tempfile.TemporaryDirectory(prefix="fedseg-experiment-") as scratch:
            experiment = load_experiment(options.file, options.data, Path(scratch), track)
            _print_plan(experiment, _costs(experiment), _jobs(options, experiment))
        return 0
    name = read_definition(options.file).name
    with locked(options.out, COMMAND):
        prepare_folder(options.out, name, options.overwrite, inputs_of(options.file, options.data))
        # What is refused leaves nothing, so that the folder is free for the next try.
        with removed_on_failure(options.out / SITES):
            experiment = load_experiment(options.file, options.data, options.out / SITES, track)
            jobs, costs = _jobs(options, experiment), _costs(experiment)
        return _run(options, experiment, jobs, costs)


def _run(options: argparse.Namespace, experiment: Experiment, jobs: int, costs: dict[str, UnitCost]) -> int:
    from fedseg.evaluation.experiment_folder import FACTS
    from fedseg.experiments.cost_plan import describe as describe_costs
    from fedseg.experiments.experiment import describe, finish
    from fedseg.experiments.runner import run_units
    from fedseg.experiments.unit_run import is_done
    from fedseg.files.documents import write_json

    record = describe(experiment, describe_costs(costs, jobs), options.out)
    write_json(options.out / FACTS, record)
    _warn_of_names(record["names_in_common"])
    kept = [unit.name for unit in experiment.units if is_done(options.out, unit)]
    count = len(experiment.units)
    tell(f"{experiment.definition.name}: {count} units, of which {len(kept)} are done; {jobs} at a time")
    with _Watch(experiment.units, options.out, costs, jobs, kept) as watch:
        failed = run_units(experiment.units, options.out, experiment.definition.watts, jobs, watch.look)
    summary = finish(experiment, options.out, record, failed, track, options.pictures)
    _print_summary(summary, options.out)
    return 0


def _warn_of_names(names: Mapping[str, Sequence[str]]) -> None:
    if names:
        patient, places = next(iter(names.items()))
        tell(
            f"{len(names)} name(s) of patients occur at more than one place, first {patient} at {', '.join(places)}. "
            "Where that is one person, drop one of the two, since a test shall know no one who trains.",
            warning=True,
        )


def _jobs(options: argparse.Namespace, experiment: Experiment) -> int:
    threads = max(unit.job.plan.training.threads for unit in experiment.units)
    most = max(1, (os.cpu_count() or 1) // threads)
    return options.jobs or min(most, len(experiment.units))


def _costs(experiment: Experiment) -> dict[str, UnitCost]:
    from fedseg.experiments.cost_plan import measure_all, unit_cost

    speeds = measure_all(experiment.units)
    return {unit.name: unit_cost(unit, speeds[unit.name]) for unit in experiment.units}


class _Watch:
    """A bar with the time that is left; where stderr is no terminal, a line for each unit that is done."""

    def __init__(
        self, units: Sequence[Unit], folder: Path, costs: Mapping[str, UnitCost], jobs: int, kept: Collection[str]
    ) -> None:
        self._units, self._folder, self._costs, self._jobs = units, folder, costs, jobs
        self._said = set(kept)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}")
        terminal = err().is_terminal
        self._bar = Progress(*columns, console=err(), transient=True, disable=not terminal)
        self._lines = not terminal
        self._task = self._bar.add_task("", total=sum(cost.seconds for cost in costs.values()), left="")

    def __enter__(self) -> _Watch:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def look(self, ended: Sequence[Unit], running: Sequence[Unit]) -> None:
        """See ``experiments.runner.Watch``."""
        from fedseg.experiments.unit_run import read_progress

        behind = sum(self._costs[unit.name].seconds for unit in ended)
        behind += sum(self._costs[unit.name].seconds * read_progress(self._folder, unit) for unit in running)
        left = words_of(self._seconds_left(ended, behind))
        count = f"{len(ended)} of {len(self._units)} units"
        self._bar.update(self._task, completed=behind, description=count, left=left)
        for unit in ended:
            if self._lines and unit.name not in self._said:
                tell(f"{unit.name} has ended; {count}, {left}")
            self._said.add(unit.name)

    def _seconds_left(self, ended: Sequence[Unit], behind: float) -> float:
        """The planned seconds that are left, by as much longer or shorter as the finished units took."""
        from fedseg.experiments.unit_run import read_record

        planned, took = 0.0, 0.0
        for unit in ended:
            if done := read_record(self._folder, unit.name):
                planned, took = planned + self._costs[unit.name].seconds, took + done.costs["wall_seconds"]
        ratio = took / planned if planned else 1.0
        total = sum(cost.seconds for cost in self._costs.values())
        return ratio * max(0.0, total - behind) / self._jobs


def words_of(seconds: float) -> str:
    """How long something still takes, as people say it."""
    if seconds >= 5400:
        return f"about {seconds / 3600:.1f} h to go"
    return f"about {seconds / 60:.0f} min to go" if seconds >= 90 else "about a minute to go or less"


def _print_plan(experiment: Experiment, costs: Mapping[str, UnitCost], jobs: int) -> None:
    header = ["arm", "units", "rounds", "steps", "samples", "MB in messages", "cases scored", "minutes of a process"]
    rows = []
    for arm in experiment.definition.arms:
        own = [costs[unit.name] for unit in experiment.units if unit.arm.name == arm]
        rounds = sorted({cost.rounds for cost in own})
        sums = [sum(getattr(cost, name) for cost in own) for name in ("steps", "samples", "bytes", "scored", "seconds")]
        shown = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
        steps, samples, size, scored, seconds = sums
        cells = [arm, str(len(own)), shown, str(steps), str(samples), f"{size / 1e6:.1f}", str(scored)]
        rows.append([*cells, f"{seconds / 60:.1f}"])
    print_table(header, rows, 1)
    out().print(escape(_places(experiment)))
    seconds = sum(cost.seconds for cost in costs.values())
    out().print(
        f"{len(costs)} units, {jobs} at a time: about {seconds / jobs / 60:.1f} minutes on this machine, by a step and "
        "a case that were measured just now. What a method does beside the plain training comes on top."
    )


def _places(experiment: Experiment) -> str:
    """Who takes part: ``2 sites: north (6 cases), south (5 cases); 1 external: east (4 cases)``."""
    from fedseg.data.datalist import SPLITS
    from fedseg.evaluation.report.text_tables import counted

    cohort, said = experiment.cohort, []
    for lists, what in (
        (cohort.sites, counted(len(cohort.sites), "site")),
        (cohort.external, f"{len(cohort.external)} external"),
    ):
        counts = {s: len({case for split in SPLITS for case in d.split(split)}) for s, d in lists.items()}
        named = ", ".join(f"{site} ({counted(count, 'case')})" for site, count in counts.items())
        said += [f"{what}: {named}"] if named else []
    return "; ".join(said)


def _print_summary(summary: Mapping[str, Any], folder: Path) -> None:
    from fedseg.evaluation.experiment_folder import RESULTS
    from fedseg.experiments.summary import SHARED, table_rows
    from fedseg.tasks.objective import MEAN

    rows = []
    for row in table_rows(summary, MEAN):
        arm = row["arm"] if row["model"] == SHARED else f"{row['arm']} (own)"
        means = [f"{row[name]:.3f}" for name in ("macro", "pooled", "worst")]
        about = [row["worst_site"], f"{row['spread']:.3f}", str(row["cases"])]
        rows.append([arm, row["scope"].replace("_", " "), *means, *about])
    out().print(f"{summary['primary']}, mean over regions")
    print_table(["arm", "tested", "by site", "by case", "worst", "at", "spread", "cases"], rows, 2)
    out().print(f"every value: {folder / RESULTS}\nsummary:     {folder / 'summary.json'}")
    out().print(f"page:        {folder / 'report' / 'report.html'}")
