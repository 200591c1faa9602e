"""Splitting cases into training, validation and test by patient, so that no patient is on two sides."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fedseg.data.datalist import SPLITS, Case, Datalist
from fedseg.errors import DataError, UsageError


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Refuse fractions that leave nothing to train on.

    Raises:
        UsageError: a fraction is outside [0, 1), or their sum reaches 1.
    """
    for name, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise UsageError(f"--{name}-fraction is {fraction}, but must be at least 0 and below 1.")
    total = sum(fractions.values())
    if total >= 1:
        raise UsageError(f"The fractions of {' and '.join(fractions)} sum to {total:g}, which leaves no training case.")


def check_seed(seed: int) -> None:
    """Refuse a seed that a generator cannot take.

    Raises:
        UsageError: it is negative.
    """
    if seed < 0:
        raise UsageError(f"--seed is {seed}, but must be 0 or above.")


def by_patient(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """The cases of each patient, patients in the order of their first case."""
    patients: dict[str, list[Case]] = {}
    for case in cases:
        patients.setdefault(case.patient, []).append(case)
    return patients


def patients_needed(fractions: Mapping[str, float]) -> int:
    """The smallest number of patients from which every split that is asked for gets one."""
    return 1 + sum(fraction > 0 for fraction in fractions.values())


def split_by_patient(
    cases: Sequence[Case], fractions: Mapping[str, float], seed: int | Sequence[int]
) -> dict[str, tuple[Case, ...]]:
    """Split cases at random; all cases of a patient go to the same side.

    Args:
        cases: what is split; each split keeps their order.
        fractions: share of the patients for ``validation`` and ``test``, each in [0, 1); the rest trains. A share
            above 0 gets at least one patient.
        seed: the same seed gives the same split, whatever the order in which the files were found.

    Returns:
        ``training``, ``validation`` and ``test``.

    Raises:
        UsageError: the fractions leave nothing to train on.
        DataError: there are fewer patients than splits.
    """
    check_fractions(fractions)
    patients = sorted(by_patient(cases))
    asked = {name: fraction for name, fraction in fractions.items() if fraction > 0}
    if len(patients) < patients_needed(fractions):
        raise DataError(
            f"{len(patients)} patient(s) cannot be split into training, {', '.join(asked) or 'nothing else'}: "
            f"at least {patients_needed(fractions)} are needed. Add patients or ask for fewer splits."
        )
    order = [patients[i] for i in np.random.default_rng(seed).permutation(len(patients))]
    counts = {name: max(1, round(fraction * len(patients))) for name, fraction in asked.items()}
    while sum(counts.values()) >= len(patients):  # rounding up small shares must not eat the training set
        counts[max(counts, key=lambda name: counts[name])] -= 1
    side: dict[str, str] = {}
    for name, count in counts.items():
        side.update(dict.fromkeys(order[len(side) : len(side) + count], name))
    return {name: tuple(c for c in cases if side.get(c.patient, "training") == name) for name in SPLITS}


def spelled_alike(patients: Iterable[str]) -> list[list[str]]:
    """Patients whose ids differ in letter case, in spaces, hyphens and underscores, or in a ``.0`` at the end only."""
    alike: dict[str, list[str]] = {}
    for patient in patients:
        key = re.sub(r"[\s_-]+", "-", patient.casefold()).removesuffix(".0")
        alike.setdefault(key, []).append(patient)
    return [names for names in alike.values() if len(names) > 1]


def patients_in_two_splits(datalist: Datalist) -> dict[str, list[str]]:
    """Patients with cases in more than one split, each with these splits."""
    seen: dict[str, list[str]] = {}
    for split in SPLITS:
        for patient in by_patient(datalist.split(split)):
            seen.setdefault(patient, []).append(split)
    return {patient: splits for patient, splits in seen.items() if len(splits) > 1}


def require_files(cases: Iterable[Case]) -> None:
    """Refuse cases whose files do not exist.

    Raises:
        DataError: names the first missing file and says how many there are.
    """
    files = [file for case in cases for file in case.files]
    missing = [file for file in files if not os.path.isfile(file)]
    if missing:
        count = f"{len(missing)} of {len(files)} files do not exist"
        raise DataError(f"{count}, first {missing[0]}. Complete the copy, or drop the cases.")
