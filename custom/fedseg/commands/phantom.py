"""``fedseg phantom``: simulated sites with images that a network can learn from, without any patient."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from fedseg.commands.arguments import (
    Command,
    add_label_noise,
    add_partial,
    add_weak,
    label_noise,
    partial_labels,
    weak_labels,
)
from fedseg.console import out, track
from fedseg.data.datalist import SPLITS, read_datalist
from fedseg.data.phantoms.phantoms import PHANTOM_TASKS, make_phantoms
from fedseg.data.reading import require_image

# Of tasks that are not built in: where they are declared, and the job that uses them.
_USED_BY = {"abdomen": ("jobs/abdomen_fednorm", "jobs/abdomen_fednorm")}


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    differ = "0: sites alike, to 1: scanner, voxel size, tumour size and number of cases differ (default 0.5)"
    test = "part of the cases set apart as test, 0 to 0.5 (default 0: none)"
    command.value(
        "task",
        "brats: four MR sequences; pancreas: portal-venous CT; abdomen: the same in CT or MR, site by site",
        choices=PHANTOM_TASKS,
    )
    command.value("--sites", "number of sites, 1 to 99", int, required=True, metavar="N")
    command.value("--cases", "mean number of cases a site, 3 to 200", int, required=True, metavar="M")
    command.path("--out", "a new or empty folder", "DIR", required=True)
    command.value("--seed", "whole number from 0 (default 0)", int, default=0, metavar="S")
    command.value("--heterogeneity", differ, float, default=0.5, metavar="H")
    command.value("--test-fraction", test, float, default=0.0, metavar="F")
    add_partial(command)
    add_label_noise(command)
    add_weak(command)


def run(options: argparse.Namespace) -> int:
    """``fedseg phantom``: make simulated sites to try everything with.

    Make simulated sites: images, labels and datalists, in the file layout of the real data sets. The same arguments
    give the same bytes.

    example: fedseg phantom brats --sites 3 --cases 8 --out runs/data
    """
    datalists = make_phantoms(
        options.task,
        options.sites,
        options.cases,
        options.out,
        seed=options.seed,
        heterogeneity=options.heterogeneity,
        test_fraction=options.test_fraction,
        progress=track,
        partial=partial_labels(options),
        weak=weak_labels(options),
        label_noise=label_noise(options),
    )
    console = out()
    console.print(_table(datalists))
    folder = escape(shlex.quote(str(options.out)))
    console.print(f"Written to {folder}. Next:")
    task, job = _USED_BY.get(options.task, (options.task, f"jobs/{options.task}_fedavg"))
    console.print(f"  fedseg check-data {task} {escape(shlex.quote(str(datalists[0].parent)))}")
    console.print(f"  fedseg simulate {job} --data {folder} --out runs/first")
    return 0


def _table(datalists: list[Path]) -> Table:
    table = Table()
    for name in ("site", "cases", *SPLITS, "voxel (mm)"):
        table.add_column(name, justify="left" if name in ("site", "voxel (mm)") else "right", no_wrap=True)
    for path in datalists:
        datalist = read_datalist(path)
        counts = [len(datalist.split(split)) for split in SPLITS]
        spacing = require_image(datalist.training[0].images[0]).grid.spacing
        voxel = " x ".join(f"{size:.2f}" for size in spacing)
        table.add_row(path.parent.name, str(sum(counts)), *(str(count) for count in counts), voxel)
    return table
