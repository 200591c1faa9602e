"""Paired tests against scipy, enumerated ranks and values worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedseg.errors import ConfigurationError, DataError
from fedseg.evaluation.intervals import Interval, bootstrap_mean
from fedseg.evaluation.paired_tests import (
    MOST_EXACT,
    compare_arms,
    compare_with,
    holm,
    least_p,
    sign_flip_p,
    wilcoxon_p,
)


def table(values: dict[tuple[str, str], object], **further: object) -> pd.DataFrame:
    rows = [{"evaluated_at": site, "patient": patient, "value": value} for (site, patient), value in values.items()]
    return pd.DataFrame(rows, columns=["evaluated_at", "patient", "value"]).assign(**further)


def test_sign_flips_by_hand() -> None:
    """Of eight ways to give 1, 2 and 3 signs, two have a sum as far from 0 as 6 has, and four one as far as 4."""
    assert sign_flip_p(np.array([1.0, 2.0, 3.0])) == 2 / 8
    assert sign_flip_p(np.array([-1.0, 2.0, 3.0])) == 4 / 8
    assert sign_flip_p(np.array([0.0, 0.0])) == 1.0


@pytest.mark.parametrize("count", [5, 9, 12])
def test_exact_sign_flips_are_those_of_scipy(count: int) -> None:
    differences = np.random.default_rng(count).normal(0.4, 1.0, count)
    zeros = np.zeros(count)
    theirs = stats.permutation_test(
        (differences, zeros), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p(differences) == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("count", [1, 2, 5, 7, 8, MOST_EXACT])
def test_no_p_value_is_below_the_least_one(count: int) -> None:
    """Differences of one direction have it: they are the most extreme choice of signs."""
    p = sign_flip_p(np.arange(1.0, count + 1))
    assert least_p(count, 1) == p
    assert least_p(count, 6) == min(1.0, 6 * p) == holm([p] * 6)[0]


def test_many_patients_have_the_least_p_value_that_draws_allow() -> None:
    differences = np.arange(1.0, 41.0)
    assert least_p(40, 1, samples=999) == sign_flip_p(differences, samples=999) == 1 / 1000


def test_drawn_sign_flips_are_near_the_exact_ones() -> None:
    differences = np.random.default_rng(1).normal(0.5, 1.0, MOST_EXACT + 2)
    signs = np.array(list(itertools.product([1, -1], repeat=MOST_EXACT + 2)))
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9)
    assert sign_flip_p(differences, samples=40_000) == pytest.approx(exact, abs=0.006)
    assert sign_flip_p(np.ones(40), samples=99) == 1 / 100, "never 0"


def test_p_values_are_uniform_without_a_difference() -> None:
    generator = np.random.default_rng(2)
    found = [sign_flip_p(generator.normal(size=10)) for _ in range(400)]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(np.array(found) <= 0.5) == pytest.approx(0.5, abs=0.08)


def test_signed_ranks_are_all_ways_to_sign_the_ranks() -> None:
    differences = np.array([0.3, -0.1, 0.7, 0.4, -0.2, 0.9, 0.5])
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    observed = abs(int((np.sign(differences) * ranks).sum()))
    sums = [
        abs(sum(s * r for s, r in zip(signs, ranks, strict=True))) for signs in itertools.product([1, -1], repeat=7)
    ]
    assert wilcoxon_p(differences) == pytest.approx(np.mean([each >= observed for each in sums]))
    assert wilcoxon_p(np.append(differences, 0.0)) == wilcoxon_p(differences)
    assert wilcoxon_p(np.zeros(3)) == 1.0


def test_arms_are_compared_patient_by_patient() -> None:
    a = {("s", "p1"): 0.9, ("s", "p2"): 0.8, ("t", "p1"): 0.7, ("t", "p3"): 0.6}
    b = {("t", "p1"): 0.4, ("s", "p1"): 0.8, ("s", "p2"): 0.75, ("t", "p4"): 0.1}
    found = compare_arms(table(a), table(b))
    differences = [0.1, 0.05, 0.3]
    assert found.difference == pytest.approx(0.15)
    assert (found.cases, found.unpaired) == (3, 2)
    assert found.p == 2 / 8
    expected = bootstrap_mean(differences)
    assert found.interval.low == pytest.approx(expected.low)
    assert found.interval.high == pytest.approx(expected.high)
    assert compare_arms(table(b), table(a)).difference == pytest.approx(-0.15)


def test_all_arms_beside_one_are_corrected_together() -> None:
    keys = [("s", f"p{i}") for i in range(6)]
    zero = table(dict.fromkeys(keys, 0.0))
    better = table({key: 0.1 + 0.01 * i for i, key in enumerate(keys)})
    mixed = table({key: 0.1 * (-1) ** i for i, key in enumerate(keys)})
    found = compare_with({"better": better, "zero": zero, "mixed": mixed}, "zero")
    assert list(found) == ["better", "mixed"]
    assert (found["better"]["p"], found["better"]["p_holm"]) == (2 / 64, 4 / 64), "twice of the smaller of two"
    assert found["better"]["difference"] == pytest.approx(0.125)
    alone = compare_arms(mixed, zero)
    assert [found["mixed"][name] for name in ("p", "low", "high")] == [alone.p, alone.interval.low, alone.interval.high]
    assert compare_with({"zero": zero}, "zero") == {}


@pytest.mark.parametrize("sites", [2, 3, 4, 5])
def test_sites_are_drawn_from_four_on(sites: int) -> None:
    """With fewer an interval of other sites says nothing, so that it is of other patients alone."""
    keys = [(f"s{i}", f"p{j}") for i in range(sites) for j in range(3)]
    values = [0.1 * i + 0.01 * j for i in range(sites) for j in range(3)]
    found = compare_arms(table(dict(zip(keys, values, strict=True))), table(dict.fromkeys(keys, 0.0)))
    expected = bootstrap_mean(values, [site for site, _ in keys] if sites >= 4 else None)
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high))
    assert found.interval.groups == (sites if sites >= 4 else 1)


def test_a_patient_counts_once_however_often_it_was_scored() -> None:
    a = pd.concat([table({("s", "p1"): v, ("s", "p2"): v + 0.1}) for v in (0.4, 0.5, 0.6)])
    b = table({("s", "p1"): 0.3, ("s", "p2"): 0.3})
    found = compare_arms(a, b)
    assert (found.cases, found.difference) == (2, pytest.approx(0.25))


def test_cases_left_out_do_not_count() -> None:
    a = table({("s", "p1"): 0.5, ("s", "p2"): math.nan, ("s", "p3"): None})
    b = table({("s", "p1"): 0.4, ("s", "p2"): 0.2, ("s", "p3"): math.nan})
    found = compare_arms(a, b)
    assert (found.cases, found.unpaired, found.p) == (1, 1, 1.0)
    assert (found.interval.low, found.interval.high) == (None, None)


def test_without_a_pair_there_is_no_p() -> None:
    found = compare_arms(table({}), table({("s", "p1"): 0.5}))
    assert (found.difference, found.p, found.p_wilcoxon, found.cases, found.unpaired) == (None, None, None, 0, 1)
    assert found.interval == Interval(None, None, None, 0, 0, 0)


def test_equal_arms_do_not_differ() -> None:
    a = table({("s", f"p{i}"): 0.1 * i for i in range(30)})
    found = compare_arms(a, a)
    assert (found.difference, found.p, found.p_wilcoxon) == (0.0, 1.0, 1.0)


def test_tables_of_several_metrics_are_refused() -> None:
    a = table({("s", "p1"): 0.5, ("s", "p2"): 0.5})
    with pytest.raises(DataError, match="several values of metric"):
        compare_arms(a.assign(metric=["dice", "hd95"]), a)
    with pytest.raises(DataError, match="lacks the column patient"):
        compare_arms(a, a.drop(columns="patient"))


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.6, 0.5], [1.0, 1.0]),
        ([0.02, None, 0.03], [0.04, None, 0.04]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values: list[float | None], adjusted: list[float | None]) -> None:
    assert holm(p_values) == [None if p is None else pytest.approx(p) for p in adjusted]


def test_holm_refuses_what_is_no_probability() -> None:
    with pytest.raises(ConfigurationError, match="p_values"):
        holm([0.1, 1.2])
