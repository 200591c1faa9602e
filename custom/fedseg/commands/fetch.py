"""``fedseg fetch``: models and report of a job that has ended."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape

from fedseg.commands.arguments import Command
from fedseg.commands.statistics import leave_statistics
from fedseg.console import out, tell
from fedseg.contract.protocol import STATISTICS
from fedseg.deployment.coordination.session import connect


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    command.job_id()
    command.kit()
    command.path("--out", "a new or empty folder", "DIR", required=True)
    command.flag("--no-probe", "in split training: do not measure on phantoms how much of an image features tell")


def run(options: argparse.Namespace) -> int:
    """``fedseg fetch``: fetch models and report of an ended job.

    Fetch what a job left at the server, and write its models, summary and report. A job that failed is fetched too,
    with its logs; the command then ends with 1.

    example: fedseg fetch JOB_ID --kit coordinator@example.org --out runs/first
    """
    with connect(options.kit) as coordinator:
        # Imported here, since a kit that is none needs no network.
        from fedseg.deployment.coordination.fetched_run import fetch

        summary = fetch(coordinator, options.job_id, options.out)
    finish_run(summary, options.out, not options.no_probe)
    return 0


def finish_run(summary: dict[str, Any], folder: Path, probe: bool = True) -> None:
    """Probe a fetched run of split training, and print the scores of every run and where its files are."""
    if STATISTICS in summary:
        leave_statistics(summary[STATISTICS], folder)
        return
    from fedseg.commands.probing import probe_on_phantoms
    from fedseg.deployment.coordination.fetched_run import REPORT
    from fedseg.evaluation.report.page import write_report
    from fedseg.evaluation.report.tables import result_table
    from fedseg.evaluation.report.verdict import phantom_words
    from fedseg.evaluation.summary import last_models, participation

    if probe and "inversion" in probe_on_phantoms(folder, summary):
        write_report(folder)
    report, models = folder / REPORT, sorted(set(last_models(summary).values()))
    lines = [f"report:  {report / 'report.html'}", f"summary: {report / 'summary.json'}"]
    for sentence in filter(None, [phantom_words(summary), *participation(summary)]):
        tell(sentence, warning=True)
    out().print(result_table(summary))
    out().print(escape("\n".join([*lines, *(f"model:   {folder / file}" for file in models)])))
