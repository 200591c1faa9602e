"""Confidence intervals of means over cases, by bootstrap over patients, clustered by site where there are several."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from fedseg import allowed
from fedseg.errors import ConfigurationError

LEVEL = 0.95
SAMPLES = 10_000
FEWEST_SITES = 4
"""With fewer sites an interval that draws sites anew says nothing."""
_MOST_NUMBERS = 4_000_000  # drawn at a time: 32 MB
Over = Literal["cases", "groups"]


@dataclass(frozen=True)
class Interval:
    """A mean over cases and its confidence interval.

    Attributes:
        mean: of the values; None where there is none.
        low, high: bounds of the interval, in the unit of the values; None where fewer than two patients have a value.
        cases: values that count.
        groups: groups (sites) that have a value; 1 where no groups were given, 0 where there is no value.
        patients: patients that have a value.
    """

    mean: float | None
    low: float | None
    high: float | None
    cases: int
    groups: int
    patients: int

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class _Group:
    """Of each patient of a group the sum of the values (less the mean of all), and how many they are."""

    sums: np.ndarray
    counts: np.ndarray


def bootstrap_mean(
    values: Sequence[float | None],
    groups: Sequence[Hashable] | None = None,
    *,
    patients: Sequence[Hashable] | None = None,
    over: Over = "cases",
    level: float = LEVEL,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of values and its percentile bootstrap interval (Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, section 13.3).

    Patients are drawn with replacement, as many as there are; all values of a patient (both sides, several seeds) move
    together. With groups, sites are drawn first and then patients within each drawn site (Davison and Hinkley,
    Bootstrap Methods and their Application, 1997, section 3.8), so that the interval is about other sites, too. A
    percentile interval is somewhat narrow where patients are few: 95% means about 91% with 15 patients, 83% with 5, and
    less with few sites, which show little of how sites differ.

    - No value: everything is None.
    - One patient in all: the mean without bounds.
    - One site: the interval of its patients; it says nothing of other sites.
    - All values equal: both bounds are that value.

    Args:
        values: one for each case; None and NaN, which conventions leave out, do not count.
        groups: the site of each value; None for one site.
        patients: the patient of each value, by any names; patients of two groups are different ones. None: each value
            is of a patient of its own.
        over: mean over ``cases`` (every case counts the same) or over ``groups`` (every site counts the same).
        level: probability that the interval is to have, between 0 and 1.
        samples: how many times is drawn.
        seed: of the draws; equal arguments give equal bounds.

    Raises:
        ConfigurationError: lengths differ, a value is infinite, or an argument is not allowed.
    """
    _check(values, groups, patients, over, level, samples)
    kept = [i for i, value in enumerate(values) if value is not None and not math.isnan(value)]
    numbers = np.array([values[i] for i in kept], float)
    sites = [None if groups is None else groups[i] for i in kept]
    names = [i if patients is None else patients[i] for i in kept]
    members = [[place for place, site in enumerate(sites) if site == group] for group in dict.fromkeys(sites)]
    if not kept:
        return Interval(None, None, None, 0, 0, 0)
    # A mean of equal values is that value, without an error of rounding.
    mean = _mean([_mean(numbers[chosen]) for chosen in members] if over == "groups" else numbers)
    parts = [_sums(numbers[chosen] - mean, [names[i] for i in chosen]) for chosen in members]
    known = sum(len(each.sums) for each in parts)
    if known < 2:
        return Interval(mean, None, None, len(kept), len(parts), known)
    means = np.concatenate(list(_resampled(parts, over, samples, np.random.default_rng(seed))))
    low, high = (mean + float(q) for q in np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))
    return Interval(mean, low, high, len(kept), len(parts), known)


