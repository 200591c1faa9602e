"""``fedseg describe-split``: what crosses each possible cut of a network, and what is left to do at a site."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from fedseg.commands.arguments import Command, Later
from fedseg.console import out
from fedseg.contract.task_argument import JOB_CONFIGURATION, TASK_HELP, task_from_argument
from fedseg.errors import ConfigurationError, UsageError
from fedseg.files.documents import parse_json, read_json
from fedseg.tasks.task import Task

if TYPE_CHECKING:
    from fedseg.networks.registry import Network
    from fedseg.networks.split.costs import CutCost

ALL = "all"


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    network = (
        "one of %(networks)s; or a JSON object as in a job's plan (default: the job's, if TASK is a job folder; else "
        "residual_unet)"
    )
    command.value("task", TASK_HELP, metavar="TASK")
    action = command.value("--network", network, metavar="NAME")
    vars(action)["networks"] = Later(_network_names)
    command.value("--cut", "only this cut (default all)", metavar="STAGE", default=ALL)
    command.value("--patch", "voxels of a patch (default: the task's)", metavar="X,Y,Z")
    command.flag("--json", "print JSON instead of a table")


def _network_names() -> str:
    from fedseg.networks.split.stages import networks_with_cuts

    return ", ".join(networks_with_cuts())


def run(options: argparse.Namespace) -> int:
    """``fedseg describe-split``: show what crosses each cut of a network in split training.

    For each place at which a network can be cut: the tensors that a site sends for one patch, their size, and which
    share of the parameters and of the computation (forward only) is the site's.

    example: fedseg describe-split hippocampus --network residual_unet --cut all
    """
    from fedseg.networks.split.costs import cut_costs
    from fedseg.networks.split.stages import cut_names, cut_stages

    task = task_from_argument(options.task)
    try:
        network = _network(options.network, Path(options.task) / JOB_CONFIGURATION)
        cut_stages(network, cut_names(network)[0] if options.cut == ALL else options.cut, "--cut")
    except ConfigurationError as error:
        raise UsageError(str(error)) from None
    patch = _patch(options.patch, task, network)
    cuts = None if options.cut == ALL else [options.cut]
    costs = cut_costs(network, len(task.channels), task.output_channels, patch, cuts)
    if options.json:
        out().print_json(json.dumps(_content(task, network, patch, costs)))
    else:
        _print(task, network, patch, costs)
    return 0


def _network(declaration: str | None, job: Path) -> Network:
    from fedseg.networks.registry import parse_network

    if declaration is None:
        plan = read_json(job, "the plan of a job") if job.is_file() else {}
        return parse_network(plan.get("network", "residual_unet"))
    if not declaration.lstrip().startswith("{"):
        return parse_network(declaration, "--network")
    try:
        return parse_network(parse_json(declaration), "--network")
    except ValueError as error:
        raise UsageError(f"--network is not JSON: {error}.") from None


def _patch(text: str | None, task: Task, network: Network) -> tuple[int, ...]:
    """Voxels along each axis, checked against the network."""
    words = text.split(",") if text is not None else [str(size) for size in task.patch_size]
    divisor = network.arguments.divisor
    patch = tuple(int(word) if word.strip().isdecimal() else 0 for word in words)
    fits = len(patch) == 3 and all(size > 0 and size % d == 0 for size, d in zip(patch, divisor, strict=True))
    if not fits or prod(patch) < 2 * prod(divisor):
        name = f"--patch {text}" if text is not None else f"The task's patch {','.join(words)}"
        raise UsageError(
            f"{name}: give three numbers of voxels such as 96,96,64, divisible by {','.join(map(str, divisor))} for "
            "this network and not all equal to that."
        )
    return patch


def _content(task: Task, network: Network, patch: Sequence[int], costs: Sequence[CutCost]) -> dict[str, Any]:
    return {
        "schema": "fedseg-split-costs-1",
        "task": task.name,
        "network": network.to_dict(),
        "patch": list(patch),
        "image_values": costs[0].image_values,
        "label_bytes": costs[0].voxels,
        "prediction_bytes": _bytes(costs[0].prediction_values),
        "parameters": costs[0].parameters,
        "flops": costs[0].flops,
        "cuts": [_cut(cost) for cost in costs],
    }


def _cut(cost: CutCost) -> dict[str, Any]:
    return {
        "cut": cost.cut,
        "tensors": {name: list(shape) for name, shape in cost.shapes.items()},
        "values": cost.values,
        "features_up_bytes": _bytes(cost.values),
        "gradients_down_bytes": _bytes(cost.values),
        "site_parameters": cost.site_parameters,
        "site_parameter_share": cost.site_parameters / cost.parameters,
        "site_flops": cost.site_flops,
        "site_flop_share": cost.site_flops / cost.flops,
    }


def _bytes(values: int) -> dict[str, int]:
    """Bytes of so many numbers in each precision."""
    from fedseg.networks.split.costs import BYTES

    return {name: values * width for name, width in BYTES.items()}


def _print(task: Task, network: Network, patch: Sequence[int], costs: Sequence[CutCost]) -> None:
    size = " x ".join(str(length) for length in patch)
    out().print(f"{escape(task.name)}, {network.name}, one patch of {size} voxels and {len(task.channels)} channel(s)")
    out().print(_table(costs))
    for line in _legend(costs[0]):
        out().print(line)


def _table(costs: Sequence[CutCost]) -> Table:
    # As narrow as a terminal of 80 columns: a name that is cut short could not be typed.
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("cut", "tensors", *_bytes(0), "image", "param.", "work"):
        table.add_column(heading, overflow="fold", justify="left" if heading in ("cut", "tensors") else "right")
    for cost in costs:
        table.add_row(
            cost.cut,
            "\n".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in cost.shapes.items()),
            *(f"{size / 1e6:.4g}" for size in _bytes(cost.values).values()),
            f"{cost.values / cost.image_values:.2f}",
            f"{cost.site_parameters / cost.parameters:.1%}",
            f"{cost.site_flops / cost.flops:.1%}",
        )
    return table


def _legend(first: CutCost) -> tuple[str, ...]:
    predictions = ", ".join(f"{size / 1e6:.4g} in {name}" for name, size in _bytes(first.prediction_values).items())
    labels, operations = f"{first.voxels / 1e6:.4g}", f"{first.flops / 1e9:.4g}"
    return (
        "cut: the last stage at the site. float32, float16, int8: MB that cross for one patch as features to the",
        "server, and once more as their gradients back. image: numbers that cross for each number of the image.",
        "param., work: the site's share of the parameters and of the operations, forward only.",
        f"With the features go {labels} MB of labels. Where labels stay at the site, predictions go back and the",
        f"gradient at them to the server, in MB each: {predictions}.",
        "With site_update handed_on the parameters at the site cross twice a turn beside, four bytes each.",
        f"The network has {first.parameters} parameters and takes {operations} billion operations for a patch, those",
        "of convolutions alone.",
    )
