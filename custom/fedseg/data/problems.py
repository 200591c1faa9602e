"""What can be wrong with a file: told by the check as a finding, raised by every reader as an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from fedseg.errors import DataError

Severity = Literal["error", "warning"]
# Takes a code of ``checks.findings.CODES``, the severity, what was found as a sentence, and what to do as a sentence.
Report = Callable[[str, Severity, str, str], None]
Reporter = Callable[[Path], Report]


class FileError(DataError):
    """A file that cannot be used as it is; the text names it: for the site only."""

    def __init__(self, file: Path, code: str, message: str, remedy: str) -> None:
        """Say what is wrong with ``file``; the rest as in ``checks.findings.Finding``."""
        lead = " cannot be read" if code in ("missing-file", "unreadable") else ""
        super().__init__(f"{file}{lead}: {message} {remedy}")
        self.file, self.code, self.message, self.remedy = file, code, message, remedy

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.file, self.code, self.message, self.remedy)


def refuse(file: Path) -> Report:
    """The report of a reader: an error ends the reading, and warnings are for the check."""

    def report(code: str, severity: Severity, message: str, remedy: str) -> None:
        if severity == "error":
            raise FileError(file, code, message, remedy)

    return report


def shown(values: tuple[float, ...]) -> str:
    """``0.5 x 0.5 x 2`` for people."""
    return " x ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)
