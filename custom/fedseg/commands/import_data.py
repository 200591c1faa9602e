"""``fedseg import-data``: a datalist from a folder of images as people have them."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from fedseg.commands.arguments import CONVENTION_HELP, Command, words
from fedseg.console import out, track
from fedseg.contract.task_argument import TASK_HELP, task_from_argument
from fedseg.data.checks.datalist_check import without_channel
from fedseg.data.datalist import FILE_NAME, SPLITS, Case, Datalist, parse_drawn, read_datalist, write_datalist
from fedseg.data.intake.sources import convention_of, find_layout, origin_note, read_source
from fedseg.data.splits import check_fractions, check_seed, patients_in_two_splits, split_by_patient
from fedseg.errors import DataError, UsageError
from fedseg.tasks.drawn import drawn_outputs
from fedseg.tasks.objective import objective_of
from fedseg.tasks.task import Task


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    command.path("source", "BraTS folders, dataset.json (Decathlon, nnU-Net) or datalist.json", "SOURCE")
    command.value("--task", TASK_HELP, metavar="TASK", required=True)
    command.value("--convention", CONVENTION_HELP, metavar="NAME")
    command.value(
        "--drawn", "regions drawn in these labels, where some are not (default: all)", words, metavar="A,B,..."
    )
    command.path("--out", "folder for datalist.json", "DIR", required=True)
    command.value("--validation-fraction", "share of the patients (default 0.2)", float, default=0.2)
    command.value("--test-fraction", "share of the patients (default 0)", float, default=0.0)
    command.value("--seed", "seed of the split (default 0)", int, default=0)


def run(options: argparse.Namespace) -> int:
    """``fedseg import-data``: make a datalist from a data set in a usual layout.

    Find the labelled cases of SOURCE (BraTS folders, a data set of the Decathlon or of nnU-Net, another datalist),
    split them by patient and write DIR/datalist.json. Images stay where they are. A datalist that has validation or
    test cases keeps its own split.

    example: fedseg import-data /data/Task04_Hippocampus --task hippocampus --out /data/site
    """
    task = task_from_argument(options.task)
    target = options.out / FILE_NAME
    if target.exists():
        raise UsageError(f"{target} exists already. Remove it first, or choose another --out.")
    fractions = {"validation": options.validation_fraction, "test": options.test_fraction}
    check_fractions(fractions)
    check_seed(options.seed)
    cases = read_source(options.source, task, options.convention)
    convention = convention_of(options.source, task, cases, options.convention, track)
    made = _make(options.source, task, cases, fractions, options.seed).with_drawn(parse_drawn(options.drawn, "--drawn"))
    for case in (*made.training, *made.validation, *made.test):
        drawn_outputs(objective_of(task), case.drawn)
    datalist = replace(made, convention=convention)
    write_datalist(datalist, target)
    counts = ", ".join(f"{len(datalist.split(split))} {split}" for split in SPLITS)
    out().print(f"{escape(str(target))}: {counts} cases for the task {task.name}")
    total = sum(len(datalist.split(split)) for split in SPLITS)
    for name, count in without_channel(task, datalist).items():
        if count:
            out().print(f"{count} of {total} cases lack {name}; null stands in its place")
    if options.drawn:
        out().print(f"drawn: {escape(', '.join(options.drawn))}")
    if convention:
        out().print(f"labels follow {escape(convention)}")
    out().print(f"Next: fedseg check-data {escape(options.task)} {escape(str(target))}")
    return 0


def _make(source: Path, task: Task, cases: tuple[Case, ...], fractions: dict[str, float], seed: int) -> Datalist:
    layout, path = find_layout(source)
    notes = {"origin": origin_note(source)}
    if layout == "datalist":
        given = read_datalist(os.path.abspath(path))
        if given.validation or given.test:
            shared = patients_in_two_splits(given)
            if shared:
                patient, splits = next(iter(shared.items()))
                raise DataError(f"{path}: patient {patient} is in {' and '.join(splits)}. Move all cases to one split.")
            return Datalist(
                given.training, given.validation, given.test, None, task.name, notes={**given.notes, **notes}
            )
    notes["origin"]["split"] = f"by patient, {fractions['validation']:g} validation, seed {seed}"
    parts = split_by_patient(cases, fractions, seed)
    return Datalist(parts["training"], parts["validation"], parts["test"], None, task.name, notes=notes)
