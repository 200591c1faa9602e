import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.test_fedavg import aggregate, make_update
from fedseg.aggregators.krum import Krum, krum_scores
from fedseg.errors import ConfigurationError


def on_a_line(**places):
    return [make_update(site, {"w": np.array([float(x)])}, samples=7) for site, x in places.items()]


def slow_scores(points, neighbours):
    """The definition, point by point."""
    scores = []
    for i, point in enumerate(points):
        squares = sorted(float(np.sum((point - other) ** 2)) for k, other in enumerate(points) if k != i)
        scores.append(sum(squares[:neighbours]))
    return scores


def test_scores_and_choice_by_hand():
    # Five sites at 0, 1, 3, 4.5, 100; byzantine 1: each score sums the 5 - 1 - 2 = 2 smallest squared distances.
    #   a: 1 + 9 = 10; b: 1 + 4 = 5; c: 2.25 + 4 = 6.25; d: 2.25 + 12.25 = 14.5; e: 95.5^2 + 97^2 = 18529.25
    rule = Krum()
    result = aggregate(rule, on_a_line(a=0, b=1, c=3, d=4.5, e=100))
    assert rule.last_notes == {
        "scores": {"a": 10.0, "b": 5.0, "c": 6.25, "d": 14.5, "e": 18529.25},
        "neighbours": 2,
        "guaranteed": True,
    }
    assert rule.last_weights == {"a": 0, "b": 1, "c": 0, "d": 0, "e": 0}
    assert result["w"].tolist() == [1.0]


def test_multi_krum_is_the_plain_mean_of_the_best():
    # The three lowest of the scores above are b, c and a: (1 + 3 + 0) / 3.
    rule = Krum(select=3)
    assert aggregate(rule, on_a_line(a=0, b=1, c=3, d=4.5, e=100))["w"].item() == pytest.approx(4 / 3)
    assert rule.last_weights == {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3, "d": 0, "e": 0}


def test_more_than_all_is_all():
    rule = Krum(select=9)
    assert aggregate(rule, on_a_line(a=0, b=1, c=5))["w"].item() == pytest.approx(2)


def test_equal_scores_go_by_name():
    rule = Krum(select=2)
    aggregate(rule, on_a_line(d=1, a=1, c=1, b=1, e=1))
    assert [site for site, weight in rule.last_weights.items() if weight] == ["a", "b"]


@given(st.integers(0, 2**32 - 1), st.integers(3, 10), st.integers(0, 3))
def test_scores_are_the_slow_loop(seed, sites, byzantine):
    points = np.random.default_rng(seed).normal(size=(sites, 6))
    squared = ((points[:, None] - points) ** 2).sum(axis=-1)
    neighbours = max(1, sites - byzantine - 2)
    np.testing.assert_allclose(krum_scores(squared, neighbours), slow_scores(points, neighbours), rtol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.floats(0, 1e6))
def test_no_placement_of_the_faulty_wins_against_a_close_crowd(seed, byzantine, distance):
    # f + 3 honest sites lie within 1 of each other, so each has a score of at most f + 1. A faulty one that beats them
    # has at least 2 honest ones among its f + 1 neighbours: the nearer is no further away than sqrt((f + 1) / 2).
    generator = np.random.default_rng(seed)
    honest = generator.uniform(-0.25, 0.25, size=(byzantine + 3, 4))
    faulty = distance * generator.normal(size=4) + generator.normal(size=(byzantine, 4)) / 100
    points = np.concatenate([honest, faulty])
    rule = Krum(byzantine)
    result = aggregate(rule, [make_update(f"s{i}", {"w": p}) for i, p in enumerate(points)])["w"]
    assert rule.last_notes["guaranteed"]
    assert np.linalg.norm(honest - result, axis=1).min() <= np.sqrt((byzantine + 1) / 2)


@pytest.mark.parametrize(
    ("byzantine", "places", "expected"),
    [
        # J - byzantine - 2 is 0: nearest neighbours at squared distances 64, 1, 1; the tie of b and c goes to b.
        (1, {"a": 0, "b": 8, "c": 9}, 8),
        # It is -2: 49, 1, 0.25, 0.25.
        (4, {"a": 0, "b": 7, "c": 8, "d": 8.5}, 8),
    ],
)
def test_too_few_sites_are_compared_with_one_neighbour_and_it_is_said(byzantine, places, expected, caplog):
    rule = Krum(byzantine)
    with caplog.at_level(logging.WARNING):
        result = aggregate(rule, on_a_line(**places))
    assert (rule.last_notes["neighbours"], rule.last_notes["guaranteed"]) == (1, False)
    assert result["w"].item() == expected
    assert f"withstands {byzantine} faulty site(s) from {2 * byzantine + 3} sites up" in caplog.text


def test_two_updates_are_averaged_and_one_is_taken():
    rule = Krum()
    assert aggregate(rule, on_a_line(a=0, b=4))["w"].item() == 2
    assert aggregate(rule, on_a_line(a=3))["w"].item() == 3
    assert rule.last_notes == {"scores": {"a": 0.0}, "neighbours": 0, "guaranteed": False}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"byzantine": -1}, "byzantine is -1, but must be a whole number from 0 up"),
        ({"byzantine": True}, "byzantine is True"),
        ({"select": 0}, "select is 0, but must be a whole number from 1 up"),
        ({"select": 1.5}, "select is 1.5"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Krum(**arguments)


def test_description():
    assert Krum(2, 3).describe() == {"name": "Krum", "byzantine": 2, "select": 3}
