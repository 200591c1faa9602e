"""``fedseg predict``: masks from a saved model."""

from __future__ import annotations

import argparse
from typing import Any

from fedseg.commands.arguments import Command
from fedseg.commands.routing import route, routing_files
from fedseg.commands.saved_model import add_model_arguments, load, read_files, report_failed
from fedseg.console import out, track
from fedseg.errors import UsageError
from fedseg.files.outputs import check_outputs


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    add_model_arguments(command, "all")
    command.value("--convention", "name of the label convention to write (default: the task's first)")


def run(options: argparse.Namespace) -> int:
    """``fedseg predict``: segment the cases of a datalist with a saved model.

    Write one NIfTI mask per case, on the grid and affine of the case's own images. Cases that cannot be read are named
    at the end, and the command ends with 1.

    example: fedseg predict runs/first/models/last.safetensors --task brats --data my/datalist.json --out runs/masks
    """
    model, datalist, cases = load(options)
    from fedseg.evaluation.scoring import Predictor, mask_files, write_masks

    written = [*mask_files(cases, options.out).values(), *routing_files(options)]
    check_outputs("--out", written, read_files(options, datalist))
    names = [convention.name for convention in model.task.conventions]
    if options.convention is not None and options.convention not in names:
        raise UsageError(f"--convention {options.convention!r}: the task {model.task.name} knows {names}.")
    predictor = Predictor(
        model, options.device, options.overlap, lambda items: track(items, "cases", len(cases), slow=True),
        adapt=cases if options.adapt_statistics else (),
    )  # fmt: skip
    convention = names.index(options.convention) if options.convention else 0
    masks, failed = write_masks(route(options, predictor, cases), cases, options.out, convention)
    out().print(f"{len(masks)} mask(s) written to {options.out}")
    if options.components is not None:
        rules = ", ".join(f"{name} {rule}" for name, rule in model.task.components.items()) or "all"
        out().print(f"parts kept: {rules} ({options.components})")
    return report_failed(failed)
