"""``fedseg partition``: simulated sites from one data set."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from fedseg.commands.arguments import (
    CONVENTION_HELP,
    Command,
    add_label_noise,
    add_partial,
    add_weak,
    label_noise,
    partial_labels,
    weak_labels,
    words,
)
from fedseg.console import out, track
from fedseg.contract.task_argument import TASK_HELP, task_from_argument
from fedseg.data.datalist import SPLITS, Case, Datalist
from fedseg.data.intake.sources import convention_of, guess_task, origin_note, read_source
from fedseg.data.partition import (
    Sites,
    check_names,
    draw_sites,
    partition_by_csv,
)
from fedseg.data.shared_cases import NOTE
from fedseg.data.site_folders import write_sites
from fedseg.data.splits import by_patient, check_fractions, check_seed, patients_needed
from fedseg.errors import UsageError

_SHIFT = "0 to 1: rewrite images as if each site had another scanner (default 0: use them in place)"
_SHARED = "0 to 1: share of all training cases that every site gets, as a baseline (default 0)"


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    command.path("source", "BraTS folders, dataset.json (Decathlon, nnU-Net) or datalist.json", "SOURCE")
    command.path("--out", "new folder for the sites", "DIR", required=True)
    command.value("--task", f"{TASK_HELP} (default: told from SOURCE)", metavar="TASK")
    command.value("--convention", CONVENTION_HELP, metavar="NAME")
    command.value("--sites", "number of sites; with --csv: the N largest", int, metavar="N")
    command.value("--names", "names of the sites; with --csv: only these", words, metavar="A,B,...")
    with command.only_one():
        command.path("--csv", "table with Partition_ID,Subject_ID, as of FeTS 2022", "FILE")
        command.value("--sizes", "cases per site", _numbers, metavar="N,N,...")
        command.value("--dirichlet", "skew by target size; smaller is more skewed", float, metavar="ALPHA")
    command.value("--validation-fraction", "share of a site's patients (0.2)", float, default=0.2)
    command.value("--test-fraction", "share of a site's patients (0)", float, default=0.0)
    command.value("--scanner-shift", _SHIFT, float, metavar="STRENGTH", default=0.0)
    command.value("--shared", _SHARED, float, metavar="FRACTION", default=0.0)
    add_partial(command)
    add_label_noise(command)
    add_weak(command)
    command.value("--seed", "seed of every draw (default 0)", int, default=0)


def run(options: argparse.Namespace) -> int:
    """``fedseg partition``: spread one data set over simulated sites.

    Spread the labelled cases of SOURCE over sites, by patient, and write DIR/<site>/datalist.json for `fedseg simulate
    --data DIR`. Without --csv, --sizes or --dirichlet the sites get equal shares at random.

    example: fedseg partition /data/Task04_Hippocampus --sizes 80,60,40,20 --out runs/data
    """
    fractions = {"validation": options.validation_fraction, "test": options.test_fraction}
    check_fractions(fractions)
    check_seed(options.seed)
    task = task_from_argument(options.task) if options.task else guess_task(options.source)
    cases = read_source(options.source, task, options.convention)
    stated = convention_of(options.source, task, cases, options.convention, track)
    if options.csv:
        sites, without_images = _from_table(cases, options)
    else:
        sites, without_images = _drawn(cases, options, patients_needed(fractions)), 0
    notes = {"origin": origin_note(options.source), "partition": _method(options)}
    how = (options.seed, options.scanner_shift, notes, options.shared, track, stated)
    drawing = (partial_labels(options), label_noise(options), weak_labels(options))
    datalists = write_sites(sites, options.out, task, fractions, *how, *drawing)
    _print_sites(datalists, len(cases), without_images, options.out)
    _print_next(options.task or task.name, options.out, next(iter(datalists)))
    return 0


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 80,60,40") from None


def _method(options: argparse.Namespace) -> dict[str, Any]:
    chosen = {name: getattr(options, name) for name in ("csv", "sizes", "dirichlet") if getattr(options, name)}
    name, value = next(iter(chosen.items()), ("equal", None))
    return {"method": name, "value": value.name if isinstance(value, Path) else value, "seed": options.seed}


def _drawn(cases: Sequence[Case], options: argparse.Namespace, least: int) -> Sites:
    return draw_sites(cases, _names(options), options.sizes, options.dirichlet, options.seed, least, track)


def _names(options: argparse.Namespace) -> list[str]:
    given = {"--sites": options.sites, "--names": options.names and len(options.names)}
    given["--sizes"] = options.sizes and len(options.sizes)
    counts = {name: count for name, count in given.items() if count is not None}
    if not counts:
        raise UsageError("Say how many sites there are: --sites N, --names A,B,..., --sizes N,N,... or --csv FILE.")
    if len(set(counts.values())) > 1:
        raise UsageError(f"The numbers of sites differ: {', '.join(f'{n} says {c}' for n, c in counts.items())}.")
    number = next(iter(counts.values()))
    if number < 1:
        raise UsageError(f"--sites is {number}, but must be at least 1.")
    names = options.names or [f"site-{i + 1}" for i in range(number)]
    check_names(names)
    return names


def _from_table(cases: Sequence[Case], options: argparse.Namespace) -> tuple[Sites, int]:
    sites, without_images = partition_by_csv(cases, options.csv)
    for name in options.names or []:
        if name not in sites:
            raise UsageError(f"--names: {name} is no site with images; there are {', '.join(sites)}.")
    sites = {name: sites[name] for name in options.names or sites}
    if options.sites is not None:
        if not 1 <= options.sites <= len(sites):
            raise UsageError(f"--sites is {options.sites}, but the table gives 1 to {len(sites)} sites with images.")
        largest = sorted(sites, key=lambda name: -len(sites[name]))[: options.sites]
        sites = {name: sites[name] for name in sites if name in largest}
    return sites, without_images


def _print_sites(datalists: dict[str, Datalist], found: int, without_images: int, folder: Path) -> None:
    table = Table("site", *(f"{split} cases" for split in SPLITS), "patients")
    for site, datalist in datalists.items():
        cases = [case for split in SPLITS for case in datalist.split(split)]
        table.add_row(site, *(str(len(datalist.split(s))) for s in SPLITS), str(len(by_patient(cases))))
    out().print(table)
    given = {site: len(d.notes[NOTE]["given"]) for site, d in datalists.items() if NOTE in d.notes}
    if given:
        donors = ", ".join(f"{count} of {site}" for site, count in given.items() if count)
        out().print(
            f"{sum(given.values())} training case(s) are at every site ({donors}). "
            "In a real consortium they would leave their hospitals."
        )
    unused = found - len({case for d in datalists.values() for s in SPLITS for case in d.split(s)})
    if unused:
        out().print(f"{unused} of {found} cases are at no site.")
    if without_images:
        out().print(f"{without_images} subjects of the table have no images here.")
    out().print(f"Sites: {escape(str(folder))}")


def _print_next(task: str, folder: Path, site: str) -> None:
    task, first, sites = (escape(shlex.quote(str(word))) for word in (task, folder / site, folder))
    out().print(f"Next:\n  fedseg check-data {task} {first}\n  fedseg simulate JOB --data {sites} --out runs/first")
