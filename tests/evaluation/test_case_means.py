"""Counts, means and intervals of the scores of cases, by hand and against the bootstrap itself."""

from __future__ import annotations

import statistics

import pandas as pd
import pytest

from fedseg.evaluation.case_means import COLUMNS, describe_cases, interval, wide_interval
from fedseg.evaluation.intervals import bootstrap_mean
from fedseg.tasks.objective import Score

DICE = Score("dice", "Dice", highest=1.0)
LINES = [
    ("a", "p", "1", 0.8), ("a", "p", "2", 0.6), ("a", "q", "3", 0.1), ("b", "p", "4", 0.9), ("b", "r", "5", 0.5),
    ("c", "p", "6", 0.3),
]  # fmt: skip


def table(lines):
    return pd.DataFrame(lines, columns=list(COLUMNS))


def test_means_and_counts_by_hand():
    found = describe_cases(table(LINES), DICE)
    assert (found["sites"], found["cases"], found["patients"]) == (3, 6, 5), "p of two sites is two people"
    assert found["pooled"] == pytest.approx(3.2 / 6)
    assert found["macro"] == pytest.approx((0.5 + 0.7 + 0.3) / 3)
    assert (found["worst_site"], found["worst"]) == ("c", 0.3)
    assert found["spread"] == pytest.approx(statistics.pstdev([0.5, 0.7, 0.3]))


def test_the_interval_is_of_patients():
    values, patients = [line[3] for line in LINES], ["ap", "ap", "aq", "bp", "br", "cp"]
    expected, found = bootstrap_mean(values, patients=patients, samples=500), interval(table(LINES), samples=500)
    assert found == expected
    told = describe_cases(table(LINES), DICE, samples=500)
    assert (told["low"], told["high"]) == (expected.low, expected.high)


def test_other_sites_are_counted_in_from_four_on():
    assert wide_interval(table(LINES), "cases") == (None, None)
    lines = [*LINES, ("d", "p", "7", 0.2)]
    sites, patients, values = ([line[place] for line in lines] for place in (0, 1, 3))
    for over in ("cases", "groups"):
        expected = bootstrap_mean(values, sites, patients=patients, over=over)
        assert wide_interval(table(lines), over) == (expected.low, expected.high)
