import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.aggregators.control_variates import ControlVariates
from fedseg.errors import RefusalError

WEIGHTS = {"w": np.ones((2,), np.float32), "scale": np.ones((), np.float32)}


def started(total_sites=4):
    variates = ControlVariates()
    variates.set_plan(None, WEIGHTS)
    variates.start(total_sites)
    return variates


def difference(w, scale=0.0):
    return {"control/w": np.array(w, np.float32), "control/scale": np.array(scale, np.float32)}


def run_round(variates, sent):
    variates.reset_round()
    for site, shared in sent.items():
        variates.accept(site, shared)
    variates.finish_round(dict.fromkeys(sent, 5))
    return variates.outgoing("a")


def test_it_starts_at_zero_under_the_names_of_the_wire():
    outgoing = started().outgoing("a")
    assert set(outgoing) == {"control/w", "control/scale"}
    assert outgoing["control/w"].tolist() == [0, 0]
    assert (outgoing["control/scale"].shape, outgoing["control/scale"].dtype) == ((), np.float32)


def test_two_rounds_by_hand():
    variates = started(total_sites=4)
    # two of four sites: 2/4 * mean([4, 0], [0, 2]) = 1/2 * [2, 1]
    out = run_round(variates, {"b": difference([0, 2], 2.0), "a": difference([4, 0], 6.0)})
    assert out["control/w"].tolist() == [1.0, 0.5]
    assert out["control/scale"] == 2.0
    # then one of four: + 1/4 * [4, -4]
    assert run_round(variates, {"c": difference([4, -4])})["control/w"].tolist() == [2.0, -0.5]


def test_without_answers_nothing_moves():
    variates = started()
    before = run_round(variates, {"a": difference([1, 1])})
    assert run_round(variates, {})["control/w"].tolist() == before["control/w"].tolist()


@given(st.lists(st.sets(st.sampled_from("abcd"), min_size=1), min_size=1, max_size=6), st.integers(0, 99))
def test_it_stays_the_mean_over_all_sites_whoever_takes_part(rounds, seed):
    """A slow loop: every site keeps its own c_i, and the server's c is their mean."""
    generator, variates = np.random.default_rng(seed), started(total_sites=4)
    own = {site: np.zeros(2) for site in "abcd"}
    for chosen in rounds:
        sent = {}
        for site in chosen:
            change = generator.integers(-8, 8, 2)
            own[site] = own[site] + change
            sent[site] = difference(change)
        out = run_round(variates, sent)
    np.testing.assert_allclose(out["control/w"], sum(own.values()) / 4, atol=1e-5)


def test_the_order_of_arrival_changes_no_bit():
    generator = np.random.default_rng(0)
    sent = {f"s{i}": difference(generator.normal(size=2)) for i in range(7)}
    first = run_round(started(7), sent)["control/w"]
    for _ in range(5):
        names = list(sent)
        generator.shuffle(names)
        np.testing.assert_array_equal(run_round(started(7), {n: sent[n] for n in names})["control/w"], first)


def test_a_site_that_sends_twice_counts_once_and_rounds_do_not_leak():
    variates = started(total_sites=1)
    variates.accept("a", difference([9, 9]))
    variates.accept("a", difference([1, 2]))
    variates.finish_round({"a": 1, "b": 2})
    assert variates.outgoing("a")["control/w"].tolist() == [1, 2]
    variates.finish_round({"a": 1, "b": 2})
    assert variates.outgoing("a")["control/w"].tolist() == [1, 2]
    variates.accept("a", difference([5, 5]))
    variates.reset_round()
    variates.finish_round({"a": 1, "b": 2})
    assert variates.outgoing("a")["control/w"].tolist() == [1, 2]


def test_a_newcomer_leaves_c_the_mean_of_all_control_variates():
    """Two sites with c_i = [2, 4] each: c = [2, 4]. With a third, whose c_i is 0, the mean is [4/3, 8/3]."""
    variates = started(total_sites=2)
    run_round(variates, {"a": difference([2, 4]), "b": difference([2, 4])})
    variates.join()
    np.testing.assert_allclose(variates.outgoing("a")["control/w"], [4 / 3, 8 / 3], rtol=1e-6)
    # Of three sites one moves its c_i by [3, 3]: the mean moves by [1, 1].
    assert run_round(variates, {"c": difference([3, 3])})["control/w"] == pytest.approx([7 / 3, 11 / 3])


def test_what_the_rule_did_not_take_does_not_count():
    variates = started(total_sites=1)
    variates.accept("a", difference([1, 2]))
    variates.accept("b", difference([100, 100]))
    variates.finish_round({"a": 1})
    assert variates.outgoing("a")["control/w"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("shared", "said"),
    [
        ({}, "missing"),
        ({"control/w": np.zeros(2, np.float32)}, "control/scale"),
        ({**difference([1, 2]), "control/x": np.zeros(1, np.float32)}, "unknown"),
        ({"w": np.zeros(2, np.float32), "scale": np.zeros((), np.float32)}, "missing"),
        (difference([1, 2, 3]), "shape"),
        (difference([1, np.nan]), "not finite"),
        (difference([1, np.inf]), "not finite"),
        ({**difference([1, 2]), "control/w": np.array(["a", "b"])}, "type"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_the_others(shared, said):
    variates = started(total_sites=2)
    variates.accept("a", difference([2, 4]))
    with pytest.raises(RefusalError, match=said) as error:
        variates.accept("b", shared)
    assert error.value.reason == "weights"
    variates.finish_round({"a": 1, "b": 2})
    assert variates.outgoing("a")["control/w"].tolist() == [1, 2]


def test_a_restored_state_goes_on_to_the_last_bit():
    whole, stopped = started(3), started(3)
    for variates in (whole, stopped):
        run_round(variates, {"a": difference([0.1, 0.2]), "c": difference([0.3, 1e-8])})
    resumed = ControlVariates()
    resumed.set_plan(None, WEIGHTS)
    resumed.restore(stopped.state())
    assert resumed.describe() == {"name": "ControlVariates"}
    for variates in (whole, resumed):
        run_round(variates, {"b": difference([-0.7, 0.01], 3.0)})
    for name, value in whole.outgoing("a").items():
        np.testing.assert_array_equal(resumed.outgoing("a")[name], value)


@pytest.mark.parametrize("wrong", [{}, {"control/w": np.zeros(1)}, {"total_sites": np.array(2), "m/w": np.zeros(1)}])
def test_a_foreign_state_is_refused(wrong):
    with pytest.raises(RefusalError, match="not those of ControlVariates"):
        started().restore(wrong)
