"""``fedseg check-data``: what a site engineer should know about the data before a job does."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape

from fedseg.commands.arguments import Command, check_report_file
from fedseg.console import out, track
from fedseg.contract.proposal import propose
from fedseg.contract.task_argument import TASK_HELP, task_files, task_from_argument
from fedseg.data.checks.datalist_check import check_datalist
from fedseg.data.checks.findings import CheckReport, Finding
from fedseg.data.datalist import read_datalist
from fedseg.data.supervision import KINDS, VOXELS
from fedseg.errors import UsageError
from fedseg.files.documents import write_json
from fedseg.files.outputs import check_outputs

SHOWN_PER_CODE = 20


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    command.value("task", TASK_HELP, metavar="TASK")
    command.path("datalist", "the datalist.json, or its folder", "DATALIST")
    command.path("--json", "also write the report here, for machines", "FILE")
    command.value("--workers", "cases checked side by side (default 1)", int, metavar="N", default=1)
    command.flag("--quick", "look at files and headers only, read no voxel")
    command.flag("--propose", "also print voxel size, patch and network that fit these images, as a plan says them")


def run(options: argparse.Namespace) -> int:
    """``fedseg check-data``: check images and labels of a datalist against a task.

    Look at every file of a datalist and say what would make a job fail or its result wrong. Ends with 1 if there is an
    error. Findings name files and patients: keep them at the site.

    example: fedseg check-data brats /data/brats/datalist.json --json check.json
    """
    if options.workers < 1:
        raise UsageError(f"--workers is {options.workers}, but must be at least 1.")
    if options.json:
        check_report_file("--json", options.json, task_files(options.task))
    task = task_from_argument(options.task)
    datalist = read_datalist(options.datalist)
    if options.json:
        check_outputs("--json", [options.json], datalist.files)
    report = check_datalist(task, datalist, track, quick=options.quick, workers=options.workers)
    console = out()
    _print_findings(console, "red", "error", report.errors)
    _print_findings(console, "yellow", "warning", report.warnings)
    _print_statistics(console, report)
    if options.propose and report.grids:
        shapes, spacings = zip(*(grid.in_body for grid in report.grids), strict=True)
        console.print("to begin with, the plan of a job may say:")
        for place, values in propose(shapes, spacings).items():
            console.print(f'  "{place}": {json.dumps(values)}', markup=False, highlight=False, soft_wrap=True)
    console.print(f"[{'bold' if report.ok else 'bold red'}]{report.summary}[/]")
    if options.json:
        write_json(options.json, report.to_dict())
        console.print(f"Report: {escape(str(options.json))}")
    return 0 if report.ok else 1


def _print_findings(console: Console, colour: str, word: str, findings: Sequence[Finding]) -> None:
    for code, group in groupby(sorted(findings, key=lambda f: f.code), key=lambda f: f.code):
        same = list(group)
        for finding in same[:SHOWN_PER_CODE]:
            place = ", ".join(p for p in (finding.split, finding.patient) if p)
            where = f"{finding.file} ({place})" if finding.file and place else finding.file or place
            console.print(f"[{colour}]{word} {code}[/] {escape(where)}\n    {escape(finding.message)}")
            console.print(f"    To do: {escape(finding.remedy)}")
        if len(same) > SHOWN_PER_CODE:
            console.print(f"    ... and {len(same) - SHOWN_PER_CODE} more {code}; --json FILE lists all")


def _print_statistics(console: Console, report: CheckReport) -> None:
    shape, spacing = report.statistics["shape"], report.statistics["spacing_mm"]
    if shape["smallest"]:
        console.print(f"voxels {shape['smallest']} to {shape['largest']}", markup=False)
        console.print(f"spacing {spacing['smallest']} to {spacing['largest']} mm", markup=False)
    with_class = report.statistics["cases_with_class"]
    if any(with_class.values()):
        console.print("cases with " + ", ".join(f"{name}: {count}" for name, count in with_class.items()))
    supervised = report.statistics["cases_supervised"]
    if set(supervised) - {VOXELS}:
        told = (f"{kind}: {supervised[kind]}" for kind in KINDS if kind in supervised)
        console.print("cases by supervision " + ", ".join(told))
    drawn = report.statistics["cases_drawn"]
    if any(count < report.cases for count in drawn.values()):
        console.print("cases in which it is drawn " + ", ".join(f"{name}: {count}" for name, count in drawn.items()))
