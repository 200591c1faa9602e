"""``fedseg rank``: which of several runs is best, case by case and by how soon it converged."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from fedseg.commands.arguments import run_names
from fedseg.console import out
from fedseg.errors import DataError, UsageError
from fedseg.evaluation.clocks import OWN_PROFILES, read_profiles, simulated_seconds
from fedseg.evaluation.convergence import WEEK, convergence_score, measured_seconds, validation_dice
from fedseg.evaluation.ranking import CONVERGENCE_WEIGHT, check_comparable, rank_cases
from fedseg.evaluation.report.case_tables import final_cases, last_validation_dice, read_case_scores, validation_counts
from fedseg.evaluation.report.compare import own_models_note
from fedseg.evaluation.report.decisions import last_rule
from fedseg.evaluation.report.wording import shown
from fedseg.evaluation.summary import Summary, number, part, read_summary
from fedseg.files.documents import write_json

CLOCKS = ("measured", "simulated")


def add_parser(subparsers: Any) -> None:
    """Add this command to the command line."""
    p = subparsers.add_parser(
        "rank",
        help="rank runs case by case and by convergence",
        description="Rank simulated runs of one task on the same cases, as the FeTS challenge ranks: per case by Dice "
        "and HD95 of every region, and by convergence score, which counts three times.",
        epilog="example: fedseg rank runs/fedavg runs/fedcostwavg --clock simulated --out runs/rank.json",
    )
    p.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folders of two or more simulated runs")
    p.add_argument("--clock", choices=CLOCKS, default="measured", help="how rounds are timed (default measured)")
    p.add_argument("--profiles", metavar="FILE", type=Path, help="JSON file of speeds for the simulated clock")
    p.add_argument(
        "--horizon",
        metavar="SECONDS",
        type=float,
        help="time over which convergence counts (default: the longest run if measured, a week if simulated)",
    )
    p.add_argument(
        "--with-last", action="store_true", help="let the model after the last round count for convergence, too"
    )
    p.add_argument("--out", metavar="FILE.json", type=Path, help="also write the result here")
    p.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Do what the command line asks."""
    _check(options)
    folders = dict(zip(run_names(options.runs), options.runs, strict=True))
    runs = {name: read_summary(folder) for name, folder in folders.items()}
    scores = {name: read_case_scores(folder, runs[name]) for name, folder in folders.items()}
    check_comparable(runs, scores)
    convergence, clock = _convergence(options, folders, runs, scores)
    finals = {name: final_cases(frame) for name, frame in scores.items()}
    content = {
        "schema": "fedseg-rank-1",
        **clock,
        "with_last": options.with_last,
        "convergence_weight": CONVERGENCE_WEIGHT,
        "split": part(next(iter(runs.values())), "final").get("split"),
        **_ranked(runs, finals, convergence),
    }
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
    if options.out is not None and not options.out.parent.is_dir():
        raise UsageError(f"--out: the folder {options.out.parent} does not exist.")


def _convergence(
    options: argparse.Namespace,
    folders: Mapping[str, Path],
    runs: Mapping[str, Summary],
    scores: Mapping[str, pd.DataFrame],
) -> tuple[dict[str, float], dict[str, Any]]:
    """The convergence score of each run, and what to say of the clock."""
    dice = {name: validation_dice(summary) for name, summary in runs.items()}
    if options.clock == "measured":
        clock: dict[str, Any] = {"clock": "measured"}
        seconds = {name: measured_seconds(summary) for name, summary in runs.items()}
    else:
        profiles = OWN_PROFILES if options.profiles is None else read_profiles(options.profiles)
        clock = {"clock": "simulated", "profiles": profiles.name}
        seconds = {
            name: simulated_seconds(summary, profiles, validation_counts(folders[name], summary))
            for name, summary in runs.items()
        }
    horizon = options.horizon or _default_horizon(options.clock, seconds)
    if options.with_last:
        for name in runs:
            # It is there as soon as the last round is over, and no round passes after it.
            dice[name].append(last_validation_dice(scores[name]))
            seconds[name].append(0.0)
    found = {name: convergence_score(dice[name], seconds[name], horizon) for name in runs}
    return found, {**clock, "horizon_seconds": horizon}


def _ranked(
    runs: Mapping[str, Summary], finals: Mapping[str, pd.DataFrame], convergence: Mapping[str, float]
) -> dict[str, Any]:
    """How many cases were ranked, and the runs with their numbers, best first."""
    ranks = rank_cases(finals, convergence)
    of_cases = rank_cases(finals, convergence, weight=0)
    entries = [
        {
            "run": name,
            "job": runs[name].get("job"),
            "method": runs[name].get("method"),
            "rule": last_rule(runs[name]),
            "pooled_dice": number(part(runs[name], "final").get("pooled_dice")),
            "convergence_score": convergence[name],
            "mean_case_rank": float(of_cases[name].mean()),
            "mean_rank": float(ranks[name].mean()),
        }
        for name in sorted(runs, key=lambda name: float(ranks[name].mean()))
    ]
    return {"cases": len(ranks), "runs": entries}


def _default_horizon(clock: str, seconds: Mapping[str, Sequence[float]]) -> float:
    if clock == "simulated":
        return WEEK
    longest = max(sum(values) for values in seconds.values())
    if longest <= 0:
        raise DataError("no run took any time; use the simulated clock.")
    return longest


def _print(content: Mapping[str, Any]) -> None:
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
    if "profiles" in content:
        out().print(f"Speeds of the sites: {escape(content['profiles'])}")
