"""The privacy record of an update as it comes from a site."""

import math

import pytest

from fedseg.contract.update import parse_steps
from fedseg.errors import RefusalError

STEP = {"filter": "NormClip", "stage": 20, "norm": 1.0, "secure": True, "note": None}


def test_steps_come_back_as_they_were():
    assert parse_steps([STEP, {**STEP, "filter": "x"}]) == (STEP, {**STEP, "filter": "x"})
    assert parse_steps(None) == ()


@pytest.mark.parametrize("value", [math.nan, -math.inf, 10**400, "x" * 1001, [1], {"a": 1}, b"x", 1j])
def test_a_value_that_no_record_could_hold_is_refused(value):
    """The server writes steps into the record of the run, which ends with a line that cannot be written."""
    with pytest.raises(RefusalError, match="more than text and finite numbers"):
        parse_steps([{**STEP, "norm": value}])


@pytest.mark.parametrize(
    "steps", ["NormClip", {"filter": "x"}, [1], [[]], [{}], [{"filter": 1}], [STEP] * 65, [{1: 2}]]
)
def test_what_is_no_list_of_steps_is_refused(steps):
    with pytest.raises(RefusalError, match="privacy record"):
        parse_steps(steps)
