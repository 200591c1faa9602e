"""``fedseg fetch``: models and report of a job that has ended."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape

from fedseg.commands.arguments import add_kit
from fedseg.commands.probing import probe_on_phantoms
from fedseg.console import out
from fedseg.deployment.coordination.fetched_run import REPORT, fetch
from fedseg.deployment.coordination.session import connect
from fedseg.evaluation.report.page import write_report
from fedseg.evaluation.report.tables import dice_table
from fedseg.evaluation.summary import last_models


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "fetch",
        help="fetch models and report of an ended job",
        description="Fetch what a job left at the server, and write its models, summary and report. A job that failed "
        "is fetched too, with its logs; the command then ends with 1.",
        epilog="example: fedseg fetch JOB_ID --kit coordinator@example.org --out runs/first",
    )
    parser.add_argument("job_id", help="as `fedseg submit` printed it; `fedseg jobs` lists all")
    add_kit(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument(
        "--no-probe",
        action="store_true",
        help="in split training: do not measure on phantoms how much of an image features tell",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Fetch, and print the scores."""
    with connect(options.kit) as coordinator:
        summary = fetch(coordinator, options.job_id, options.out)
    if not options.no_probe:
        probed = probe_on_phantoms(options.out, summary)
        if "inversion" in probed:
            write_report(options.out)
    print_run(summary, options.out)
    return 0


def print_run(summary: dict[str, Any], folder: Path) -> None:
    """Scores of a fetched run, and where its files are."""
    out().print(dice_table(summary))
    report = folder / REPORT
    models = sorted(set(last_models(summary).values()))
    out().print(
        escape(
            f"report:  {report / 'report.html'}\nsummary: {report / 'summary.json'}"
            + "".join(f"\nmodel:   {folder / file}" for file in models)
        )
    )
