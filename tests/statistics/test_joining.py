"""Bounds of joined bins: they hold the values, and tell no value of a single patient."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.statistics.quantities import quantities
from fedseg.statistics.scales import Linear, Relative
from fedseg.statistics.tally import BinTally
from statistics_of_tiny import TINY

SCALE = Linear(1, -256, 255, cell=8)
MINIMUM = 3
values_of = st.lists(st.integers(-256, 255), min_size=MINIMUM, max_size=40)


def groups(values, scale=SCALE, minimum=MINIMUM):
    tally = BinTally(scale)
    for patient, value in enumerate(values):
        tally.count(np.array([value]), str(patient))
    return tally.histogram(minimum).bins


@given(values_of)
def test_each_value_lies_in_one_group_and_each_group_has_enough(values):
    found = groups(values)
    for (first, last), weight in found.items():
        inside = sum(first <= value <= last for value in values)
        assert inside == weight >= MINIMUM
    assert sum(found.values()) == len(values)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(sorted(found)))


@given(values_of)
def test_a_bound_lies_between_cells_or_beside_a_bin_with_enough_patients(values):
    full = {value for value in values if values.count(value) >= MINIMUM}
    for first, last in groups(values):
        assert first % 8 == 0 or first in full or first - 1 in full
        assert (last + 1) % 8 == 0 or last in full or last + 1 in full


@given(st.lists(st.integers(-256, 255), min_size=MINIMUM, max_size=40, unique=True), st.data())
def test_a_value_may_be_any_other_of_its_cell(values, data):
    place = data.draw(st.integers(0, len(values) - 1))
    cell = values[place] // 8 * 8
    others = [*values[:place], *values[place + 1 :]]
    moved = data.draw(st.sampled_from([n for n in range(cell, cell + 8) if n not in others]))
    assert groups([*others, moved]) == groups(values)


def test_an_extreme_alone_is_told_no_better_than_to_the_width_of_its_group():
    near = groups([1, 2, 100])
    assert near == {(0, 127): 3.0}
    assert all(groups([1, 2, largest]) == near for largest in range(64, 128))
    # The largest three are from 40 on; a bound between two groups is the roundest number that parts them.
    assert groups([1, 2, 3, 40, 50, 200]) == {(0, 7): 3.0, (32, 255): 3.0}
    assert groups([1, 2, 30, 40, 50, 200]) == {(0, 31): 3.0, (32, 255): 3.0}
    assert groups([-20, -2, -1, 2, 3, 4]) == {(-32, -1): 3.0, (0, 7): 3.0}


def test_one_value_of_many_patients_stays_exact():
    assert groups([100] * 3) == {(100, 100): 3.0}
    assert groups([100] * 3 + [160]) == {(100, 255): 4.0}
    assert groups([100] * 3 + [200] * 3) == {(100, 100): 3.0, (200, 200): 3.0}
    assert groups([100] * 3 + [60, 70, 80]) == {(32, 95): 3.0, (100, 100): 3.0}


def test_groups_end_with_the_scale():
    assert groups([250, 240, 100], Linear(1, 0, 251, cell=8)) == {(0, 251): 3.0}
    assert groups([-3, 2, 5], Relative(0.5, 1, 100, cell=4)) == {(-7, 7): 3.0}


@pytest.mark.parametrize("name", quantities(TINY, fine=True).scales)
def test_every_scale_without_noise_has_cells(name):
    cell = quantities(TINY, fine=True).scales[name].cell
    assert cell >= 4
    assert cell & (cell - 1) == 0
