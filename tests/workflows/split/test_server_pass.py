"""Numbers that are finite where they come in, and too large for what is made of them."""

import numpy as np
import pytest

from fedseg.errors import RefusalError
from fedseg.messages.calls.call import AT_PREDICTIONS, FEATURES, PARAMETERS
from split_example import all_weights, same_bits
from split_loops import splitavg_step
from split_wire import SITES, STEPS, Wire, make_data, plain, plan_of

SAID = "loss: its numbers are so large that the loss or a gradient is not finite"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("huge"))


def spoil(wire, site, kind, value, step=0):
    """The arrays of a kind in a site's answers of the step are all ``value``."""
    honest = wire.sites[site].answer

    def spoilt(call):
        answer = honest(call)
        if kind in answer.arrays and call.step == step:
            answer.arrays[kind].update({n: np.full_like(v, value) for n, v in answer.arrays[kind].items()})
        return answer

    wire.sites[site].answer = spoilt


VARIANTS = [
    ({}, FEATURES, 3e38),
    ({"site_update": "summed"}, FEATURES, 3e38),
    ({"labels": "private"}, FEATURES, 3e38),
    ({"labels": "private"}, AT_PREDICTIONS, 1e38),
    ({"labels": "private", "site_update": "summed"}, AT_PREDICTIONS, 1e38),
    # Every number is finite where it arrives and where it goes back; the norm of the server's gradient is not.
    ({"labels": "private"}, AT_PREDICTIONS, 1e18),
]


@pytest.mark.parametrize(("split", "kind", "value"), VARIANTS)
def test_a_site_whose_numbers_are_too_large_is_named_and_counts_nowhere(data, split, kind, value):
    """The others equal, bit for bit, the plain loop of these two sites."""
    plan = plan_of(**split)
    wire = Wire(plan, data)
    spoil(wire, "b", kind, value)
    there, result = wire.run()
    server, sites = plain(plan)
    drawn, others = wire.batches(), {site: sites[site] for site in "ac"}
    for step in range(STEPS):
        splitavg_step(server, others, {site: next(drawn[site]) for site in others}, step / STEPS / 2)
    assert there == ["a", "c"]
    assert wire.left == {"b": SAID}
    assert result.iterations == STEPS
    assert result.samples == {"a": 6, "c": 6}
    assert sorted(result.site_losses) == ["a", "c"]
    left = {site: wire.halves[site] for site in "ac"}
    assert same_bits(all_weights(wire.server, left), all_weights(server, others))
    assert wire.halves["b"].steps == 0


def test_nobody_is_asked_for_its_gradient_again(data):
    wire = Wire(plan_of(labels="private"), data)
    spoil(wire, "b", AT_PREDICTIONS, 1e38)
    wire.run()
    asked = [(site, str(ask)) for site, way, ask, _ in wire.messages if way == "down"]
    assert [asked.count((site, "answer")) for site in "abc"] == [STEPS, 1, STEPS]


def test_later_iterations_are_held_to_it_too(data):
    """The features of the third iteration come with the answer to the second one's gradient."""
    wire = Wire(plan_of(), data)
    spoil(wire, "b", FEATURES, 3e38, step=1)
    there, result = wire.run()
    assert (there, wire.left) == (["a", "c"], {"b": SAID})
    assert result.samples == {"a": 6, "b": 3, "c": 6}


def test_with_the_mean_of_gradients_the_site_is_found_as_well(data):
    """What goes back is then the same for all, and tells nobody's name."""
    wire = Wire(plan_of(cut_gradient="mean", labels="private"), data)
    spoil(wire, "b", AT_PREDICTIONS, 1e38)
    there, _ = wire.run(steps=1)
    assert (there, wire.left) == (["a", "c"], {"b": SAID})


def test_a_site_that_is_lost_at_its_answer_does_not_hide_the_cause(data):
    wire = Wire(plan_of(labels="private"), data, [("c", "answer", 0)])
    spoil(wire, "b", AT_PREDICTIONS, 1e38)
    there, result = wire.run()
    assert (there, wire.left) == (["a"], {"b": SAID})
    assert result.samples == {"a": 6}


@pytest.mark.parametrize("value", [1e38, 1e20])
def test_gradients_of_a_part_that_are_too_large_for_the_sum(data, value):
    wire = Wire(plan_of(site_update="summed"), data)
    spoil(wire, "b", PARAMETERS, value)
    there, result = wire.run()
    assert there == ["a", "c"]
    assert wire.left == {"b": "loss: A gradient of the site's part is not finite, or too large."}
    assert result.iterations == STEPS
    assert all(np.isfinite(value).all() for value in wire.server.weights().values())


def test_where_no_single_site_is_the_cause_the_job_fails_before_anybody_steps(data):
    wire = Wire(plan_of(), data)
    for site in SITES:
        spoil(wire, site, FEATURES, 3e38)
    before = all_weights(wire.server, wire.halves)
    with pytest.raises(RefusalError, match="With the numbers of a, b, c the loss or a gradient is not finite") as error:
        wire.run()
    assert error.value.reason == "loss"
    assert wire.left == {}
    assert same_bits(all_weights(wire.server, wire.halves), before)


def test_in_turns_it_is_the_site_whose_turn_it_is(data):
    wire = Wire(plan_of(site_update="handed_on"), data)
    spoil(wire, "b", FEATURES, 3e38)
    there, result = wire.run(0, {"a": 2, "b": 2, "c": 1})
    assert (there, wire.left) == (["a", "c"], {"b": SAID})
    assert result.samples == {"a": 4, "c": 2}
