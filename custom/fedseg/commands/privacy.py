"""``fedseg privacy``: show what releases have cost in privacy, or plan their noise.

The ledger of a site, and the noise or the rounds that a budget of epsilon and delta leaves.

example: fedseg privacy plan --epsilon 8 --delta 1e-5 --rounds 100
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from fedseg import allowed
from fedseg.commands.arguments import Command
from fedseg.console import out
from fedseg.contract.round_numbers import nth
from fedseg.errors import ConfigurationError, DataError, UsageError
from fedseg.files.hash_chain_check import Chain, verify
from fedseg.privacy.accounting.epsilon import (
    ACCOUNTANTS,
    NEIGHBOURS,
    PATIENT,
    REPLACE,
    Release,
    epsilon,
    noise_for,
    relative_to_sensitivity,
    rounds_for,
)
from fedseg.privacy.accounting.ledger import FILE, FOLDER, Ledger, Spent, spent_words
from fedseg.provenance.ledger_check import uncharged

DEFAULT_DELTA = 1e-5

_PLACE = ("dataset", "job", "run_id")
_COST = ("mechanism", "noise_multiplier", "epsilon", "unit", "sampling_rate", "neighbours", "clip")


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    actions = Command(subparsers, None, __doc__).actions("ledger or plan")
    ledger = Command(actions, run_ledger)
    ledger.path("state", "state folder of a site, or a ledger's folder", "STATE_FOLDER")
    ledger.value("--dataset", "only this data set of the site", metavar="NAME")
    ledger.value("--delta", "delta of the epsilon (default 1e-5)", float, default=DEFAULT_DELTA)
    ledger.flag("--json", "print JSON instead of tables")
    plan = Command(actions, run_plan)
    rate = "probability with which a unit takes part in a round, drawn anew each time (default 1)"
    differ = "how two data sets differ that must look alike: one unit replaced (default), or added or removed"
    plan.value("--epsilon", "largest epsilon after all rounds", float, required=True)
    plan.value("--delta", "delta, well below one over the number of units", float, required=True)
    with plan.only_one(required=True):
        plan.value("--rounds", "rounds (or steps): print the least noise multiplier", int, metavar="N")
        plan.value("--noise-multiplier", "noise: print how many rounds it allows", float, metavar="Z")
    plan.value("--sampling-rate", rate, float, default=1.0, metavar="Q")
    plan.value("--neighbours", differ, choices=NEIGHBOURS, default=REPLACE)
    plan.value("--accountant", "which epsilon must fit (default pld)", choices=ACCOUNTANTS, default="pld")


def run_ledger(options: argparse.Namespace) -> int:
    """``fedseg privacy ledger``: verify a site's ledger and show its releases and their composed epsilon.

    Verify the hash chain of a site's ledger, show what left with a guarantee and what left without one, and compose
    the former.

    example: fedseg privacy ledger runs/first/state/site-1 --delta 1e-5
    """
    _usage(lambda: allowed.number("delta", options.delta, above=0, below=1))
    if not options.state.is_dir():
        raise UsageError(f"{options.state} is not a folder. Name a site's state folder, or the folder of its ledger.")
    folder = next((f for f in (options.state / FOLDER, options.state) if any(f.glob(f"{FILE}*"))), None)
    if folder is None:
        raise DataError(
            f"{options.state} holds no privacy ledger: nothing has left since there is one, or it is elsewhere "
            "(`fedseg simulate --ledger DIR` keeps it in DIR/<site>)."
        )
    chain = verify(folder / FILE)
    if not chain.entries:
        raise DataError(f"The privacy ledger in {folder} has no entry.")
    ledger = Ledger(folder, simulated=bool(chain.entries[0].get("simulated")))
    entries = [*ledger.history(), *ledger.history(guaranteed=False)]
    names = sorted({entry["dataset"] for entry in entries if options.dataset in (None, entry["dataset"])})
    if not names:
        known = ", ".join(sorted({entry["dataset"] for entry in entries}))
        raise UsageError(f"--dataset: nothing of {options.dataset} is in the ledger; it holds {known}.")
    spent = {name: asdict(ledger.spent(options.delta, dataset=name)) for name in names}
    releases, without = (ledger.history(options.dataset, guaranteed) for guaranteed in (True, False))
    if options.json:
        out().print_json(json.dumps(_content(chain, ledger, releases, without, spent)))
    else:
        _print_ledger(chain, ledger, releases, without, spent)
    _check_records(options.state, ledger)
    return 0


def _check_records(state: Path, ledger: Ledger) -> None:
    """Compare a ledger with the records of the runs beside it.

    Raises:
        DataError: they know of releases that it lacks.
    """
    if lacking := uncharged(state, ledger.history()):
        raise DataError(
            f"The ledger lacks {len(lacking)} release(s) that this site's records have, such as {lacking[0]}. It is an "
            "older copy, so more is spent than it says. Bring back the newest one."
        )


def _content(
    chain: Chain, ledger: Ledger, releases: Sequence[Any], without: Sequence[Any], spent: dict[str, Any]
) -> dict[str, Any]:
    """The ledger as JSON, which has no infinity: null stands for it."""
    count, head = chain.head
    finite = {
        name: {**values, "epsilon": values["epsilon"] if math.isfinite(values["epsilon"]) else None}
        for name, values in spent.items()
    }
    return {
        "schema": "fedseg-privacy-ledger-1",
        "simulated": ledger.simulated,
        "lines": count,
        "head": head,
        "torn_bytes": len(chain.torn),
        "releases": list(releases),
        "without_guarantee": list(without),
        "spent": finite,
    }


def _print_ledger(
    chain: Chain, ledger: Ledger, releases: Sequence[Any], without: Sequence[Any], spent: dict[str, Any]
) -> None:
    if releases:
        out().print(_table_of_releases(releases))
    if without:
        table = Table("Data set", "Job", "Left without a guarantee", "Times", "Patients")
        counts = Counter(
            tuple(entry[name] for name in ("dataset", "job", "what", "patient_count")) for entry in without
        )
        for (dataset, job, what, patients), count in counts.items():
            table.add_row(*(escape(str(cell)) for cell in (dataset, job, what, count, patients)))
        out().print(table)
    for name, values in spent.items():
        out().print(f"{escape(name)}: {spent_words(Spent(**values))}")
    out().print(
        "Epsilon is for neighbours by replacement and for the patients of this site; a patient who was also treated at "
        "another hospital is counted there by himself."
    )
    count, head = chain.head
    kind = "simulated ledger" if ledger.simulated else "ledger"
    out().print(f"The {kind} is intact: {count} lines, head {head}")
    if chain.torn:
        out().print(
            f"{len(chain.torn)} bytes of a line that was never completed follow it; nothing left on its account."
        )


def _table_of_releases(releases: Sequence[Any]) -> Table:
    table = Table("Data set", "Job", "Rounds", "Releases", "Mechanism", "Noise over sensitivity", "Patients")
    for _, group in groupby(releases, key=lambda entry: [entry[name] for name in (*_PLACE, *_COST, "patients")]):
        entries = list(group)
        first, rounds = entries[0], sorted({nth(entry["round"]) for entry in entries})
        spread = f"{rounds[0]} to {rounds[-1]}" if len(rounds) > 1 else str(rounds[0])
        count = sum(entry["count"] for entry in entries)
        cells = [first["dataset"], first["job"], spread, count, first["mechanism"], _noise(first)]
        table.add_row(*(escape(str(cell)) for cell in [*cells, first["patient_count"]]))
    return table


def _noise(entry: Any) -> str:
    """The noise over the sensitivity, or the epsilon of a mechanism that has no such number."""
    if entry["mechanism"] == "pure":
        return f"epsilon {entry['epsilon']}"
    sampled = f", sampled at {entry['sampling_rate']:.3g}" if entry["sampling_rate"] < 1 else ""
    return f"{entry['noise_multiplier']:.4g}{sampled}"


def run_plan(options: argparse.Namespace) -> int:
    """``fedseg privacy plan``: the noise that a number of rounds needs, or the rounds that a noise allows.

    Plan Gaussian noise on clipped updates. The noise multiplier is that of a job: the standard deviation of the noise
    over the clipping norm.

    example: fedseg privacy plan --epsilon 8 --delta 1e-5 --rounds 100
    """
    rate, neighbours = options.sampling_rate, options.neighbours
    of_clip, rounds = options.noise_multiplier, options.rounds
    common = (rate, neighbours, options.accountant)
    if of_clip is None:
        least = _usage(noise_for, options.epsilon, options.delta, rounds, *common)
        # Rounded up, so that what is copied into a job is enough.
        of_clip = math.ceil(1e4 * least / relative_to_sensitivity(1.0, neighbours)) / 1e4
    else:
        multiplier = relative_to_sensitivity(of_clip, neighbours)
        rounds = _usage(rounds_for, options.epsilon, options.delta, multiplier, *common)
    out().print(f"noise multiplier {of_clip:.10g} (standard deviation of the noise over the clipping norm)")
    out().print(f"rounds           {rounds}")
    if rounds == 0:
        out().print(f"One round with this noise already costs more than epsilon {options.epsilon:g}.")
        return 0
    multiplier = relative_to_sensitivity(of_clip, neighbours)
    planned = Release("gaussian", multiplier, unit=PATIENT, sampling_rate=rate, count=rounds, neighbours=neighbours)
    for accountant in ACCOUNTANTS:
        out().print(f"epsilon ({accountant})    {_cost(planned, options.delta, accountant)}")
    differ = "is replaced by another" if neighbours == REPLACE else "is added or removed"
    out().print(f"at delta {options.delta:g}, where one unit (a site's update, or a patient) {differ}")
    return 0


def _cost(planned: Release, delta: float, accountant: str) -> str:
    try:
        return f"{epsilon([planned], delta, accountant, planned.neighbours):.4f}"
    except ConfigurationError:
        return "not known for sampling under replacement"


def _usage(function: Any, *arguments: Any) -> Any:
    """Call, and report a value that is not allowed as wrong usage."""
    try:
        return function(*arguments)
    except ConfigurationError as error:
        raise UsageError(str(error)) from None
