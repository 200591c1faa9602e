"""``fedseg evaluate``: score a saved model on a datalist."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from rich.table import Table

from fedseg.commands.arguments import Command
from fedseg.commands.saved_model import add_model_arguments, describe, load, read_files, report_failed
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
    model, datalist, cases = load(options)
    from fedseg.evaluation.scoring import EVALUATION, EVALUATION_TABLE, Predictor, evaluate
    from fedseg.tasks.objective import objective_of

    check_outputs("--out", [options.out / EVALUATION, options.out / EVALUATION_TABLE], read_files(options, datalist))
    model = replace(model, task=with_convention(model.task, settled(model.task, datalist, cases).convention))
    predictor = Predictor(
        model, options.device, options.overlap, lambda items: track(items, "cases", len(cases), slow=True)
    )
    content = evaluate(predictor, cases, options.out, options.empty, options.hd95, describe(options, model, datalist))
    mean, spread, kind = content["mean"], content["spread"], objective_of(model.task)
    names = [f"{score.title} ({score.unit})" if score.unit else score.title for score in kind.scores]
    columns = [f"{what} {name}" for name in names for what in ("mean", "median", "weakest")]
    table = Table(kind.output, "cases scored", *columns, title=f"{len(content['cases'])} cases")
    for output in kind.outputs:
        cells = [str(mean["defined"][output])]
        for score in kind.scores:
            told = spread[score.name][output]
            numbers = (mean[score.name].get(output), told["median"], told["weakest"])
            cells += ["n/a" if number is None else f"{number:.{2 if score.unit else 4}f}" for number in numbers]
        table.add_row(output, *cells)
    out().print(table)
    out().print(f"written to {options.out / EVALUATION}, case by case also to {EVALUATION_TABLE}")
    return report_failed(content["failed"])
