import doctest
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.aggregators import shared_state
from fedseg.aggregators.base import AggregationError
from fedseg.aggregators.shared_state import SharedArray, SharedState
from fedseg.contract.plan import parse_plan
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.parts.amplitude import SPECTRUM
from fedseg.networks.weights import get_weights
from tiny import PLAN

MEAN, WEIGHTED, SUM = SharedArray((2,)), SharedArray((2,), weighted=True), SharedArray((2,), "sum")
BANK, WHOLE_BANK = SharedArray((2,), "bank"), SharedArray((2,), "bank", with_own=True)
BEFORE = SharedArray((2,), before_rounds=True)
CASES = {"a": 1, "b": 3}
HARMONISED = parse_plan({**PLAN, "network": {**PLAN["network"], "parts": [{"name": "amplitude"}]}})


class Shared(SharedState):
    prefix = "shared/"

    def __init__(self, **arrays):
        super().__init__()
        self.arrays = arrays

    def declare(self, plan, weights):
        return self.arrays


def started(**arrays):
    state = Shared(**arrays)
    state.set_plan(None, {})
    state.start(2)
    return state


def sent(*values, name="x"):
    return {f"shared/{name}": np.array(values, np.float32)}


def run_round(state, arrays, cases=None):
    for site, values in arrays.items():
        state.accept(site, sent(*values))
    state.finish_round(cases or dict.fromkeys(arrays, 1))
    return state


def test_the_example_of_the_class_runs():
    failed, attempted = doctest.testmod(shared_state)
    assert attempted
    assert not failed


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (MEAN, [4, 6]),
        (WEIGHTED, [5, 8]),  # (1 * [2, 2] + 3 * [6, 10]) / 4
        (SUM, [8, 12]),
        (BANK, [[6, 10]]),
        (WHOLE_BANK, [[2, 2], [6, 10]]),
    ],
)
def test_two_sites_by_hand(array, expected):
    state = run_round(started(x=array), {"b": [6, 10], "a": [2, 2]}, CASES)
    assert state.outgoing("a")["shared/x"].tolist() == expected
    assert state.outgoing("a")["shared/x"].dtype == np.float32


def test_the_result_of_a_round_takes_the_place_of_the_one_before():
    state = run_round(run_round(started(x=SUM), {"a": [1, 2]}), {"a": [5, 5]})
    assert state.outgoing("a")["shared/x"].tolist() == [5, 5]
    assert run_round(state, {}).outgoing("a")["shared/x"].tolist() == [5, 5]


def test_a_bank_keeps_the_last_array_of_each_site_and_a_new_site_gets_all_of_them():
    state = started(x=BANK)
    assert state.outgoing("a")["shared/x"].shape == (0, 2)
    run_round(state, {"b": [1, 1], "c": [2, 2]})
    run_round(state, {"c": [3, 3]})
    state.join()
    assert state.outgoing("new")["shared/x"].tolist() == [[1, 1], [3, 3]]
    assert state.outgoing("b")["shared/x"].tolist() == [[3, 3]]
    assert state.outgoing("c")["shared/x"].tolist() == [[1, 1]]


def test_an_update_that_did_not_count_is_in_no_bank_and_no_sum():
    for array, expected in ((SUM, [1, 2]), (WHOLE_BANK, [[1, 2]])):
        state = run_round(started(x=array), {"a": [1, 2], "b": [9, 9]}, {"a": 1})
        assert state.outgoing("z")["shared/x"].tolist() == expected


@given(st.integers(0, 999), st.sampled_from([MEAN, WEIGHTED, SUM, WHOLE_BANK]))
def test_the_order_of_arrival_changes_no_bit(seed, array):
    generator = np.random.default_rng(seed)
    arrays = {f"s{i}": generator.normal(size=2) for i in range(5)}
    cases = {site: int(generator.integers(1, 9)) for site in arrays}
    shuffled = {site: arrays[site] for site in generator.permutation(list(arrays))}
    one, other = (run_round(started(x=array), each, cases).outgoing("z")["shared/x"] for each in (arrays, shuffled))
    np.testing.assert_array_equal(one, other)


def test_arrays_of_before_the_rounds_are_asked_for_once_and_then_stay():
    state = started(first=BEFORE, x=SUM)
    assert state.before_rounds
    assert not started(x=SUM).before_rounds
    for site, value in (("a", 1), ("b", 3)):
        state.accept(site, sent(value, value, name="first"), before_rounds=True)
    state.finish_before_rounds(CASES)
    run_round(state, {"a": [7, 7]})
    assert {n: v.tolist() for n, v in state.outgoing("a").items()} == {"shared/first": [2, 2], "shared/x": [7, 7]}


