"""``fedseg phantom``: simulated sites with images that a network can learn from, without any patient."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

import nibabel as nib
from rich.markup import escape
from rich.table import Table

from fedseg.console import out
from fedseg.data.datalist import SPLITS, read_datalist
from fedseg.data.phantoms.phantoms import PHANTOM_TASKS, make_phantoms


def add_parser(subparsers: Any) -> None:
    """Add ``phantom`` to the command line."""
    parser = subparsers.add_parser(
        "phantom",
        help="make simulated sites to try everything with",
        description="Make simulated sites: images, labels and datalists, in the file layout of the real data sets. "
        "The same arguments give the same bytes.",
        epilog="example: fedseg phantom brats --sites 3 --cases 8 --out runs/data",
    )
    parser.add_argument("task", choices=PHANTOM_TASKS, help="brats: four MR sequences; pancreas: portal-venous CT")
    parser.add_argument("--sites", type=int, required=True, metavar="N", help="number of sites, 1 to 99")
    parser.add_argument("--cases", type=int, required=True, metavar="M", help="mean number of cases a site, 3 to 200")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="whole number from 0 (default 0)")
    parser.add_argument(
        "--heterogeneity",
        type=float,
        default=0.5,
        metavar="H",
        help="0: sites alike, to 1: scanner, voxel size, tumour size and number of cases differ (default 0.5)",
    )
    parser.add_argument(
        "--test-fraction",
        type=float,
        default=0.0,
        metavar="F",
        help="part of the cases set apart as test, 0 to 0.5 (default 0: none)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make the phantoms and say what was made."""
    datalists = make_phantoms(
        options.task,
        options.sites,
        options.cases,
        options.out,
        seed=options.seed,
        heterogeneity=options.heterogeneity,
        test_fraction=options.test_fraction,
    )
    console = out()
    console.print(_table(datalists))
    folder = escape(shlex.quote(str(options.out)))
    console.print(f"Written to {folder}. Next:")
    console.print(f"  fedseg check-data {options.task} {escape(shlex.quote(str(datalists[0].parent)))}")
    console.print(f"  fedseg simulate jobs/{options.task}_fedavg --data {folder} --out runs/first")
    return 0


def _table(datalists: list[Path]) -> Table:
    table = Table()
    for name in ("site", "cases", *SPLITS, "voxel (mm)"):
        table.add_column(name, justify="left" if name in ("site", "voxel (mm)") else "right", no_wrap=True)
    for path in datalists:
        datalist = read_datalist(path)
        counts = [len(datalist.split(split)) for split in SPLITS]
        header: Any = nib.Nifti1Image.from_filename(datalist.training[0].images[0]).header
        voxel = " x ".join(f"{float(size):.2f}" for size in header.get_zooms())
        table.add_row(path.parent.name, str(sum(counts)), *(str(count) for count in counts), voxel)
    return table
