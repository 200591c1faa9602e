"""``fedseg import-weights``: weights of another program as a model to start from."""

from __future__ import annotations

import argparse
from typing import Any

from rich.markup import escape

from fedseg.commands.arguments import Command
from fedseg.console import out
from fedseg.errors import UsageError
from fedseg.files.outputs import check_outputs


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    command.path("weights", "a file of arrays by name (.safetensors, or .pt, .pth, .ckpt of torch)")
    command.path("--job", "the job folder whose network gets them", required=True)
    command.several("--rename", "how the beginning of names changes, e.g. `module.=`; of several the first", "OLD=NEW")
    command.path("--out", "model file to write (.safetensors)", required=True)


def run(options: argparse.Namespace) -> int:
    """``fedseg import-weights``: make a model to start from of weights that another program trained.

    Puts arrays of the file into the job's network, by name and shape, and says which of either side have no partner.
    Arrays of the network without one begin as the job's seed makes them. Start from the model with --initial.

    example: fedseg import-weights pretrained.pt --job jobs/hippocampus_fedavg --rename module.= --out start.safetensors
    """
    from fedseg.jobs.job import read_job
    from fedseg.models.foreign_weights import match_weights, parse_renames, read_foreign
    from fedseg.models.model_file import write_model

    renames = parse_renames(options.rename)
    if options.out.exists():
        raise UsageError(f"--out {options.out} exists. Name a new file.")
    check_outputs("--out", (options.out,), (options.weights, options.job))
    plan = read_job(options.job).plan
    matched = match_weights(plan, read_foreign(options.weights), renames)
    write_model(options.out, plan, matched.weights, -1)
    out().print(escape(str(matched)))
    return 0
