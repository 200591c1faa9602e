"""Bins: every value lies in the bounds of its bin, and bins follow one another without a gap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.errors import ConfigurationError
from fedseg.statistics.scales import Linear, Relative, unique_shares

SCALES = [Linear(0.001, 0, 50), Linear(1, 1, 4096), Relative(0.005, 1e-3, 1e9), Relative(0.25, 1, 1e4)]


@pytest.mark.parametrize("scale", SCALES)
@given(value=st.floats(-1e4, 1e4))
def test_a_value_lies_in_its_bin(scale, value):
    number = int(scale.index(np.array([value]))[0])
    low, high = scale.bounds(number, number)
    inside = scale.ends[0] < number < scale.ends[1]
    assert scale.holds(number, number)
    if inside:
        room = 1e-7 * max(1e-3, abs(value))
        assert low - room <= value <= high + room
        assert abs(scale.centre(number, number) - value) <= scale.half_width(number, number) + room


@pytest.mark.parametrize("scale", SCALES)
def test_bins_follow_one_another(scale):
    first, last = scale.ends
    for number in (first, -3, -2, -1, 0, 1, 2, 50, last - 1):
        if first <= number < last:
            assert scale.bounds(number, number)[1] == pytest.approx(scale.bounds(number + 1, number + 1)[0])


@given(value=st.floats(1e-3, 1e8))
def test_the_middle_of_a_relative_bin_is_off_by_its_accuracy_at_most(value):
    scale = Relative(0.005, 1e-3, 1e9)
    number = int(scale.index(np.array([value]))[0])
    assert abs(scale.centre(number, number) - value) <= 0.005001 * value


def test_round_sizes_are_the_centres_of_their_bins():
    scale = Linear(0.001, 0, 50)
    for value in (0.5, 0.859, 1.0, 3.0):
        number = int(scale.index(np.array([value]))[0])
        assert scale.centre(number, number) == pytest.approx(value, abs=1e-12)


def test_values_outside_count_at_the_ends():
    assert Linear(1, 0, 5).index(np.array([-7, 9])).tolist() == [0, 5]
    scale = Relative(0.25, 1, 100)
    assert scale.index(np.array([-1e9, 1e9])).tolist() == [*scale.ends]


def test_shares_add_up_to_one():
    shares = dict(unique_shares(Linear(1, 0, 5), np.array([1, 1, 1, 3])))
    assert shares == {1: 0.75, 3: 0.25}


@pytest.mark.parametrize("wrong", [lambda: Linear(0, 0, 1), lambda: Linear(1, 2, 1), lambda: Relative(0.1, 2, 1)])
def test_scales_without_bins_are_refused(wrong):
    with pytest.raises(ConfigurationError):
        wrong()
