"""The one place through which commands speak: results on stdout, progress and complaints on stderr."""

from __future__ import annotations

import io
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

T = TypeVar("T")


def out() -> Console:
    """Console for results (stdout); wide enough for tables when it is not a terminal."""
    return _console(sys.stdout)


def err() -> Console:
    """Console for progress and errors (stderr)."""
    return _console(sys.stderr)


class _SafeConsole(Console):
    """Prints no letter that a terminal would obey: names and texts of other people's files and machines hold any."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(_printable(segment.text), segment.style)


def _printable(text: str) -> str:
    """A text in which letters that a terminal would obey, marks of direction too, are written as ``\\x1b``."""
    if text.isprintable():
        return text
    return "".join(letter if letter in "\n\t" or not _commands(letter) else ascii(letter)[1:-1] for letter in text)


def _commands(letter: str) -> bool:
    """Whether a terminal does something else with a letter than showing it; half letters are left to the encoding."""
    return unicodedata.category(letter) in ("Cc", "Cf")


def _console(stream: TextIO) -> Console:
    """A letter that the terminal's encoding lacks, such as one of a file's name, is written as ``\\xe4``."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")
    return _SafeConsole(file=stream, highlight=False, soft_wrap=not stream.isatty())


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


def track(items: Iterable[T], description: str, total: int | None = None, slow: bool = False) -> Iterator[T]:
    """Yield ``items`` while a progress bar shows how far the work is.

    Args:
        items: what is worked on.
        description: what they are.
        total: how many.
        slow: whether each takes so long that, where stderr is no terminal, a line says that it is done.
    """
    if not slow or sys.stderr.isatty():
        with progress_bar() as bar:
            yield from bar.track(items, description=description, total=total)
        return
    for number, item in enumerate(items, start=1):
        yield item
        err().print(f"{description}: {number}{'' if total is None else f' of {total}'} done")
