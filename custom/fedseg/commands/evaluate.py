"""``fedseg evaluate``: score a saved model on a datalist."""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table

from fedseg.commands.arguments import Command
from fedseg.commands.saved_model import add_model_arguments, load
from fedseg.console import out, track
from fedseg.tasks.segmentation.metrics import EMPTY_CONVENTIONS


def add_parser(subparsers: Any) -> None:
    """Add this command to the command line."""
    command = Command(
        subparsers,
        "evaluate",
        run,
        "score a saved model on a datalist",
        "Dice and HD95 of every case and region, on each image's own grid, in evaluation.json.",
        "fedseg evaluate runs/first/models/last.safetensors --task brats --data my/datalist.json "
        "--out runs/first-at-home",
    )
    add_model_arguments(command, "final")
    empty = "how regions empty in the reference count"
    command.value("--empty", empty, choices=EMPTY_CONVENTIONS, default="brats")


def run(options: argparse.Namespace) -> int:
    """Score and show the means."""
    from fedseg.evaluation.scoring import evaluate

    model, _, cases = load(options)
    content = evaluate(
        model,
        cases,
        options.out,
        progress=lambda items: track(items, "cases", len(cases)),
        device=options.device,
        overlap=options.overlap,
        empty=options.empty,
    )
    table = Table("region", "Dice", "HD95 (mm)", "cases scored", title=f"mean over {len(cases)} cases")
    mean = content["mean"]
    for region in model.task.region_names:
        numbers = [mean[kind][region] for kind in ("dice", "hd95")]
        shown = ["n/a" if n is None else f"{n:.{d}f}" for n, d in zip(numbers, (4, 2), strict=True)]
        table.add_row(region, *shown, str(mean["defined"][region]))
    out().print(table)
    out().print(f"written to {options.out / 'evaluation.json'}")
    return 0