@pytest.mark.parametrize("before", [True, False])
def test_an_array_at_the_wrong_moment_is_refused(before):
    state = started(first=BEFORE, x=SUM)
    with pytest.raises(RefusalError, match=r"missing.*unknown") as error:
        state.accept("a", sent(1, 1, name="x" if before else "first"), before_rounds=before)
    assert error.value.reason == "weights"


def test_a_method_does_not_begin_without_what_it_needs_before_the_first_round():
    state = started(x=BEFORE)
    state.accept("a", sent(1, 1), before_rounds=True)
    with pytest.raises(AggregationError, match="No site sent the arrays that Shared needs before the first round"):
        state.finish_before_rounds({"b": 3})


def test_an_array_can_become_one_of_the_models_and_then_does_not_travel_twice():
    state = Shared(x=replace(BEFORE, shape=(1, 1, 1, 1, 1), becomes=SPECTRUM))
    state.set_plan(HARMONISED, get_weights(HARMONISED.build_network()))
    state.start(2)
    state.accept("a", {"shared/x": np.full((1, 1, 1, 1, 1), 4, np.float32)}, before_rounds=True)
    state.finish_before_rounds(CASES)
    assert state.model_arrays()[SPECTRUM].tolist() == [[[[[4]]]]]
    assert state.outgoing("a") == {} == started(x=BEFORE).model_arrays()


ONE = SharedArray((1, 1, 1, 1, 1), before_rounds=True, becomes=SPECTRUM)
TRAINED = next(iter(get_weights(HARMONISED.build_network())))


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": replace(ONE, becomes="parts.amplitude.spectra")},
        {"x": replace(ONE, shape=(1, 1, 1, 1, 2))},
        {"x": replace(ONE, shape=get_weights(HARMONISED.build_network())[TRAINED].shape, becomes=TRAINED)},
        {"x": replace(ONE, combine="bank")},
        {"x": replace(ONE, before_rounds=False)},
        {"x": ONE, "y": ONE},
    ],
    ids=["unknown", "another shape", "trained by sites", "a bank", "every round", "twice"],
)
def test_what_an_array_becomes_must_be_there_and_belong_to_nobody(arrays):
    weights = get_weights(HARMONISED.build_network())
    Shared(x=ONE).set_plan(HARMONISED, weights)
    with pytest.raises(ConfigurationError, match=r"Shared: shared/. becomes is '.*', but must be an array of the same"):
        Shared(**arrays).set_plan(HARMONISED, weights)


@pytest.mark.parametrize(
    ("shared", "said"),
    [
        ({}, "missing"),
        ({**sent(1, 2), "shared/y": np.zeros(2, np.float32)}, "unknown"),
        (sent(1, 2, 3), "shape"),
        (sent(1, np.nan), "not finite"),
        ({"shared/x": np.array([1e300, 0])}, "so large"),
        ({"shared/x": np.array([1, 2])}, "type"),
        ({"shared/x": np.array(["a", "b"])}, "type"),
    ],
)
@pytest.mark.parametrize("array", [MEAN, SUM, BANK])
def test_what_does_not_fit_is_refused_and_leaves_the_others(array, shared, said):
    state = started(x=array)
    state.accept("a", sent(1, 2))
    with pytest.raises(RefusalError, match=said) as error:
        state.accept("b", shared)
    assert error.value.reason == "weights"
    state.finish_round(CASES)
    assert state.outgoing("z")["shared/x"].ravel().tolist() == [1, 2]


@pytest.mark.parametrize("array", [MEAN, WEIGHTED, SUM, BANK, WHOLE_BANK])
def test_a_restored_state_goes_on_to_the_last_bit(array):
    whole, stopped = (run_round(started(x=array), {"a/b": [0.1, 0.2], "c": [1e-8, 3]}) for _ in range(2))
    stored, resumed = stopped.state(), Shared(x=array)
    resumed.set_plan(None, {})
    resumed.restore(stored)
    assert resumed.total_sites == 2
    for state in (whole, resumed):
        run_round(state, {"c": [-0.7, 0.01]})
    for site in ("a/b", "c", "new"):
        np.testing.assert_array_equal(resumed.outgoing(site)["shared/x"], whole.outgoing(site)["shared/x"])


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"shared/x": np.zeros(2)},
        {"total_sites": np.array(2)},
        {"total_sites": np.array(2), "shared/x": np.zeros(3)},
        {"total_sites": np.array(2), "shared/x": np.zeros(2), "shared/y": np.zeros(2)},
        {"total_sites": np.array(2), "shared/x": np.zeros(2), "bank/a/shared/x": np.zeros(2)},
    ],
)
def test_a_foreign_state_is_refused(wrong):
    with pytest.raises(RefusalError, match="not those of Shared") as error:
        started(x=SUM).restore(wrong)
    assert error.value.reason == "state"
