"""``fedseg advise``: what to try in a federation, and why."""

from __future__ import annotations

import argparse
from typing import Any

from rich.markup import escape

from fedseg.commands.arguments import Command, check_report_file
from fedseg.console import out
from fedseg.files.documents import write_json
from fedseg.statistics.document import find_statistics, read_statistics


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    command.path("statistics", "a statistics.json, or the folder of a run of a job of statistics", "STATISTICS")
    command.path("--first-run", "folder of a first run of the same federation", "RUN")
    command.path("--out", "also write the advice to this JSON file", "FILE")


def run(options: argparse.Namespace) -> int:
    """``fedseg advise``: say what to try in a federation, and why.

    From the statistics of a federation (how far sites are apart, what is not drawn, which channels are missing, how
    large sites are), and from a first run where one is named, say which methods and settings are worth a try, each with
    the number that speaks for it and the page that tells more. It changes nothing and promises nothing.

    example: fedseg advise runs/statistics --first-run runs/fedavg
    """
    from fedseg.evaluation.summary import SUMMARY, read_summary
    from fedseg.planning.advice import BEGIN_WITH, Subject, advise, to_document

    subject = Subject(read_statistics(options.statistics), read_summary(options.first_run) if options.first_run else {})
    if options.out is not None:
        inputs = [find_statistics(options.statistics), *([options.first_run / SUMMARY] if options.first_run else [])]
        check_report_file("--out", options.out, inputs)
    found = advise(subject)
    if not found:
        out().print(escape(f"Nothing speaks for another method than FedAvg: begin with jobs/{BEGIN_WITH} or its like."))
    for number, each in enumerate(found, start=1):
        tries = [*(f"jobs/{job}" for job in each.rule.jobs), *(f"--set {setting}" for setting in each.rule.settings)]
        out().print(escape(f"{number}. {each.reason}."))
        out().print(escape(f"   {each.rule.because}"))
        out().print(escape(f"   try:  {', '.join(tries)}"))
        out().print(escape(f"   more: {each.rule.evidence}"))
    if found:
        out().print(escape(f"Compare each with FedAvg (jobs/{BEGIN_WITH} or its like) over three seeds."))
    if options.out is not None:
        write_json(options.out, to_document(subject, found))
        out().print(escape(f"written to {options.out}"))
    return 0
