"""``fedseg evaluate``: score a saved model on a datalist."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from rich.table import Table

from fedseg.commands.arguments import Command
from fedseg.commands.saved_model import add_model_arguments, load, read_files, report_failed
from fedseg.console import out, track
from fedseg.data.label_convention import settled, with_convention
from fedseg.files.outputs import check_outputs
from fedseg.tasks.segmentation.metrics import EMPTY_CONVENTIONS, HD95_FORMS


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    add_model_arguments(command, "final")
    empty = "how regions empty in the reference count"
    command.value("--empty", empty, choices=EMPTY_CONVENTIONS, default="brats")
    form = "HD95 of which form: the larger of both directions, or both pooled (MedPy, GaNDLF)"
    command.value("--hd95", form, choices=HD95_FORMS, default="larger")


def run(options: argparse.Namespace) -> int:
    """``fedseg evaluate``: score a saved model on a datalist.

    Dice and HD95 of every case and region, on each image's own grid, in evaluation.json. Cases that cannot be read are
    left out and named at the end, and the command ends with 1.

    example: fedseg evaluate runs/first/models/last.safetensors --task brats --data my/datalist.json --out
    runs/first-at-home
    """
    from fedseg.evaluation.scoring import EVALUATION, Predictor, evaluate
    from fedseg.tasks.objective import objective_of

    model, datalist, cases = load(options)
    check_outputs("--out", [options.out / EVALUATION], read_files(options, datalist))
    model = replace(model, task=with_convention(model.task, settled(model.task, datalist, cases).convention))
    predictor = Predictor(model, options.device, options.overlap, lambda items: track(items, "cases", len(cases)))
    content = evaluate(predictor, cases, options.out, options.empty, options.hd95)
    mean = content["mean"]
    kind = objective_of(model.task)
    columns = [f"{score.title} ({score.unit})" if score.unit else score.title for score in kind.scores]
    table = Table(kind.output, *columns, "cases scored", title=f"mean over {len(content['cases'])} cases")
    for output in kind.outputs:
        numbers = [(mean[score.name].get(output), 2 if score.unit else 4) for score in kind.scores]
        shown = ["n/a" if number is None else f"{number:.{digits}f}" for number, digits in numbers]
        table.add_row(output, *shown, str(mean["defined"][output]))
    out().print(table)
    out().print(f"written to {options.out / EVALUATION}")
    return report_failed(content["failed"])
