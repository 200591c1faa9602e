"""Merged moments equal those of all values together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.statistics.moments import Moments

part = st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=12)


@given(st.lists(part, min_size=1, max_size=6))
def test_cases_weigh_the_same_however_many_values_they_have(parts):
    total = Moments()
    for values in parts:
        total = total.merge(Moments.of(np.array(values)))
    weights = np.concatenate([np.full(len(values), 1 / len(values)) for values in parts])
    every = np.concatenate(parts)
    mean = np.average(every, weights=weights)
    assert total.weight == len(parts)
    assert total.mean == pytest.approx(mean, abs=1e-8)
    assert total.deviation**2 == pytest.approx(np.average((every - mean) ** 2, weights=weights), rel=1e-9, abs=1e-6)


@given(st.lists(part, min_size=3, max_size=3))
def test_merging_knows_no_order_and_no_grouping(parts):
    a, b, c = (Moments.of(np.array(values)) for values in parts)
    for one, other in ((a.merge(b), b.merge(a)), (a.merge(b).merge(c), a.merge(b.merge(c)))):
        assert (one.weight, one.mean) == (other.weight, pytest.approx(other.mean, abs=1e-8))
        assert one.m2 == pytest.approx(other.m2, rel=1e-9, abs=1e-6)


def test_far_from_zero_nothing_is_lost():
    values = np.array([1e9 + 1, 1e9 + 2, 1e9 + 3])
    merged = Moments()
    for value in values:
        merged = merged.merge(Moments.of(np.array([value])))
    assert merged.deviation == pytest.approx(np.std([1, 2, 3]))


def test_nothing_merges_to_nothing():
    assert Moments().merge(Moments()) == Moments()
    assert Moments().deviation == 0
