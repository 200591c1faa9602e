"""``fedseg probe-split``: how much of an image the features of a run of split training tell."""

from __future__ import annotations

import argparse
from typing import Any

from rich.markup import escape

from fedseg.commands.arguments import Command
from fedseg.console import out, print_table
from fedseg.data.phantoms.phantoms import MAXIMUM_CASES, PHANTOM_TASKS
from fedseg.data.phantoms.sites import MINIMUM_CASES
from fedseg.errors import UsageError
from fedseg.files.locks import locked


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    data = f"folder with <site>/datalist.json (default: phantoms; {', '.join(PHANTOM_TASKS)} have them)"
    phantoms = "the attacker has N simulated images instead of those of other sites; without --data the victim, too"
    command.path("folder", "folder of a run of split training", "RUN")
    command.path("--data", data, "DIR")
    command.value("--phantoms", phantoms, int, metavar="N")
    command.value("--steps", "training steps of each decoder (default: up to 400)", int, metavar="N")
    command.several("--cut", "only this cut; may be repeated", "STAGE")
    command.value("--seed", "of patches, decoders and phantoms (default: the run's)", int)


def run(options: argparse.Namespace) -> int:
    """``fedseg probe-split``: measure how much of an image the features of split training tell.

    Train a small decoder for each cut of a run's network that reconstructs images from features, on images of all sites
    but the last by name, and try it on that one's. Completes the run's summary and report.

    example: fedseg probe-split runs/split --data runs/hippocampus-data
    """
    # Imported here: networks and drawing libraries take seconds that other commands need not wait for.
    from fedseg.attacks.probe import ProbeOptions, probe_run
    from fedseg.commands.probing import probe_progress
    from fedseg.evaluation.report.inversion import inversion_table, inversion_verdict
    from fedseg.evaluation.report.page import write_report

    if options.steps is not None and options.steps < 1:
        raise UsageError(f"--steps {options.steps}: the number of steps must be a whole number of at least 1.")
    if options.phantoms is not None and not MINIMUM_CASES <= options.phantoms <= MAXIMUM_CASES:
        raise UsageError(
            f"--phantoms {options.phantoms}: the number of cases must be from {MINIMUM_CASES} to {MAXIMUM_CASES}."
        )
    if options.seed is not None and not 0 <= options.seed < 2**32:
        raise UsageError(f"--seed {options.seed}: the seed must be a whole number from 0 to 4294967295.")
    chosen = ProbeOptions(options.phantoms, options.steps, tuple(options.cut), options.seed)
    with locked(options.folder, "fedseg probe-split"):
        summary = probe_run(options.folder, options.data, chosen, probe_progress)
        page = write_report(options.folder)
    content = inversion_table(summary)
    print_table(content.header, content.rows, content.left)
    out().print(escape(inversion_verdict(summary)))
    out().print(escape(f"report:  {page}\nsummary: {options.folder / 'report' / 'summary.json'}"))
    return 0