def bootstrap_mean_of_means(
    columns: Sequence[Sequence[float | None]],
    patients: Sequence[Hashable],
    *,
    level: float = LEVEL,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean over columns of each column's mean over cases, and its percentile interval over patients.

    Of each draw of patients the same number is made: a column's mean is over the drawn cases that have a value in it,
    and a column without any is left out. Where every case has a value in every column, this is ``bootstrap_mean`` of
    the cases' means.

    Args:
        columns: of each column (output) one value for each case; None and NaN do not count.
        patients: of the cases.
        level, samples, seed: as of ``bootstrap_mean``.

    Raises:
        ConfigurationError: as of ``bootstrap_mean``.
    """
    for column in columns:
        _check(column, None, patients, "cases", level, samples)
    values = np.array(columns, float).reshape(len(columns), len(patients))
    some = np.isfinite(values).any(axis=0)
    values, names = values[:, some], [name for name, has in zip(patients, some, strict=True) if has]
    known = len(set(names))
    centres = [_mean(column[np.isfinite(column)]) for column in values if np.isfinite(column).any()]
    if not centres:
        return Interval(None, None, None, 0, 0, 0)
    mean = _mean(centres)
    if known < 2:
        return Interval(mean, None, None, len(names), 1, known)
    means = _drawn_means(values[np.isfinite(values).any(axis=1)], names, centres, samples, np.random.default_rng(seed))
    low, high = (float(q) for q in np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))
    return Interval(mean, low, high, len(names), 1, known)


def _drawn_means(
    values: np.ndarray,
    patients: Sequence[Hashable],
    centres: Sequence[float],
    samples: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Of each draw of patients the mean over columns [K] of the means over cases [K, N] of these patients."""
    places = {patient: place for place, patient in enumerate(dict.fromkeys(patients))}
    index = [places[patient] for patient in patients]
    there = np.isfinite(values)
    parts = np.where(there, values - np.array(centres)[:, None], 0.0)
    sums, counts = (
        np.stack([np.bincount(index, row) for row in rows], axis=1) for rows in (parts, there.astype(float))
    )
    found, block = [], max(1, _MOST_NUMBERS // sums.size)
    for start in range(0, samples, block):
        drawn = generator.integers(len(places), size=(min(block, samples - start), len(places)))
        total, count = sums[drawn].sum(axis=1), counts[drawn].sum(axis=1)
        means = np.where(count > 0, np.array(centres) + total / np.maximum(count, 1), np.nan)
        found.append(np.nanmean(means, axis=1))
    return np.concatenate(found)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """The mean, exact where all values are equal."""
    first = float(values[0])
    return first + math.fsum(float(value) - first for value in values) / len(values)


def _sums(values: np.ndarray, patients: Sequence[Hashable]) -> _Group:
    places = {patient: place for place, patient in enumerate(dict.fromkeys(patients))}
    index = [places[patient] for patient in patients]
    return _Group(np.bincount(index, weights=values), np.bincount(index).astype(float))


def _resampled(
    parts: Sequence[_Group], over: Over, samples: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Means of drawn patients of drawn groups, in blocks that fit into memory."""
    sizes = [len(part.sums) for part in parts]
    block = max(1, _MOST_NUMBERS // (len(parts) * max(sizes)))
    for start in range(0, samples, block):
        count = min(block, samples - start)
        shape = (count, len(parts))
        drawn = generator.integers(len(parts), size=shape) if len(parts) > 1 else np.zeros(shape, int)
        sums, counts = np.empty(shape), np.empty(shape)
        for number, part in enumerate(parts):
            here = drawn == number
            patients = generator.integers(sizes[number], size=(np.count_nonzero(here), sizes[number]))
            sums[here], counts[here] = (of_patients[patients].sum(axis=1) for of_patients in (part.sums, part.counts))
        yield (sums / counts).mean(axis=1) if over == "groups" else sums.sum(axis=1) / counts.sum(axis=1)


def _check(
    values: Sequence[float | None],
    groups: Sequence[Hashable] | None,
    patients: Sequence[Hashable] | None,
    over: str,
    level: float,
    samples: int,
) -> None:
    for name, given in (("groups", groups), ("patients", patients)):
        if given is not None and len(given) != len(values):
            raise ConfigurationError(name, len(given), f"as many as there are values, {len(values)}")
    for value in values:
        if value is not None and math.isinf(value):
            raise ConfigurationError("values", value, "finite numbers, or None where a case is left out")
    allowed.one_of("over", over, ("cases", "groups"))
    allowed.number("level", level, above=0, below=1)
    allowed.whole("samples", samples)
