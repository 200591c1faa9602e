"""What one check of a site says: a colour, what was found, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from fedseg.tasks.task import Task


class Colour(StrEnum):
    """How bad it is."""

    GREEN = "green"
    """As it must be."""
    YELLOW = "yellow"
    """Somebody should look at it; jobs run all the same."""
    RED = "red"
    """The site cannot take part, or should not."""


@dataclass(frozen=True)
class CheckResult:
    """One line of the page. Holds no key; may name files, so it is for the site only.

    Attributes:
        check: what was looked at, in two or three words.
        colour: how bad it is.
        found: what was found, as a sentence.
        remedy: what to do, as a sentence; empty where it is green.
    """

    check: str
    colour: Colour
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class CheckOptions:
    """How a site is checked.

    Attributes:
        full_data: read every voxel of the data, not the headers only.
        tasks: data set -> task against which its datalist is checked, where the datalist names none that is built in.
        timeout: seconds that the server has for each answer.
        now: the time.
    """

    full_data: bool = False
    tasks: Mapping[str, Task] = field(default_factory=dict)
    timeout: float = 10.0
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


def green(check: str, found: str) -> CheckResult:
    """All is well."""
    return CheckResult(check, Colour.GREEN, found)


def yellow(check: str, found: str, remedy: str) -> CheckResult:
    """Somebody should look at it."""
    return CheckResult(check, Colour.YELLOW, found, remedy)


def red(check: str, found: str, remedy: str) -> CheckResult:
    """The site cannot take part."""
    return CheckResult(check, Colour.RED, found, remedy)


def listed(names: list[str], shown: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def nearest_folder(path: Path) -> Path:
    """The path itself, or the closest folder above it that exists."""
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path
