"""The check of one case: its files, their grids, and (unless quick) what their voxels hold."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from fedseg.data.case_reading import open_case, read_label_values, read_values
from fedseg.data.checks.findings import Finding
from fedseg.data.checks.voxels import check_label, content_hash
from fedseg.data.datalist import Case
from fedseg.data.grid import Grid
from fedseg.data.problems import Report, Severity
from fedseg.data.supervision import check_supervision
from fedseg.errors import DataError
from fedseg.tasks.drawn import drawn_outputs, undrawn_classes
from fedseg.tasks.objective import objective_of
from fedseg.tasks.task import Task


@dataclass
class CaseFacts:
    """What is known of one case after looking at it.

    Attributes:
        split, case: where it stands in the datalist.
        findings: what a person should know.
        grid: the grid of the first image that could be read.
        contents: file -> key that is equal for files with equal voxels (for equal paths, when quick).
        conventions: names of the label conventions that the label file fits; None where it was not read or fits none.
        classes: classes of the task that occur in the label.
        drawn: which regions are drawn, see ``tasks.drawn``; None: all, or the names are wrong.
        undrawn: those of ``classes`` that lie in no drawn region.
    """

    split: str
    case: Case
    findings: list[Finding] = field(default_factory=list)
    grid: Grid | None = None
    contents: dict[Path, str] = field(default_factory=dict)
    conventions: tuple[str, ...] | None = None
    classes: tuple[str, ...] = ()
    drawn: tuple[bool, ...] | None = None
    undrawn: tuple[str, ...] = ()

    def reporter(self, file: Path) -> Report:
        """A function ``(code, severity, message, remedy)`` that notes a finding about ``file``."""

        def report(code: str, severity: Severity, message: str, remedy: str) -> None:
            self.findings.append(Finding(code, severity, message, remedy, str(file), self.split, self.case.patient))

        return report


def inspect_case(task: Task, case: Case, split: str, quick: bool = False) -> CaseFacts:
    """Look at all files of one case; holds one image in memory at a time.

    Args:
        task: what the case is checked against.
        case: its files.
        split: where it stands.
        quick: look at files and headers only, read no voxel.
    """
    facts = CaseFacts(split, case)
    with contextlib.suppress(DataError):  # wrong names are told once, of the whole list
        facts.drawn = drawn_outputs(objective_of(task), case.drawn)
    opened = open_case(task, case, facts.reporter)
    facts.grid = opened.grid
    if case.supervision.weak:
        _check_supervision(task, facts)
    elif case.label is None and objective_of(task).needs_label:
        _report_missing_label(facts)
    for file, image in zip(case.images, opened.images, strict=True):
        if image and quick:
            facts.contents[file] = os.path.realpath(file)
        elif image:
            voxels = read_values(task, image, facts.reporter(file))
            if voxels is not None:
                facts.contents[file] = content_hash(voxels)
    if case.label and opened.label and task.classes and not quick:
        report = facts.reporter(case.label)
        values = read_label_values(opened.label, report)
        if values is not None:
            facts.conventions, facts.classes = check_label(task, values, report)
            unheard = undrawn_classes(task, facts.drawn)
            facts.undrawn = tuple(name for name in facts.classes if name in unheard)
    return facts


def _check_supervision(task: Task, facts: CaseFacts) -> None:
    regions, shape = objective_of(task).outputs, None if facts.grid is None else facts.grid.shape
    try:
        check_supervision(facts.case.supervision, regions, shape)
    except DataError as error:
        message, _, remedy = str(error).rstrip(".").rpartition(". ")
        facts.reporter(facts.case.images[0])("supervision", "error", f"{message}.", f"{remedy}.")


def _report_missing_label(facts: CaseFacts) -> None:
    scored = facts.split == "test"
    facts.reporter(facts.case.images[0])(
        "label-missing",
        "warning" if scored else "error",
        "The case has no label" + (", so it cannot be scored." if scored else "."),
        "Name its label file in the datalist, or take the case out.",
    )
