"""Partition of one data set into simulated sites; a patient is always at one site only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fedseg.data.datalist import Case, same_patient
from fedseg.data.progress import Progress, silent
from fedseg.data.reading import read_label
from fedseg.data.splits import by_patient
from fedseg.errors import DataError, UsageError
from fedseg.files.names import SITE, repeated

Sites = dict[str, tuple[Case, ...]]

SIZE_BINS = 5
MAX_DRAWS = 1000
_WHOLE = re.compile(r"([+-]?\d+)\.0+")
# FeTS 2022 renamed the subjects of BraTS 2021 and kept their numbers.
_SUBJECT = re.compile(r"(?:BraTS20\d\d|FeTS20\d\d)_(\d+)", re.IGNORECASE)


def check_names(names: Sequence[str]) -> None:
    """Refuse names that FLARE or a file system could not take for sites.

    Raises:
        UsageError: a name is malformed, reserved or given twice.
    """
    for name in names:
        if not SITE.fits(name):
            raise UsageError(f"{name!r} cannot name a site: use {SITE.made_of}.")
    if alike := repeated(names):
        raise UsageError(f"Two sites have the same name: {' and '.join(alike)}. Give each its own.")


def partition_by_sizes(cases: Sequence[Case], sizes: Mapping[str, int], seed: int) -> Sites:
    """Give each site as many cases as asked for, drawn at random.

    Args:
        cases: all cases.
        sizes: number of cases per site. A site stays below it where only a patient with more cases is left.
        seed: of the draw.

    Raises:
        UsageError: a size is below 1, or they sum to more than there is.
    """
    if min(sizes.values()) < 1:
        raise UsageError(f"The sizes {list(sizes.values())} must all be at least 1.")
    if sum(sizes.values()) > len(cases):
        raise UsageError(
            f"The sizes {list(sizes.values())} sum to {sum(sizes.values())}, but there are only {len(cases)} cases."
        )
    patients = by_patient(cases)
    waiting = _shuffled(sorted(patients), np.random.default_rng([seed, 1]))
    chosen: dict[str, str] = {}
    for site, size in sizes.items():
        room = size
        for patient in waiting:
            if patient not in chosen and len(patients[patient]) <= room:
                chosen[patient] = site
                room -= len(patients[patient])
    return _gather(cases, chosen, list(sizes))


def partition_equally(cases: Sequence[Case], names: Sequence[str], seed: int) -> Sites:
    """Deal the patients out to the sites in turn, in random order; all patients are dealt."""
    order = _shuffled(sorted(by_patient(cases)), np.random.default_rng([seed, 1]))
    return _gather(cases, {patient: names[i % len(names)] for i, patient in enumerate(order)}, names)


def partition_by_dirichlet(
    cases: Sequence[Case], names: Sequence[str], alpha: float, volumes: Mapping[str, float], seed: int, least: int = 1
) -> Sites:
    """Skew the sites by size of the target: each bin of sizes is spread over the sites by a Dirichlet draw.

    The scheme of Hsu et al., 2019 (arXiv 1909.06335) with quantile bins of the foreground volume in place of classes.

    Args:
        cases: all cases.
        names: of the sites.
        alpha: concentration above 0; small: sites differ much; large: they are alike.
        volumes: foreground volume per patient in mm^3 (any unit: only the order counts).
        seed: of the draw.
        least: patients that every site must get; draws that give fewer are rejected.

    Raises:
        UsageError: alpha is not positive, or no draw in ``MAX_DRAWS`` gives every site enough patients.
    """
    if not (alpha > 0 and np.isfinite(alpha)):
        raise UsageError(f"--dirichlet is {alpha}, but must be a number above 0.")
    ordered = sorted(volumes, key=lambda patient: (volumes[patient], patient))
    bins = np.array_split(np.array(ordered, object), min(SIZE_BINS, len(ordered)))
    generator = np.random.default_rng([seed, 1])
    for _ in range(MAX_DRAWS if len(ordered) >= least * len(names) else 0):
        chosen = _draw([list(b) for b in bins], names, alpha, generator)
        counts = [sum(site == name for site in chosen.values()) for name in names]
        if min(counts) >= least:
            return _gather(cases, chosen, names)
    raise UsageError(
        f"{len(ordered)} patients cannot be spread over {len(names)} sites with --dirichlet {alpha:g} so that each "
        f"gets at least {least}. Choose a larger value, fewer sites, or more patients."
    )


def _draw(bins: list[list[str]], names: Sequence[str], alpha: float, generator: np.random.Generator) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for patients in bins:
        share = generator.dirichlet(np.full(len(names), alpha))
        ends = np.round(np.cumsum(share) * len(patients)).astype(int)
        sites = np.searchsorted(ends, np.arange(len(patients)), side="right").clip(max=len(names) - 1)
        chosen.update((p, names[s]) for p, s in zip(_shuffled(patients, generator), sites, strict=True))
    return chosen


def draw_sites(
    cases: Sequence[Case],
    names: Sequence[str],
    sizes: Sequence[int] | None,
    alpha: float | None,
    seed: int,
    least: int,
    progress: Progress = silent,
) -> Sites:
    """Spread cases over sites: by sizes, skewed by the size of the target, or equally.

    Args:
        cases: all cases.
        names: of the sites.
        sizes: of the sites, in their order; None where the number of cases is not given.
        alpha: see ``partition_by_dirichlet``; None spreads equally.
        seed, least: see there.
        progress: shows how far the measuring of labels is.

    Raises:
        UsageError: as of the functions that draw.
        DataError: a label that is to be measured cannot be read.
    """
    if sizes:
        return partition_by_sizes(cases, dict(zip(names, sizes, strict=True)), seed)
    if alpha is None:
        return partition_equally(cases, names, seed)
    volumes = dict.fromkeys(by_patient(cases), 0.0)
    for case in progress(cases, "Measuring labels", len(cases)):
        volumes[case.patient] = max(volumes[case.patient], foreground_volume(case))
    return partition_by_dirichlet(cases, names, alpha, volumes, seed, least)


def partition_by_csv(cases: Sequence[Case], table: Path) -> tuple[Sites, int]:
    """Take the sites from a table with the columns ``Partition_ID`` and ``Subject_ID``, as FeTS 2022 publishes them.

    A subject is a patient of the same name, or of the same number between FeTS 2022 and BraTS 2021 names.

    Returns:
        ``site-<Partition_ID>`` -> cases, in the order of the ids; and how many subjects of the table have no images.

    Raises:
        DataError: the table cannot be read, lacks a column, puts a subject twice, or names no patient of ``cases``.
    """
    try:
        rows = pd.read_csv(table, dtype=str).rename(columns=str.strip)
    except (OSError, ValueError) as error:
        raise DataError(f"{table} cannot be read as a table: {error}.") from None
    missing = {"Partition_ID", "Subject_ID"} - set(rows.columns)
    if missing:
        raise DataError(f"{table} lacks the column {' and '.join(sorted(missing))}; it has {list(rows.columns)}.")
    rows = rows[["Partition_ID", "Subject_ID"]].dropna().map(_plain)
    keys = rows["Subject_ID"].map(_subject_key)
    if keys.duplicated().any():
        raise DataError(
            f"{table} puts the subject {rows['Subject_ID'][keys.duplicated()].iloc[0]} twice. Keep one row."
        )
    site_of = dict(zip(keys, "site-" + rows["Partition_ID"], strict=True))
    chosen = {p: site_of[_subject_key(p)] for p in by_patient(cases) if _subject_key(p) in site_of}
    if not chosen:
        raise DataError(f"{table} names none of the {len(by_patient(cases))} patients found, e.g. {cases[0].patient}.")
    return _gather(cases, chosen, sorted(set(chosen.values()), key=_natural)), len(keys) - len(chosen)


def foreground_volume(case: Case) -> float:
    """Volume in mm^3 of all that is labelled in a case.

    Raises:
        DataError: there is no label, or it cannot be read.
    """
    if case.label is None:
        raise DataError(f"{case.images[0]} has no label, so its volume is unknown.")
    label, grid = read_label(case.label)
    return np.count_nonzero(label) * float(np.prod(grid.spacing))


def _plain(cell: str) -> str:
    """A cell without outer spaces; programs for tables write whole numbers as ``1.0``."""
    text = same_patient(cell)
    match = _WHOLE.fullmatch(text)
    return match[1] if match else text


def _subject_key(subject: str) -> str:
    match = _SUBJECT.fullmatch(subject)
    return f"subject {int(match[1])}" if match else subject


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _shuffled(items: Sequence[str], generator: np.random.Generator) -> list[str]:
    return [items[i] for i in generator.permutation(len(items))]


def _gather(cases: Sequence[Case], chosen: Mapping[str, str], names: Sequence[str]) -> Sites:
    return {name: tuple(case for case in cases if chosen.get(case.patient) == name) for name in names}
