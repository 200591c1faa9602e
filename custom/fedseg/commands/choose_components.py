"""``fedseg choose-components``: which connected parts of a model's predictions are kept at a site."""

from __future__ import annotations

import argparse
from typing import Any

from rich.markup import escape
from rich.table import Table

from fedseg.commands.arguments import Command, check_report_file
from fedseg.commands.saved_model import add_computing, add_model_and_data, describe, load, read_files
from fedseg.console import out, tell, track
from fedseg.errors import UsageError
from fedseg.files.documents import write_json

MOST_ML = 1_000_000


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    add_model_and_data(command, "validation")
    command.path("--out", "JSON file for the rules", "FILE", required=True)
    command.value("--volumes", "smallest volumes in ml to try (default 0.01,0.03,0.1,0.3,1,3)", _volumes, metavar="V,V")
    add_computing(command)


def run(options: argparse.Namespace) -> int:
    """``fedseg choose-components``: choose which connected parts of a model's predictions are kept.

    Try for the foreground and for each region to keep the largest part only, or parts of some volume and more, and keep
    the rule that raises the mean Dice of the site's validation cases most, or none. `fedseg predict` and `evaluate`
    apply the file with --components.

    example: fedseg choose-components runs/first/models/last.safetensors --task brats --data /data/site --out rules.json
    """
    if options.volumes is not None and not all(0 < value <= MOST_ML for value in options.volumes):
        raise UsageError(f"--volumes {options.volumes}: give numbers of ml above 0, up to {MOST_ML}.")
    model, datalist, cases = load(options)
    from fedseg.evaluation.component_choice import VOLUMES, choose_components, document
    from fedseg.evaluation.scoring import Predictor

    if options.split in ("training", "all"):
        tell("Predictions of training cases have fewer false parts than others: choose on validation.", warning=True)
    check_report_file("--out", options.out, read_files(options, datalist))
    predictor = Predictor(
        model, options.device, options.overlap, lambda items: track(items, "cases", len(cases), slow=True),
        adapt=cases if options.adapt_statistics else (),
    )  # fmt: skip
    volumes = options.volumes or VOLUMES
    choice = choose_components(predictor, cases, volumes)
    write_json(options.out, document(choice, describe(options, model, datalist), volumes))
    table = Table("region", "rule", "mean Dice", title=f"{choice['cases']} cases")
    for name, scores in choice["tried"].items():
        chosen = choice["rules"].get(name)
        for word, score in scores.items():
            mark = word == ("none" if chosen is None else chosen if isinstance(chosen, str) else f"{chosen:g} ml")
            table.add_row(escape(name), f"{word}{' (chosen)' if mark else ''}", f"{score:.4f}")
        table.add_section()
    out().print(table)
    out().print(f"written to {options.out}; use it with --components")
    return 0


def _volumes(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0.1,1") from None
