"""The one place through which commands speak: results on stdout, progress and complaints on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

T = TypeVar("T")


def out() -> Console:
    """Console for results (stdout); wide enough for tables when it is not a terminal."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())


def err() -> Console:
    """Console for progress and errors (stderr)."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=not sys.stderr.isatty())


def tell(text: str, warning: bool = False) -> None:
    """One line on stderr, as it is; a warning in yellow."""
    err().print(Text(text, style="yellow" if warning else ""))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> None:
    """Print cells as they are, the first ``left`` columns to the left and numbers to the right."""
    table = Table()
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index < left else "right")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    out().print(table)


def progress_bar() -> Progress:
    """A progress bar with count and elapsed time; silent where stderr is not a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err(),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` while a progress bar shows how far the work is."""
    with progress_bar() as bar:
        yield from bar.track(items, description=description, total=total)
