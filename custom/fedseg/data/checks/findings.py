"""What a data check found: single findings with stable codes, and the report of a whole datalist."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedseg.data.grid import Grid
from fedseg.data.problems import Severity

CODES = (
    "missing-file",
    "unreadable",
    "dimensions",
    "channel-count",
    "channel-missing",
    "shape-differs",
    "affine-differs",
    "spacing",
    "orientation",
    "not-finite",
    "constant",
    "hu-range",
    "memory",
    "label-missing",
    "label-values",
    "label-mixed",
    "empty-label",
    "absent-class",
    "drawn-names",
    "label-undrawn",
    "supervision",
    "no-scores",
    "patient-in-two-splits",
    "patient-spelling",
    "label-twice",
    "label-is-image",
    "duplicate-content",
    "no-cases",
    "few-cases",
    "task-name",
)


@dataclass(frozen=True)
class Finding:
    """One thing that a person at the site should know or mend. Names files and patients: for the site only.

    Attributes:
        code: one of ``CODES``; does not change between versions.
        severity: an ``error`` makes the data unusable, a ``warning`` does not.
        message: what was found, as a sentence.
        remedy: what to do, as a sentence.
        file: the file it is about; empty where it is about several or none.
        split: ``training``, ``validation`` or ``test``; empty where it is about the whole list.
        patient: whose case it is; empty where it is about no single one.
    """

    code: str
    severity: Severity
    message: str
    remedy: str
    file: str = ""
    split: str = ""
    patient: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain JSON form, without the severity, which the report's two lists tell."""
        return {name: value for name, value in asdict(self).items() if name != "severity"}


@dataclass(frozen=True)
class CheckReport:
    """Everything that the check of one datalist found.

    Attributes:
        task: name of the task that the data were checked against.
        datalist: path of the datalist; empty where it was not read from a file.
        cases: number of cases looked at.
        findings: errors and warnings in the order of the datalist.
        statistics: counts and ranges over all readable cases; holds no voxel and names no patient.
        grids: of all readable cases; no part of the JSON form.
    """

    task: str
    datalist: Path | None
    cases: int
    findings: tuple[Finding, ...] = ()
    statistics: Mapping[str, Any] = field(default_factory=dict)
    grids: tuple[Grid, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that make the data unusable."""
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that a person should look at."""
        return tuple(f for f in self.findings if f.severity == "warning")

    @property
    def ok(self) -> bool:
        """Whether a job may use the data: there is no error."""
        return not self.errors

    @property
    def summary(self) -> str:
        """One line for people."""

        def counted(number: int, noun: str) -> str:
            return f"{number} {noun}{'' if number == 1 else 's'}"

        errors, warnings = counted(len(self.errors), "error"), counted(len(self.warnings), "warning")
        return f"{errors}, {warnings} in {counted(self.cases, 'case')}"

    def error_counts(self) -> dict[str, int]:
        """How often each error code occurs: names no file and no patient, so it may be told to a server."""
        return dict(sorted(Counter(f.code for f in self.errors).items()))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {
            "schema": 1,
            "task": self.task,
            "datalist": str(self.datalist or ""),
            "ok": self.ok,
            "cases": self.cases,
            "errors": [f.to_dict() for f in self.errors],
            "warnings": [f.to_dict() for f in self.warnings],
            "statistics": dict(self.statistics),
        }
