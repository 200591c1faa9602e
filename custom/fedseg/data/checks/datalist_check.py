"""The check of a whole datalist: every case, and what can be seen only by comparing cases."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fedseg.data.checks.case import CaseFacts, inspect_case
from fedseg.data.checks.findings import CheckReport, Finding, Severity
from fedseg.data.datalist import SPLITS, Case, Datalist
from fedseg.data.grid import Grid
from fedseg.data.label_convention import meaning, named_convention, with_convention
from fedseg.data.progress import Progress, silent
from fedseg.data.splits import by_patient, patients_in_two_splits, spelled_alike
from fedseg.errors import DataError
from fedseg.tasks.drawn import drawn_outputs, told_classes
from fedseg.tasks.objective import objective_of
from fedseg.tasks.task import Task

NO_CASES = "no-cases"
FEW_PATIENTS = {"training": 10, "validation": 3}


def check_datalist(
    task: Task, datalist: Datalist, progress: Progress = silent, quick: bool = False, workers: int = 1
) -> CheckReport:
    """Check everything that could make a job fail or its result wrong, in one pass.

    Args:
        task: what the data are checked against.
        datalist: the cases of one site.
        progress: shows how far the check is.
        quick: files and headers only, no voxel (seconds instead of minutes): existence, shapes, affines, channels.
        workers: cases looked at side by side; each holds one image in memory.

    Raises:
        DataError: the datalist states a label convention that the task does not have.
    """
    every = [case for split in SPLITS for case in datalist.split(split)]
    task = with_convention(task, datalist.convention or named_convention(task, every))
    places = [(split, case) for split in SPLITS for case in datalist.split(split)]
    running = _inspect(task, places, quick, workers)
    facts = list(progress(running, "Checking cases", len(places)))
    findings = [
        *_about_list(task, datalist),
        *(finding for case_facts in facts for finding in case_facts.findings),
        *_missing_channels(task, datalist),
        *_drawn_names(task, datalist),
        *_two_splits(datalist),
        *_alike_patients(datalist),
        *_shared_labels(places),
        *_duplicates(facts),
        *_mixed_labels(task, facts),
        *_absent_classes(task, facts),
        *_undrawn_labels(facts),
        *_mixed_orientations(facts),
    ]
    grids = tuple(f.grid for f in facts if f.grid)
    statistics = _statistics(task, datalist, facts, grids)
    return CheckReport(task.name, datalist.path, len(places), tuple(findings), statistics, grids)


def _inspect(task: Task, places: list[tuple[str, Case]], quick: bool, workers: int) -> Iterator[CaseFacts]:
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        yield from pool.map(lambda place: inspect_case(task, place[1], place[0], quick), places)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupted check must not go on through the cases that wait


def _about_list(task: Task, datalist: Datalist) -> list[Finding]:
    findings = []

    def add(code: str, severity: Severity, message: str, remedy: str, split: str = "") -> None:
        findings.append(Finding(code, severity, message, remedy, str(datalist.path or ""), split))

    if datalist.task not in (None, task.name):
        message = f"The datalist was made for the task {datalist.task}, and is checked for {task.name}."
        add("task-name", "warning", message, "Fine if images and labels fit; else choose the other task.")
    unscored = takes_part_unscored(datalist)
    if unscored:
        message = "No validation case is labelled voxel by voxel, so the site has no scores."
        add("no-scores", "warning", message, "Fine for a job that learns from weak labels; else label some cases.")
    for split, few in FEW_PATIENTS.items():
        patients = len(by_patient(datalist.scorable.split(split)))
        if not patients and not (split == "validation" and unscored):
            add(NO_CASES, "error", f"There is no {split} case.", f"Move some patients to {split}.", split)
        elif 0 < patients < few:
            are, ending = ("is", "") if patients == 1 else ("are", "s")
            message = f"There {are} only {patients} {split} patient{ending}; results from fewer than {few} say little."
            add("few-cases", "warning", message, "Add patients if you have more.", split)
    return findings


def takes_part_unscored(datalist: Datalist) -> bool:
    """Whether a site may train though no validation case of it can be scored: because its labels are weak."""
    weak = bool(datalist.validation) or not datalist.labelled.training
    return bool(datalist.training) and weak and not datalist.scorable.validation


def without_channel(task: Task, datalist: Datalist) -> dict[str, int]:
    """How many cases lack each channel that a case may lack."""
    missing = Counter(i for split in SPLITS for case in datalist.split(split) for i in case.missing)
    return {name: missing[i] for i, name in enumerate(task.channels) if name in task.optional_channels}


def _missing_channels(task: Task, datalist: Datalist) -> list[Finding]:
    cases = sum(len(datalist.split(split)) for split in SPLITS)
    remedy = "Fine if it was not acquired; if the file exists, name it in the place of null."
    return [
        Finding(
            "channel-missing", "warning", f"{count} of {cases} cases lack {name}.", remedy, str(datalist.path or "")
        )
        for name, count in without_channel(task, datalist).items()
        if count
    ]


def _two_splits(datalist: Datalist) -> list[Finding]:
    return [
        Finding(
            "patient-in-two-splits",
            "error",
            f"Patient {patient} has cases in {' and '.join(splits)}, so scores would be too good.",
            "Move all cases of the patient to one split.",
            split=splits[0],
            patient=patient,
        )
        for patient, splits in patients_in_two_splits(datalist).items()
    ]


def _alike_patients(datalist: Datalist) -> list[Finding]:
    """Ids that may be two spellings of one, which would make two patients of one person."""
    return [
        Finding(
            "patient-spelling",
            "warning",
            f"{' and '.join(names)} count as {len(names)} patients.",
            "If they are one person, spell the id alike in all cases.",
            patient=names[0],
        )
        for names in spelled_alike(by_patient(case for split in SPLITS for case in datalist.split(split)))
    ]


def _shared_labels(places: Sequence[tuple[str, Case]]) -> list[Finding]:
    """Label files that are the label of two cases, or an image."""
    owners: dict[str, list[tuple[str, Case]]] = {}
    images = {os.path.realpath(image) for _, case in places for image in case.images}
    for split, case in places:
        if case.label is not None:
            owners.setdefault(os.path.realpath(case.label), []).append((split, case))
    findings = []
    for path, cases in owners.items():
        split, case = cases[0]
        about = {"file": str(case.label), "split": split, "patient": case.patient}
        if path in images:
            found, remedy = (
                "The label file is listed as an image, too.",
                "Name the label and the image that belong here.",
            )
            findings.append(Finding("label-is-image", "error", found, remedy, **about))
        firsts = list({tuple(map(os.path.realpath, c.images)): str(c.images[0]) for _, c in cases}.values())
        if len(firsts) > 1:  # one case that is listed twice is told by its images
            found = f"The file is the label of {len(firsts)} cases: {', '.join(firsts[:3])}."
            findings.append(Finding("label-twice", "error", found, "Give each case its own label.", **about))
    return findings


def _duplicates(facts: Sequence[CaseFacts]) -> list[Finding]:
    """One finding for each set of cases that share images, naming the first file that they share."""
    owners: dict[str, list[tuple[int, str]]] = {}
    for index, case_facts in enumerate(facts):
        listed = [file for file in case_facts.case.images if file in case_facts.contents]
        for file in listed:
            owners.setdefault(case_facts.contents[file], []).append((index, str(file)))
    shared: dict[tuple[int, ...], list[str]] = {}
    for places in owners.values():
        if len(places) > 1:
            shared.setdefault(tuple(index for index, _ in places), [file for _, file in places])
    return [_duplicate(facts, cases, files) for cases, files in shared.items()]


def _duplicate(facts: Sequence[CaseFacts], cases: tuple[int, ...], files: list[str]) -> Finding:
    splits = list(dict.fromkeys(facts[i].split for i in cases))
    where = f" across {' and '.join(splits)}" if len(splits) > 1 else f" in {splits[0]}"
    if len(set(cases)) == 1:
        where, remedy = " in one case", "Put the right file in place of one of them."
    else:
        remedy = "Keep one of the cases, in one split."
    message = f"The same image stands {len(files)} times{where}: {', '.join(files[1:4])} is {files[0]} again."
    return Finding("duplicate-content", "error", message, remedy, files[0], splits[0], facts[cases[0]].case.patient)


def _mixed_labels(task: Task, facts: Sequence[CaseFacts]) -> list[Finding]:
    """One data set follows one convention: what its labels mean must not depend on the file."""
    counts = _count_conventions(facts)
    remedy = "Map the labels of all files to one convention."
    if len(counts) > 1:
        return [Finding("label-mixed", "error", f"The labels follow several conventions: {_listed(counts)}.", remedy)]
    read = [f for f in facts if f.conventions]
    left = [c for c in task.conventions if all(c.name in (f.conventions or ()) for f in read)]
    seen = {left[0].values[name] for f in read for name in f.classes} if left else set()
    if len({meaning(convention, seen) for convention in left}) < 2:
        return []
    message = f"The labels {sorted(seen)} may mean {' or '.join(c.name for c in left)}."
    return [Finding("label-mixed", "error", message, "State label_convention in the datalist.")]


def _absent_classes(task: Task, facts: Sequence[CaseFacts]) -> list[Finding]:
    """Classes of which no label that was read holds a voxel, in a list that has labels of others."""
    found = {name for case in facts for name in case.classes}
    told = {name for case in facts for name in told_classes(task, case.drawn)}
    absent = [name for name in task.classes if name in told - found]
    if not found or not absent:
        return []
    message = f"No label holds {', '.join(absent)}, so nothing can be learned of it here."
    return [Finding("absent-class", "warning", message, "Fine if no patient has it; else look at the label values.")]


def _drawn_names(task: Task, datalist: Datalist) -> list[Finding]:
    """One finding for each list of drawn regions that the task cannot have."""
    several = {case.drawn: split for split in reversed(SPLITS) for case in datalist.split(split)}
    findings = []
    for names, split in several.items():
        try:
            drawn_outputs(objective_of(task), names)
        except DataError as error:
            message, _, remedy = str(error).rstrip(".").rpartition(". ")
            place = str(datalist.path or "")
            findings.append(Finding("drawn-names", "error", f"{message}.", f"{remedy}.", place, split))
    return findings


def _undrawn_labels(facts: Sequence[CaseFacts]) -> list[Finding]:
    """Classes that labels hold, though the datalist says that nobody drew them."""
    counts = Counter(name for f in facts for name in f.undrawn)
    if not counts:
        return []
    message = f"Labels hold classes that are not listed as drawn, and do not count: {_listed(counts)}."
    return [Finding("label-undrawn", "warning", message, "Fine if they are incomplete; else add them to `drawn`.")]


def _mixed_orientations(facts: Sequence[CaseFacts]) -> list[Finding]:
    counts = Counter(f.grid.orientation for f in facts if f.grid)
    if len(counts) < 2:
        return []
    message = f"The images are stored in several orientations: {_listed(counts)}."
    remedy = "They are turned to one orientation for training; look at one image of each to see that left is left."
    return [Finding("orientation", "warning", message, remedy)]


def _count_conventions(facts: Sequence[CaseFacts]) -> Counter[str]:
    """How many label files fit each convention; files that fit several (no telling value occurs) are left out."""
    return Counter(f.conventions[0] for f in facts if f.conventions and len(f.conventions) == 1)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common())


def _statistics(task: Task, datalist: Datalist, facts: Sequence[CaseFacts], grids: Sequence[Grid]) -> dict[str, Any]:
    def span(rows: list[tuple[float, ...]]) -> dict[str, list[float]]:
        columns = list(zip(*rows, strict=True))
        return {"smallest": [min(c) for c in columns], "largest": [max(c) for c in columns]}

    return {
        "cases": {split: len(datalist.split(split)) for split in SPLITS},
        "patients": {split: len(by_patient(datalist.split(split))) for split in SPLITS},
        "shape": span([g.shape for g in grids]),
        "spacing_mm": span([tuple(round(s, 4) for s in g.spacing) for g in grids]),
        "orientations": dict(Counter(g.orientation for g in grids)),
        "label_conventions": dict(_count_conventions(facts)),
        "cases_without_channel": without_channel(task, datalist),
        "cases_with_class": {name: sum(name in f.classes for f in facts) for name in task.classes},
        "cases_drawn": {
            name: sum(f.drawn is None or f.drawn[index] for f in facts)
            for index, name in enumerate(objective_of(task).outputs)
        },
        "cases_supervised": dict(Counter(f.case.supervision.kind for f in facts)),
    }
