"""``fedseg rank``: which of several runs is best, case by case and by how soon it converged."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from fedseg.commands.arguments import Command, check_report_file, run_names
from fedseg.console import out
from fedseg.errors import UsageError
from fedseg.files.documents import write_json

CLOCKS = ("simulated", "measured")


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    horizon = "time over which convergence counts (default: the longest run if measured, a week if simulated)"
    command.path("runs", "folders of two or more simulated runs", "RUN", nargs="+")
    clock = "simulated: drawn speeds, the same for all runs (default); measured: this machine, whatever else it did"
    command.value("--clock", clock, choices=CLOCKS, default="simulated")
    command.path("--profiles", "JSON file of speeds for the simulated clock", "FILE")
    command.value("--horizon", horizon, float, metavar="SECONDS")
    command.flag("--with-last", "let the model after the last round count for convergence, too")
    command.path("--out", "also write the result here", "FILE.json")


def run(options: argparse.Namespace) -> int:
    """``fedseg rank``: rank runs case by case and by convergence.

    Rank simulated runs of one task on the same cases, as the FeTS challenge ranks: per case by Dice and HD95 of every
    region, and by convergence score, which counts three times.

    example: fedseg rank runs/fedavg runs/fedcostwavg --clock simulated --out runs/rank.json
    """
    _check(options)
    from fedseg.evaluation.fets.run_ranking import rank_runs
    from fedseg.evaluation.report.compare import own_models_note
    from fedseg.evaluation.summary import read_summary

    folders = dict(zip(run_names(options.runs), options.runs, strict=True))
    runs = {name: read_summary(folder) for name, folder in folders.items()}
    content = rank_runs(folders, runs, options.clock, options.profiles, options.horizon, options.with_last)
    _print(content)
    if note := own_models_note(runs):
        out().print(escape(note))
    if options.out is not None:
        write_json(options.out, content)
        out().print(f"Written: {escape(str(options.out))}")
    return 0


def _check(options: argparse.Namespace) -> None:
    if len(options.runs) < 2:
        raise UsageError("name at least two runs; ranks compare.")
    if options.profiles is not None and options.clock != "simulated":
        raise UsageError("--profiles is for --clock simulated; the measured clock needs none.")
    if options.horizon is not None and not 0 < options.horizon < float("inf"):
        raise UsageError(f"--horizon is {options.horizon}, but must be a number of seconds above 0.")
    if options.out is not None:
        read = [run / part for run in options.runs for part in ("job", "report", "state")]
        check_report_file("--out", options.out, [*read, *([options.profiles] if options.profiles else [])])


def _print(content: Mapping[str, Any]) -> None:
    from fedseg.evaluation.report.text_tables import difference_words, shown
    from fedseg.tasks.segmentation.scores import DICE

    title = f"{content['cases']} {content['split']} cases, {content['clock']} clock, {content['horizon_seconds']:.0f} s"
    table = Table(title=title, title_justify="left")
    for name in ("Run", "Method and rule"):
        table.add_column(name, overflow="fold")
    for name, width in (("Pooled Dice", 6), ("Convergence", 11), ("Rank of cases", 7), ("Mean rank", 5)):
        table.add_column(name, justify="right", width=width)
    for entry in content["runs"]:
        # A terminal has room for the rule's name; its arguments stand in the file.
        rule = str(entry["rule"]).partition(" with ")[0]
        method = str(entry["method"] or rule)
        text = [str(entry["run"]), rule if method.casefold() == rule.casefold() else f"{method}, {rule}"]
        numbers = [shown(entry["pooled_dice"]), shown(entry["convergence_score"], ".4f")]
        ranks = [shown(entry["mean_case_rank"]), shown(entry["mean_rank"])]
        table.add_row(*(escape(cell) for cell in [*text, *numbers, *ranks]))
    out().print(table)
    for entry in content["comparisons"]:
        out().print(escape(difference_words(entry["run"], entry["reference"], DICE, entry)))
    if len(content["comparisons"]) > 1:
        best = content["comparisons"][0]["reference"]
        out().print(escape(f"Tested against the winner, {best}, only; the other runs not against each other."))
    if "profiles" in content:
        out().print(f"Speeds of the sites: {escape(content['profiles'])}")
