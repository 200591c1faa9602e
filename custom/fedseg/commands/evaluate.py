"""``fedseg evaluate``: score a saved model on a datalist."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fedseg.commands.arguments import Command
from fedseg.commands.routing import route, routing_files
from fedseg.commands.saved_model import add_model_arguments, describe, load, read_files, report_failed
from fedseg.console import out, tell, track
from fedseg.data.datalist import case_names
from fedseg.data.label_convention import settled, with_convention
from fedseg.errors import DataError, UsageError
from fedseg.files.outputs import check_outputs
from fedseg.tasks.objective import Objective, cases_with, objective_of
from fedseg.tasks.segmentation.distances import HD95_FORMS
from fedseg.tasks.segmentation.metrics import EMPTY_CONVENTIONS


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    add_model_arguments(command, "final")
    empty = "how regions empty in the reference count"
    command.value("--empty", empty, choices=EMPTY_CONVENTIONS, default="brats")
    form = "HD95 of which form: the larger of both directions, or both pooled (MedPy, GaNDLF)"
    command.value("--hd95", form, choices=HD95_FORMS, default="larger")
    profile = "fedseg.json of the site, or its folder: what it says is drawn, where the datalist says nothing"
    command.path("--profile", profile, "FILE")
    command.flag("--pictures", "also draw the best, the median and the worst case into overlays.png")


def run(options: argparse.Namespace) -> int:
    """``fedseg evaluate``: score a saved model on a datalist.

    All scores of every case and region, on each image's own grid, their means and the means' 95% confidence intervals
    in evaluation.json: Dice, HD95, normalised surface distance, volume errors, lesion-wise scores and calibration.
    Cases that cannot be read are left out and named at the end, and the command ends with 1.

    example: fedseg evaluate runs/first/models/last.safetensors --task brats --data my/datalist.json --out
    runs/first-at-home
    """
    model, datalist, cases = load(options)
    from fedseg.evaluation.report.case_pictures import draw_cases, picture_files
    from fedseg.evaluation.scoring import EVALUATION, EVALUATION_TABLE, Predictor, evaluate

    cases = tuple(case for case in cases if not case.supervision.weak)
    if not cases:
        raise DataError("No case is labelled voxel by voxel, so none can be scored. Choose another --split.")
    kind, pictures = objective_of(model.task), picture_files(options.out) if options.pictures else []
    if pictures and not kind.masks:
        raise UsageError(f"--pictures: the model is one of {kind.title}; its predictions are no masks.")
    written = [options.out / EVALUATION, options.out / EVALUATION_TABLE, *pictures, *routing_files(options)]
    check_outputs("--out", written, read_files(options, datalist))
    final = options.split == "final"
    model = replace(model, task=with_convention(model.task, settled(model.task, datalist, cases).convention))
    if options.components is not None and {"validation"} & {options.split, datalist.final_split if final else ""}:
        tell(
            "Rules that were chosen on validation cases are scored on such cases: expect less on others.", warning=True
        )
    predictor = Predictor(
        model, options.device, options.overlap, lambda items: track(items, "cases", len(cases), slow=True),
        adapt=cases if options.adapt_statistics else (),
    )  # fmt: skip
    predictor = route(options, predictor, cases)
    content = evaluate(predictor, cases, options.out, options.empty, options.hd95, describe(options, model, datalist))
    out().print(_table(kind, content))
    if options.pictures:
        named = dict(zip(case_names(cases), cases, strict=True))
        picture = draw_cases(replace(predictor, progress=iter), kind, named, content["cases"], options.out)
        out().print(f"pictures in {picture}" if picture else "no case has a score, so there are no pictures")
    out().print(f"written to {options.out / EVALUATION}, case by case also to {EVALUATION_TABLE}")
    return report_failed(content["failed"])


def _table(kind: Objective, content: Mapping[str, Any]) -> Table:
    """One line for each score and output."""
    mean, spread = content["mean"], content["spread"]
    table = Table(title=f"{len(content['cases'])} cases", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("score", min_width=len("Calibration"))
    for column in (kind.output, "cases", "mean", "95% interval", "median", "weakest"):
        table.add_column(column, no_wrap=True)
    for score in kind.scores:
        for output in kind.outputs if mean[score.name] else ():
            digits, told = 2 if score.unit else 4, spread[score.name][output]
            bounds = content["intervals"].get(score.name, {}).get(output)
            interval = " to ".join(f"{bound:.{digits}f}" for bound in bounds) if bounds else "n/a"
            numbers = (mean[score.name][output], told["median"], told["weakest"])
            average, *others = ("n/a" if number is None else f"{number:.{digits}f}" for number in numbers)
            name = f"{score.title} ({score.unit})" if score.unit else score.title
            table.add_row(name, output, str(cases_with(mean, score.name, output)), average, interval, *others)
        table.add_section()
    return table
