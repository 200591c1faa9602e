"""What leaves has enough patients behind it, whatever was counted."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.statistics.scales import Linear
from fedseg.statistics.tally import OTHER, BinTally, NameTally

SCALE = Linear(1, 0, 20)
NAMES = ("a", "b", "c", "d")
counted = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 20)), max_size=30)


@given(counted, st.integers(1, 5))
def test_behind_every_group_of_bins_are_enough_patients(cases, minimum):
    tally = BinTally(SCALE)
    for patient, value in cases:
        tally.count(np.array([value]), str(patient))
    found = tally.histogram(minimum)
    for first, last in found.bins:
        assert len({patient for patient, value in cases if first <= value <= last}) >= minimum
    enough = len({patient for patient, _ in cases}) >= minimum
    assert found.weight == pytest.approx(len(cases) if enough else 0)
    groups = sorted(found.bins)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(groups))


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from(NAMES)), max_size=30), st.integers(1, 5))
def test_behind_every_category_are_enough_patients(cases, minimum):
    tally = NameTally(NAMES)
    for patient, name in cases:
        tally.count({name: 1.0}, str(patient))
    found = tally.released(minimum)
    shown = [name for name in found if name != OTHER]
    for name in shown:
        assert len({patient for patient, other in cases if other == name}) >= minimum
    rest = {patient for patient, other in cases if other not in shown}
    assert (OTHER in found) == (len(rest) >= minimum)
    # What is missing to the number of cases is never of fewer patients than the minimum.
    assert OTHER in found or not rest or not shown


def test_one_rare_category_takes_the_smallest_one_with_it():
    tally = NameTally(NAMES)
    for patient, name in enumerate(["a"] * 9 + ["b"] * 5 + ["c"]):
        tally.count({name: 1.0}, str(patient))
    assert tally.released(5) == {"a": 9.0, OTHER: 6.0}
    assert tally.released(16) == {}


def test_many_cases_of_one_patient_are_one_patient():
    tally = BinTally(SCALE)
    for value in (3, 3, 3, 4):
        tally.count(np.array([value]), "p")
    assert tally.histogram(2).bins == {}
    assert tally.histogram(1).bins == {(3, 3): 3.0, (4, 4): 1.0}


def test_every_bin_and_every_category_in_order():
    bins, names = BinTally(SCALE), NameTally(NAMES)
    bins.count(np.array([2, 2, 5, 5]), "p")
    names.count({"b": 0.25, "d": 0.75}, "p", weight=2)
    assert bins.dense().tolist() == [0, 0, 0.5, 0, 0, 0.5, *[0] * 15]
    assert names.dense().tolist() == [0, 0.5, 0, 1.5]
