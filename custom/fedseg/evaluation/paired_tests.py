"""Whether one way to train is better than another on the same patients: paired tests, and their correction."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from fedseg.errors import ConfigurationError, DataError
from fedseg.evaluation.intervals import FEWEST_SITES, LEVEL, SAMPLES, Interval, bootstrap_mean

MOST_EXACT = 14
"""Patients up to which all sign flips are tried, 2**14 of them; above that they are drawn."""
_KEYS = ["evaluated_at", "patient"]
Key = TypeVar("Key", bound=Hashable)
Compared = dict[str, float | int | None]


@dataclass(frozen=True)
class PairedTest:
    """Two arms of an experiment on the same patients: the first minus the second.

    Attributes:
        difference: mean over patients, in the unit of the values; None without a pair.
        interval: of the difference, by bootstrap over patients; from ``FEWEST_SITES`` sites on over sites, too.
        p: two-sided p-value of the sign-flip permutation test; None without a pair.
        p_wilcoxon: two-sided p-value of Wilcoxon's signed-rank test; None without a pair.
        cases: patients with a value in both arms.
        unpaired: patients with a value in one arm only; they do not count.
    """

    difference: float | None
    interval: Interval
    p: float | None
    p_wilcoxon: float | None
    cases: int
    unpaired: int


def compare_arms(
    table_a: pd.DataFrame, table_b: pd.DataFrame, *, level: float = LEVEL, samples: int = SAMPLES, seed: int = 0
) -> PairedTest:
    """Compare one metric of one region (or one mean) between two arms, paired by patient.

    Values of a patient (several cases, seeds or folds) are averaged first: a patient is one observation, however often
    it was scored.

    Args:
        table_a, table_b: rows of one metric and one region, with the columns ``evaluated_at`` (the site whose patient
            it is), ``patient`` and ``value``; NaN where the convention for empty regions leaves a case out.
        level: of the interval.
        samples: of the bootstrap, and of sign flips that are drawn.
        seed: of both.

    Raises:
        DataError: a column is missing, or a table holds several metrics or regions.
    """
    a, b = (_by_patient(table) for table in (table_a, table_b))
    joined = pd.concat({"a": a, "b": b}, axis=1, join="outer").sort_index()
    paired = joined.dropna()
    differences = (paired["a"] - paired["b"]).to_numpy(float)
    sites = paired.index.get_level_values("evaluated_at").tolist()
    # Each difference is that of a patient of its own.
    groups = sites if len(set(sites)) >= FEWEST_SITES else None
    interval = bootstrap_mean(differences.tolist(), groups, level=level, samples=samples, seed=seed)
    return PairedTest(
        interval.mean,
        interval,
        sign_flip_p(differences, samples=samples, seed=seed) if len(differences) else None,
        wilcoxon_p(differences) if len(differences) else None,
        len(differences),
        len(joined) - len(paired),
    )


def compare_with(tables: Mapping[Key, pd.DataFrame], reference: Key, samples: int = SAMPLES) -> dict[Key, Compared]:
    """Each other arm less one arm, on the same patients, with a correction for how many there are.

    Args:
        tables: of each arm, see ``compare_arms``.
        reference: the one arm.
        samples: see ``compare_arms``.

    Returns:
        Of each other arm ``difference`` with ``low`` and ``high``, ``p`` (sign flips), ``p_wilcoxon``, ``p_holm`` (of
        ``p``, over all of them) and ``patients``.
    """
    found: dict[Key, Compared] = {}
    for arm in (arm for arm in tables if arm != reference):
        found[arm] = told_test(compare_arms(tables[arm], tables[reference], samples=samples))
    adjusted = holm([each["p"] for each in found.values()])
    return {arm: {**told, "p_holm": p} for (arm, told), p in zip(found.items(), adjusted, strict=True)}


def told_test(test: PairedTest) -> Compared:
    """A test as files have it, without a correction: see ``compare_with``."""
    told = {"difference": test.difference, "low": test.interval.low, "high": test.interval.high}
    return {**told, "p": test.p, "p_wilcoxon": test.p_wilcoxon, "patients": test.cases}


def sign_flip_p(differences: np.ndarray, *, samples: int = SAMPLES, seed: int = 0) -> float:
    """Two-sided p-value of the sign-flip permutation test of a mean difference of 0 (Fisher, The Design of Experiments,
    1935, section 21).

    Where the two arms are alike, each difference could as well have the other sign. Up to ``MOST_EXACT`` differences
    all combinations of signs are tried; above that so many are drawn, and the one that was observed counts among them
    (Phipson and Smyth, 2010), so that p is never 0.

    Args:
        differences: shape [N], one for each patient, N at least 1.
        samples: how many combinations are drawn.
        seed: of the draws.
    """
    count = len(differences)
    if count <= MOST_EXACT:
        signs = 1.0 - 2.0 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float(np.mean(_as_extreme(signs @ differences, differences)))
    signs = 1.0 - 2.0 * np.random.default_rng(seed).integers(0, 2, size=(samples, count))
    return float((1 + np.count_nonzero(_as_extreme(signs @ differences, differences))) / (samples + 1))


def least_p(patients: int, tests: int, samples: int = SAMPLES) -> float:
    """The smallest p-value that so many sign-flip tests of so many patients can have once it is corrected (``holm``):
    all differences point one way, and only one other choice of signs, all of them turned, is as extreme."""
    single = 2.0 ** (1 - patients) if patients <= MOST_EXACT else 1 / (samples + 1)
    return min(1.0, tests * single)


def _as_extreme(sums: np.ndarray, differences: np.ndarray) -> np.ndarray:
    """Which sums are at least as far from 0 as that of the differences; equal ones may differ by rounding."""
    slack = 1e-12 * float(np.abs(differences).sum())
    found: np.ndarray = np.abs(sums) >= abs(float(differences.sum())) - slack
    return found


def wilcoxon_p(differences: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test; differences of 0 are left out, and 1 where all are 0."""
    if not np.any(differences):
        return 1.0
    return float(wilcoxon(differences[differences != 0]).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values adjusted for how many tests there are (Holm, 1979): the i-th smallest of m times m - i + 1, never below
    that of a smaller one, 1 at most.

    Args:
        p_values: of the tests; None, of a test without a pair, stays None and does not count.

    Raises:
        ConfigurationError: a p-value is not from 0 to 1.
    """
    for p in p_values:
        if p is not None and not 0 <= p <= 1:
            raise ConfigurationError("p_values", p, "numbers from 0 to 1")
    adjusted: list[float | None] = [None] * len(p_values)
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    least = 0.0
    for rank, (p, place) in enumerate(order):
        least = max(least, min(1.0, p * (len(order) - rank)))
        adjusted[place] = least
    return adjusted


def _by_patient(table: pd.DataFrame) -> pd.Series:
    """The mean value of each patient of each site that has one."""
    if missing := [name for name in (*_KEYS, "value") if name not in table.columns]:
        raise DataError(f"A table of scores lacks the column {missing[0]}.")
    for name in ("metric", "region", "arm"):
        if name in table.columns and table[name].nunique() > 1:
            raise DataError(f"A table of scores holds several values of {name}; take the rows of one.")
    known = table.assign(value=table["value"].astype(float)).dropna(subset=["value"])
    return known.groupby(_KEYS)["value"].mean()
