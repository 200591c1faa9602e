"""Simulated sites on disk: one folder with a datalist for each, as ``fedseg simulate --data`` takes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedseg.data.datalist import FILE_NAME, SPLITS, Case, Datalist, read_datalist, write_datalist
from fedseg.data.label_noise import NOTE, LabelNoise, check_sites
from fedseg.data.partition import Sites, check_names
from fedseg.data.progress import Progress, silent
from fedseg.data.scanner_shift import draw_shift, shift_case
from fedseg.data.shared_cases import add_shared, draw_shared
from fedseg.data.simulated_labels import simulate_labels
from fedseg.data.splits import by_patient, patients_needed, split_by_patient
from fedseg.data.undrawn_labels import PartialLabels
from fedseg.data.weak_labels import WeakLabels
from fedseg.errors import DataError, UsageError
from fedseg.files.folders import new_folder
from fedseg.tasks.task import Task


def write_sites(
    sites: Sites,
    out: Path,
    task: Task,
    fractions: Mapping[str, float],
    seed: int,
    scanner_shift: float = 0.0,
    notes: Mapping[str, Any] | None = None,
    shared: float = 0.0,
    progress: Progress = silent,
    convention: str | None = None,
    partial: PartialLabels | None = None,
    label_noise: Mapping[str, LabelNoise] | None = None,
    weak: WeakLabels | None = None,
) -> dict[str, Datalist]:
    """Split each site's cases by patient and write ``out/<site>/datalist.json``; all of it or nothing.

    Args:
        sites: name -> cases.
        out: a folder that does not exist yet, or is empty.
        task: what the cases are for.
        fractions: share of each site's patients for ``validation`` (above 0) and ``test``.
        seed: of the splits and of the simulated scanners.
        scanner_shift: strength from 0 (images are used where they lie) to 1 of a simulated scanner per site.
        notes: what the datalists should say besides.
        shared: fraction of all training cases that every site trains on, see ``draw_shared``; each datalist then
            notes under ``shared_cases`` what the site gave and received.
        progress: shows how far simulated scanners are.
        convention: the label convention of all cases, where the task has several.
        partial: which regions stay drawn, and where; None: all.
        label_noise: by site, how its simulated annotator draws; at other sites labels are used where they lie.
        weak: what cases have in the place of masks, and where; None: all have masks.

    Raises:
        UsageError: ``out`` is not empty, or a value is not allowed.
        DataError: a site has too few patients for its splits, or an image cannot be read.
    """
    check_names(list(sites))
    noise = label_noise or {}
    check_sites(noise, list(sites))
    _check_counts(sites, fractions)
    shifts = {site: draw_shift(scanner_shift, seed, site, task.modality) for site in sites}
    datalists = {}
    for index, (site, cases) in enumerate(sites.items()):
        parts = split_by_patient(cases, fractions, [seed, 2, index])
        more: dict[str, Any] = {"simulated_scanner_shift": shifts[site].to_dict()} if scanner_shift else {}
        more |= {NOTE: noise[site].to_dict()} if site in noise else {}
        lists = (parts["training"], parts["validation"], parts["test"])
        datalists[site] = Datalist(*lists, None, task.name, convention, {**(notes or {}), **more})
    given = draw_shared({site: datalist.training for site, datalist in datalists.items()}, shared, seed)
    with new_folder(out) as folder:
        written = simulate_labels(datalists, task, folder, seed, noise, partial, weak)
        if scanner_shift:
            written = {s: _shifted(datalist, folder / s, shifts[s], seed, progress) for s, datalist in written.items()}
        if shared:
            # A shared image keeps its hospital's scanner, and lies in its hospital's folder.
            written = add_shared(written, given, shared, lambda case: _moved(case, folder, out))
            datalists = add_shared(datalists, given, shared)
        for site, datalist in written.items():
            write_datalist(datalist, folder / site / FILE_NAME)
    return datalists


def _check_counts(sites: Sites, fractions: Mapping[str, float]) -> None:
    """Refuse sites that could not train and validate."""
    if not fractions.get("validation", 0) > 0:
        raise UsageError("--validation-fraction must be above 0: every site needs a validation case.")
    needed = patients_needed(fractions)
    counts = {site: len(by_patient(cases)) for site, cases in sites.items()}
    if too_small := [f"{site} ({count})" for site, count in counts.items() if count < needed]:
        raise DataError(
            f"Too few patients to train and validate at {', '.join(too_small)}: {needed} are needed at each site. "
            "Choose fewer or other sites with --sites or --names."
        )


def _moved(case: Case, folder: Path, out: Path) -> Case:
    """The case once ``folder`` is called ``out``."""
    final = Path(os.path.abspath(out))

    def moved(path: Path) -> Path:
        return final / path.relative_to(folder) if path.is_relative_to(folder) else path

    return replace(case, images=tuple(map(moved, case.images)), label=case.label and moved(case.label))


def _shifted(datalist: Datalist, folder: Path, shift: Any, seed: int, progress: Progress) -> Datalist:
    total = sum(len(datalist.split(s)) for s in SPLITS)
    cases = (case for split in SPLITS for case in datalist.split(split))
    done: dict[Case, Case] = {}
    for case in progress(cases, f"Simulating the scanner of {folder.name}", total):
        done[case] = shift_case(case, folder / "images", shift, seed)
    parts = {split: tuple(done[case] for case in datalist.split(split)) for split in SPLITS}
    return replace(datalist, training=parts["training"], validation=parts["validation"], test=parts["test"])


def find_sites(data: Path) -> list[str]:
    """Names of the simulated sites: the folders of ``data`` that hold a datalist.

    Raises:
        UsageError: there is none, a folder's name is none for a site, or a folder lacks its datalist: a site that is
            left out in silence would change every result. Folders whose names begin with a dot are no sites.
    """
    if not data.is_dir():
        raise UsageError(f"--data {data} is not a folder. Make one with `fedseg phantom` or `fedseg partition`.")
    sites = sorted(path.name for path in data.iterdir() if (path / FILE_NAME).is_file())
    if not sites:
        raise UsageError(f"--data {data} holds no <site>/{FILE_NAME}. `fedseg phantom` and `partition` make them.")
    check_names(sites)
    others = sorted(
        path.name for path in data.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in sites
    )
    if others:
        raise UsageError(
            f"{data / others[0]} has no {FILE_NAME}, but others here have one. If it is a site, give it one; if it "
            f"is none, move it out of {data}."
        )
    for site in sites:
        read_datalist(data / site)
    return sites
