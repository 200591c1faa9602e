"""``fedseg statistics``: what the cases of sites are like, from a run or from data on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape

from fedseg.commands.arguments import Command
from fedseg.console import out, print_table, tell, track
from fedseg.contract.task_argument import TASK_HELP, task_files, task_from_argument
from fedseg.data.datalist import FILE_NAME, Datalist, find_datalist, read_datalist
from fedseg.data.site_folders import find_sites
from fedseg.errors import UsageError
from fedseg.files.documents import read_json
from fedseg.files.outputs import check_outputs
from fedseg.statistics.document import REPORT, FederationStatistics, find_statistics, parse_document, read_statistics


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    source = "a run of a job of statistics, a statistics.json, a datalist, or a folder with <site>/datalist.json"
    command.path("source", source, "SOURCE")
    command.value("--task", f"with data: {TASK_HELP}", metavar="TASK")
    command.value("--minimum", "with data: fewest patients behind each number (default 5)", int, metavar="N")
    command.path("--out", "folder for statistics.json, .csv, .png and .html", "DIR")


def run(options: argparse.Namespace) -> int:
    """``fedseg statistics``: show what the cases of sites are like.

    Show statistics of a run of `jobs/<task>_statistics`, or make them from data on this machine, in the form in which
    they would leave each site. With --out also write them as JSON, CSV and a page.

    example: fedseg statistics /data/sites --task hippocampus --out runs/statistics
    """
    file = _file(options.source)
    if file is not None:
        for name, value in (("--task", options.task), ("--minimum", options.minimum)):
            if value is not None:
                raise UsageError(f"{name} {value}: only with data; {file} holds statistics already.")
        inputs, statistics = [file], read_statistics(file)
        _check_out(options.out, inputs)
    else:
        statistics = _count(options)
    show_statistics(statistics)
    if options.out is not None:
        from fedseg.evaluation.report.statistics import write_statistics_report

        for what, path in write_statistics_report(statistics, options.out).items():
            out().print(escape(f"{what + ':':<12} {path}"))
    return 0


def show_statistics(statistics: FederationStatistics) -> None:
    """Print tables, what is advised, and who told nothing."""
    from fedseg.evaluation.report.statistics import CERTAINTY, protection_words, statistics_tables

    for caption, table in statistics_tables(statistics).items():
        out().print(escape(caption))
        print_table(table.header, table.rows, table.left)
    out().print(escape(f"{protection_words(statistics)} {CERTAINTY}"))
    for text in statistics.advice:
        tell(text)
    for site, why in statistics.left_out.items():
        tell(f"{site} told nothing: {why}", warning=True)


def leave_statistics(content: Any, run: Path) -> None:
    """Write the statistics that a job left into the folder of its run, and show them."""
    from fedseg.evaluation.report.statistics import write_statistics_report

    statistics = parse_document(content, "The result of the job")
    show_statistics(statistics)
    for what, path in write_statistics_report(statistics, run / REPORT).items():
        out().print(escape(f"{what + ':':<12} {path}"))


def _file(source: Path) -> Path | None:
    """The file with statistics that is meant; None for data."""
    if source.is_file():
        content = read_json(source, "statistics, or a datalist")
        return source if isinstance(content, dict) and "schema" in content else None
    found = find_statistics(source)
    return found if found.is_file() else None


def _check_out(folder: Path | None, inputs: list[Path]) -> None:
    if folder is not None:
        from fedseg.evaluation.report.statistics import report_files

        check_outputs("--out", report_files(folder), inputs)


def _count(options: argparse.Namespace) -> FederationStatistics:
    """Statistics of data on this machine, as each site would tell them."""
    from fedseg.site.policy import FEWEST_PATIENTS
    from fedseg.statistics.of_datalists import statistics_of

    if options.task is None:
        raise UsageError("--task is missing: statistics of data need the task that the data are for.")
    minimum = FEWEST_PATIENTS if options.minimum is None else options.minimum
    if minimum < 1:
        raise UsageError(f"--minimum is {minimum}, but must be at least 1.")
    task = task_from_argument(options.task)
    datalists = _datalists(options.source)
    files = [file for datalist in datalists.values() for file in datalist.files]
    _check_out(options.out, [*files, *task_files(options.task)])
    return statistics_of(task, datalists, minimum, track)


def _datalists(source: Path) -> dict[str, Datalist]:
    """The datalists that are meant, by the name of their site."""
    if source.is_file() or (source / FILE_NAME).is_file():
        path = find_datalist(source).absolute()
        return {path.parent.name or "site": read_datalist(path)}
    if not source.exists():
        raise UsageError(f"{source} does not exist. Name a run, a statistics.json, a datalist or a folder of sites.")
    return {site: read_datalist(source / site) for site in find_sites(source)}
