"""``fedseg site``: check, start, stop and watch a site from its kit.

For the engineer of a site, and of the server: look whether all is ready, start and stop FLARE.

example: fedseg site check --kit hospital-a
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from fedseg.commands.arguments import Command, Run, check_report_file
from fedseg.console import err, out
from fedseg.contract.task_argument import task_files, task_from_argument
from fedseg.deployment.kits.container_runtime import runtime_of
from fedseg.deployment.kits.installed_kit import InstalledKit, read_kit
from fedseg.deployment.kits.manifest import kit_files
from fedseg.deployment.operation.checks.data import listed_files
from fedseg.deployment.operation.checks.page import CheckPage, check_site
from fedseg.deployment.operation.checks.result import CheckOptions, Colour
from fedseg.deployment.operation.start_stop import LOG_FILE, refuse_to_start, start, stop
from fedseg.deployment.operation.status import KitStatus, status
from fedseg.errors import FedsegError, UsageError
from fedseg.files.documents import write_json
from fedseg.tasks.task import Task

SHOWN_LINES = 5


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    actions = Command(subparsers, None, __doc__).actions("check, start, stop or status")
    check = _action(actions, run_check)
    task = "task of a data set, as for check-data; needed where it is not built in"
    check.path("--json", "also write the results here, for machines", "FILE")
    check.flag("--full-data", "read every voxel of the data, not the headers only")
    check.several("--task", task, "DATA_SET=TASK")
    _action(actions, run_start).flag("--force", "start although a check is red")
    _action(actions, run_stop)
    status = _action(actions, run_status)
    status.value("--lines", "lines of the log (default 5)", int, default=SHOWN_LINES, metavar="N")


def _action(actions: Any, run: Run) -> Command:
    command = Command(actions, run)
    kit = "the unpacked kit of a site or of the server (default: this folder)"
    command.path("--kit", kit, "DIR", default=Path("."))
    return command


def run_check(options: argparse.Namespace) -> int:
    """``fedseg site check``: say whether a site is ready, and what to mend.

    Look at the kit, the machine, the way to the server, the data, and what is allowed. Each check is green, yellow or
    red with what to do. Ends with 1 if anything is red. Changes nothing.

    example: fedseg site check --kit hospital-a
    """
    kit = read_kit(options.kit)
    tasks = _tasks(options.task)
    if options.json is not None:
        declared = [file for argument in options.task for file in task_files(argument.partition("=")[2])]
        check_report_file("--json", options.json, [*kit_files(kit), *listed_files(kit), *declared])
    page = check_site(kit, CheckOptions(options.full_data, tasks))
    _say(f"{kit.name}, of the federation {kit.project}, in {kit.folder}")
    for about, results in page.groups.items():
        if not results:
            continue
        table = Table(title=about, title_justify="left", show_header=False)
        for _ in range(3):
            table.add_column(overflow="fold")
        for result in results:
            # As Text, a fingerprint such as 4E:AB:12 stays one; else rich takes :AB: for the name of a picture.
            text = Text(result.found)
            if result.remedy:
                text.append("\nTo do: ", style="bold").append(result.remedy, style="not bold")
            table.add_row(Text(result.colour, style=result.colour), Text(result.check), text)
        out().print(table)
    out().print(Text(page.verdict, style=f"bold {page.colour}"))
    if options.json is not None:
        write_json(options.json, page.to_dict())
    return 1 if page.colour is Colour.RED else 0


def _tasks(arguments: Sequence[str]) -> dict[str, Task]:
    tasks = {}
    for argument in arguments:
        name, _, task = argument.partition("=")
        if not name or not task:
            raise UsageError(f"--task {argument}: write DATA_SET=TASK, e.g. brats=brats.")
        tasks[name] = task_from_argument(task)
    return tasks


def run_start(options: argparse.Namespace) -> int:
    """``fedseg site start``: start FLARE in the background.

    Check the site and start FLARE by the kit's own script, which starts it again whenever it ends. What it prints goes
    to console.log in the kit.

    example: fedseg site start --kit hospital-a
    """
    kit = read_kit(options.kit)
    refuse_to_start(kit)
    page = check_site(kit, CheckOptions())
    if page.colour is Colour.RED:
        _complain(page, options.force)
    process = start(kit)
    _say(f"{kit.name} runs: process {process.pid}. Log: {kit.folder / LOG_FILE}")
    _say("`fedseg site status` says whether it is connected.")
    return 0


def _complain(page: CheckPage, force: bool) -> None:
    """Say what is red.

    Raises:
        FedsegError: and it is not forced.
    """
    first = page.reds[0]
    why = f"{first.check}: {first.found}"
    if not force:
        raise FedsegError(f"{page.kit.name} is not started, for {why} `fedseg site check` says all; --force starts it.")
    err().print(Text(f"Started all the same, though {why}"))


def run_stop(options: argparse.Namespace) -> int:
    """``fedseg site stop``: end FLARE and its jobs.

    End everything that runs from a kit, in order.

    example: fedseg site stop --kit hospital-a
    """
    kit = read_kit(options.kit)
    ended = stop(kit)
    for each in ended:
        _say(f"{each.what} (process {each.pid}): {each.how}")
    _say(f"{kit.name} {'is stopped' if ended else 'did not run'}.")
    return 0


def run_status(options: argparse.Namespace) -> int:
    """``fedseg site status``: say whether FLARE runs, since when, and on which jobs it works.

    Look at what runs from a kit. Ends with 1 if FLARE does not run.

    example: fedseg site status --kit hospital-a
    """
    if options.lines < 0:
        raise UsageError(f"--lines is {options.lines}, but must be at least 0.")
    kit = read_kit(options.kit)
    seen = status(kit, options.lines)
    if seen.processes.main is None:
        left = ", ".join(sorted(seen.processes.jobs))
        _say(f"{kit.name}: stopped{f'; jobs that are left: {left}' if left else ''}")
        if (runtime := runtime_of(kit.folder)) is not None:
            _say(f"It was made ready for {runtime.name}, and its processes are not seen from here: {runtime.look}")
    else:
        _say(f"{kit.name}: running, process {seen.processes.main.pid}, since {_time(seen)}")
        _say(f"server: {_server(kit, seen.connected)}")
        _say(f"jobs: {', '.join(sorted(seen.processes.jobs)) or 'none'}")
    if seen.lines:
        _say(f"the end of {seen.log}:")
        _say("\n".join(seen.lines))
    return 0 if seen.processes.main is not None else 1


def _time(seen: KitStatus) -> str:
    return f"{seen.since:%Y-%m-%d %H:%M:%S} UTC" if seen.since is not None else "an unknown time"


def _server(kit: InstalledKit, connected: bool | None) -> str:
    if connected is None:
        return f"{kit.address}, perhaps connected: this user may not look"
    if kit.is_site:
        return f"{'connected to' if connected else 'NOT connected to'} {kit.address}"
    return f"{'listens' if connected else 'does NOT listen'} at port {kit.port}"


def _say(text: str) -> None:
    """Print what may hold anything: paths, names, lines of a log."""
    out().print(text, markup=False, emoji=False)
