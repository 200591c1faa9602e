import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.test_fedavg import rounds_of
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.staleness import Staleness
from fedseg.errors import ConfigurationError


def with_sites(*rounds):
    return [dict.fromkeys(names, 0.5) for names in rounds]


def test_weights_by_hand():
    # base 2. In round 3 a took part in round 2 (missed 0), b last in 1 (missed 1), c last in 0 (missed 2), and d never
    # (missed 3): 1, 1/2, 1/4, 1/8 of 15/8.
    rule = Staleness(base=2)
    rounds = rounds_of(rule, *with_sites("abc", "ab", "a", "abcd"))
    assert rounds[0] == {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}
    assert rounds[3] == pytest.approx({"a": 8 / 15, "b": 4 / 15, "c": 2 / 15, "d": 1 / 15}, abs=1e-15)
    assert rule.last_notes == {"missed": {"a": 0, "b": 1, "c": 2, "d": 3}}


def test_the_published_base():
    # e / 2 = 1.3591: a site that missed one round has 0.7358 of a fresh one's weight.
    _, _, weights = rounds_of(Staleness(), *with_sites("ab", "a", "ab"))
    assert weights["b"] / weights["a"] == pytest.approx(0.7357588823, rel=1e-9)


@given(st.sets(st.sampled_from("abcdefghij"), min_size=1), st.integers(1, 5), st.floats(1, 10))
def test_all_fresh_is_uniform(sites, rounds, base):
    for weights in rounds_of(Staleness(base), *with_sites(*[sites] * rounds)):
        assert weights == pytest.approx(dict.fromkeys(sites, 1 / len(sites)), rel=1e-12)


@given(st.lists(st.sets(st.sampled_from("abcdef"), min_size=1), min_size=1, max_size=6), st.floats(1.01, 10))
def test_weight_falls_with_every_missed_round(rounds, base):
    rule = Staleness(base)
    for names in rounds:
        (weights,) = rounds_of(rule, *with_sites(names))
        missed = rule.last_notes["missed"]
        for one in names:
            for other in names:
                ratio = math.exp(math.log(base) * (missed[other] - missed[one]))
                assert weights[one] == pytest.approx(weights[other] * ratio, rel=1e-9)


def test_missed_rounds_are_counted_in_absences():
    absences = range(8)
    weights = [rounds_of(Staleness(), *with_sites("ab", *["a"] * n, "ab"))[-1]["b"] for n in absences]
    assert all(later < earlier for earlier, later in pairwise(weights))


def test_by_samples_a_fresh_round_is_fedavg():
    samples = {"a": 1, "b": 3, "c": 4}
    rounds = with_sites("abc", "ab", "abc")
    weights = rounds_of(Staleness(base=2, weight_by="samples"), *rounds, samples=samples)
    assert weights[:2] == rounds_of(FedAvg(), *rounds[:2], samples=samples)
    # c missed one round: 1, 3, 4 / 2 of 6.
    assert weights[2] == pytest.approx({"a": 1 / 6, "b": 3 / 6, "c": 2 / 6})


def test_base_one_never_fades():
    assert rounds_of(Staleness(base=1), *with_sites("ab", "a", "ab"))[-1] == {"a": 0.5, "b": 0.5}


def test_after_a_very_long_absence_of_all_weights_are_still_there():
    rule = Staleness(base=10)
    rule.restore({"rounds": 10**6, "last_round": {"a": 1, "b": 0}})
    assert rounds_of(rule, *with_sites("ab")) == [pytest.approx({"a": 10 / 11, "b": 1 / 11})]


def test_history_survives_a_restart():
    first, second, rounds = Staleness(), Staleness(), with_sites("abc", "a", "ab", "abc")
    expected = rounds_of(Staleness(), *rounds)
    rounds_of(first, *rounds[:2])
    second.restore(json.loads(json.dumps(first.history())))
    assert second.history() == {"rounds": 2, "last_round": {"a": 1, "b": 0, "c": 0}}
    assert rounds_of(second, *rounds[2:]) == expected[2:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": 0.9}, "base is 0.9, but must be a number from 1 up"),
        ({"base": float("inf")}, "base is inf"),
        ({"weight_by": "steps"}, "weight_by is 'steps', but must be one of"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Staleness(**arguments)


def test_description():
    assert Staleness().describe() == {"name": "Staleness", "base": math.e / 2, "weight_by": "uniform"}
