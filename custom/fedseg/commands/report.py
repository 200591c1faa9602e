"""``fedseg report``: make the page of one run or experiment again, or compare several runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape

from fedseg.commands.arguments import Command, run_names
from fedseg.console import out, print_table
from fedseg.errors import UsageError
from fedseg.files.locks import locked
from fedseg.files.outputs import check_outputs


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    command.path("runs", "folder of a run (the --out of fedseg simulate), or of an experiment", "RUN", nargs="+")
    command.path("--out", "folder for the comparison; only with several runs", "DIR")


def run(options: argparse.Namespace) -> int:
    """``fedseg report``: make the report of a run or an experiment again, or compare runs.

    Make the report of one run from its summary.json, that of an experiment from its tables, or a comparison of several
    runs.

    example: fedseg report runs/first runs/second --out runs/comparison
    """
    if len(options.runs) == 1:
        if options.out is not None:
            raise UsageError("--out is for comparing several runs; the report of one run lies in the run's own folder.")
        with locked(options.runs[0], "fedseg report"):
            return _one(options.runs[0])
    if options.out is None:
        raise UsageError("comparing several runs needs --out DIR, the folder to write the comparison to.")
    return _several(options.runs, options.out)


def _one(folder: Path) -> int:
    # Imported here: drawing libraries take a second that other commands need not wait for.
    from fedseg.evaluation.experiment_folder import is_experiment
    from fedseg.evaluation.report.page import write_report
    from fedseg.evaluation.report.tables import result_table
    from fedseg.evaluation.summary import read_summary

    if is_experiment(folder):
        return _experiment(folder)
    page = write_report(folder)
    out().print(result_table(read_summary(folder)))
    out().print(f"Report: {escape(str(page))}")
    return 0


def _experiment(folder: Path) -> int:
    from fedseg.evaluation.report.experiment.page import write_experiment_report

    report = write_experiment_report(folder)
    print_table(report.arms.header, report.arms.rows, report.arms.left)
    out().print(f"Report: {escape(str(report.page))}\nFor each site: {escape(str(report.page.parent / 'sites'))}")
    return 0


def _several(folders: list[Path], target: Path) -> int:
    from fedseg.evaluation.report.compare import comparison_files, runs_frame, runs_table, write_comparison
    from fedseg.evaluation.summary import SUMMARY, read_summary

    check_outputs("--out", comparison_files(target).values(), [folder / SUMMARY for folder in folders])
    runs = {name: read_summary(folder) for name, folder in zip(run_names(folders), folders, strict=True)}
    paths = write_comparison(runs, target)
    # A terminal has room for the essentials; the files have every column.
    frame = runs_frame(runs)
    frame["Rule"] = [str(rule).partition(" with ")[0] for rule in frame["Rule"]]
    means = [column for column in frame.columns if str(column).startswith(("Mean ", "Pooled "))]
    content = runs_table(frame[["Method", "Rule", "Seed", *means, "Bytes", "Seconds"]])
    print_table(content.header, content.rows, 4)
    out().print(f"Comparison: {escape(str(paths['html']))}")
    return 0
