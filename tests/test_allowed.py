"""Checked values: what is allowed comes back, and a refusal keeps the name, the value and what is allowed."""

from __future__ import annotations

import doctest
import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg import allowed
from fedseg.allowed import is_number, number, one_of, optional, setting, settings, switch, texts, whole
from fedseg.errors import ConfigurationError

JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@dataclass(frozen=True)
class Example:
    epochs: int = setting(1, whole)
    rate: float = setting(0.5, number, above=0, most=1)
    kind: str = setting("a", one_of, choices=("a", "b"))
    bound: float | None = setting(None, number, above=0)


def test_the_example_of_the_module():
    assert doctest.testmod(allowed).attempted == 2
    assert doctest.testmod(allowed).failed == 0


@pytest.mark.parametrize(
    ("bounds", "good", "bad", "phrase"),
    [
        ({"least": 0}, (0, 2.5, 1e300), (-1e-9, math.inf, 10**400), "a number from 0 up"),
        ({"least": 0, "most": 1}, (0, 1), (1.1, -0.1), "a number from 0 to 1"),
        ({"least": 0, "below": 1}, (0, 0.999), (1, 1.0), "a number from 0 to below 1"),
        ({"above": 0}, (1e-300, 5), (0, -0.0, math.inf), "a number above 0"),
        ({"above": 0, "infinite": True}, (math.inf, 1), (0, math.nan), "a number above 0"),
        ({"above": 0, "below": 1}, (0.5,), (0, 1), "a number above 0 and below 1"),
        ({"above": 0, "most": 1}, (0.5, 1), (0, 1.5), "a number above 0, at most 1"),
        ({}, (-3, 4.5), (math.inf, -math.inf), "a number"),
        ({"least": 1, "most": 9, "allowed": "seconds from 1 to 9"}, (1, 9), (0, 10), "seconds from 1 to 9"),
    ],
)
def test_numbers_within_bounds(bounds, good, bad, phrase):
    for value in good:
        assert number("x", value, **bounds) is value
    for value in (*bad, True, False, None, "1", [1], math.nan, 1j):
        with pytest.raises(ConfigurationError) as refused:
            number("x", value, **bounds)
        assert (refused.value.name, refused.value.value, refused.value.allowed) == ("x", value, phrase)


@pytest.mark.parametrize(
    ("bounds", "good", "bad", "phrase"),
    [
        ({}, (1, 10**30), (0, -1), "a whole number of at least 1"),
        ({"least": 0}, (0, 1), (-1,), "a whole number from 0 up"),
        ({"least": 2, "most": 4}, (2, 4), (1, 5), "a whole number from 2 to 4"),
        ({"allowed": "a count"}, (1,), (0,), "a count"),
    ],
)
def test_whole_numbers_within_bounds(bounds, good, bad, phrase):
    for value in good:
        assert whole("x", value, **bounds) is value
    for value in (*bad, True, 2.0, None, "1", [1]):
        with pytest.raises(ConfigurationError) as refused:
            whole("x", value, **bounds)
        assert (refused.value.name, refused.value.value, refused.value.allowed) == ("x", value, phrase)


def test_a_choice_is_one_of_the_same_type():
    assert one_of("x", 8, (8, 16)) == 8
    for value in ("a", True, 1.0, [1], None):
        with pytest.raises(ConfigurationError, match="but must be one of \\[1, 2\\]"):
            one_of("x", value, (1, 2))


def test_switches_and_texts():
    assert (switch("x", True), switch("x", False)) == (True, False)
    assert texts("x", ["a", "b"]) == ("a", "b")
    for value in (1, 0, None, "true"):
        with pytest.raises(ConfigurationError, match="true or false"):
            switch("x", value)
    for value in ("ab", [], [""], ["a", 1], None, {"a": 1}):
        with pytest.raises(ConfigurationError, match="a list of names"):
            texts("x", value)


def test_null_is_allowed_where_a_value_is_optional():
    assert optional(whole, "x", None) is None
    assert optional(number, "x", 0.5, above=0) == 0.5
    with pytest.raises(ConfigurationError, match="x is 0, but must be a number above 0, or null"):
        optional(number, "x", 0, above=0)


def test_settings_are_closed_and_complete():
    assert settings(Example, {"rate": 1}, "training") == Example(rate=1)
    assert settings(Example, {"bound": 2, "kind": "b"}, "training") == Example(bound=2, kind="b")
    for declaration, said in (
        ({"rates": 1}, r"training.rates is not known: the settings are \['bound', 'epochs', 'kind', 'rate'\]."),
        ({"rate": 0}, "training.rate is 0, but must be a number above 0, at most 1."),
        ({"kind": "c"}, r"training.kind is 'c', but must be one of \['a', 'b'\]."),
        ({"bound": 0}, "training.bound is 0, but must be a number above 0, or null."),
        ([1], r"training is \[1\], but must be an object of settings."),
    ):
        with pytest.raises(ConfigurationError, match=said):
            settings(Example, declaration, "training")


def returned_or_refused(check):
    try:
        return check(), None
    except ConfigurationError as error:
        return None, error


@given(value=JSON, name=st.text("abc._", min_size=1))
def test_every_check_returns_its_value_or_keeps_name_value_and_what_is_allowed(value, name):
    for check in (
        lambda: number(name, value, least=0, below=1),
        lambda: number(name, value, above=0),
        lambda: whole(name, value, least=0),
        lambda: one_of(name, value, ("a", "b")),
        lambda: switch(name, value),
        lambda: optional(number, name, value, above=0, most=1),
    ):
        found, refused = returned_or_refused(check)
        if refused is None:
            assert found is value or found == value
        else:
            assert (refused.name, refused.value is value) == (name, True)
            assert refused.allowed
            assert str(refused).startswith(f"{name} is {'missing' if value is None else repr(value)}, but must be ")


@given(value=JSON)
def test_a_number_is_finite_and_no_switch(value):
    assert is_number(value) == (type(value) is int or (type(value) is float and abs(value) < math.inf))
    assert is_number(value, infinite=True) == (type(value) in (int, float) and value == value)
