"""Rounds in which site after site trains alone with the server (SplitNN), and rounds that ask some sites only."""

import numpy as np
import pytest

from fedseg.contract.split_settings import parse_split
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.messages.calls.call import PART, Ask, Call, read_call
from fedseg.messages.sizes import message_size
from fedseg.training.split.halves import plan_cost, plan_parts
from fedseg.training.split.weights import check_part
from split_bytes import step_bytes, turn_bytes
from split_example import all_weights, same_bits
from split_loops import splitavg_round, splitavg_step, splitnn_round
from split_wire import SITES, Wire, make_data, plain, plan_of
from tiny import PLAN

# One pass over 4, 3 and 2 cases in batches of 2.
PASS = {"a": 2, "b": 2, "c": 1}
TURNS = {"site_update": "handed_on"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("turns"))


@pytest.mark.parametrize(
    "split",
    [
        {},
        {"labels": "private"},
        {"message": "float16", "feature_noise": 0.1},
        {"message": "float64", "cut": "encoder2"},
    ],
    ids=lambda split: "-".join(map(str, split.values())) or "published",
)
def test_two_rounds_are_the_plain_loop_to_the_last_bit(data, split):
    """In the second round the first site begins with the part of the last one, and optimizers stay where they are."""
    plan = plan_of(**TURNS, **split)
    wire, (server, sites) = Wire(plan, data), plain(plan)
    for number in range(2):
        there, result = wire.run(number, PASS)
        done = splitnn_round(server, sites, wire.batches(number), PASS, number / 2, (number + 1) / 2)
        assert there == ["a", "b", "c"]
        assert result.losses == [iteration.loss for iteration in done]
        assert result.samples == SITES, "each of its own cases once"
        assert result.iterations == sum(PASS.values())
    assert wire.left == {}
    assert same_bits(all_weights(wire.server, wire.halves), all_weights(server, sites))
    assert same_bits(wire.common.weights(), sites["c"].weights())
    assert not same_bits(wire.common.weights(), sites["b"].weights())


def test_the_learning_rate_runs_through_all_turns(data):
    wire = Wire(plan_of(**TURNS), data)
    wire.run(1, PASS, rounds=4)
    asked = [read_call(m).next for _, way, ask, m in wire.messages if way == "down" and read_call(m).next is not None]
    assert asked == [0.25 + 0.25 * number / 5 for number in range(5)]


def test_the_bytes_of_a_turn_are_those_foretold(data):
    """Of a network that is not quite as small: each message has some 200 bytes of names and headers."""
    plan = plan_of({**PLAN["network"], "channels": [16, 16, 16]}, **TURNS)
    wire = Wire(plan, data)
    wire.run(0, PASS, pause=60.0)
    cost = plan_cost(plan, plan.split)
    part = sum(value.nbytes for value in wire.common.weights().values())
    assert turn_bytes(cost, plan.split).up == turn_bytes(cost, plan.split).down == part
    for way in ("up", "down"):
        sent = sum(message_size(m) for site, w, _, m in wire.messages if (site, w) == ("a", way))
        foretold = PASS["a"] * getattr(step_bytes(cost, plan.split, 2), way) + part
        assert foretold <= sent < 1.05 * foretold
    assert turn_bytes(cost, plan_of().split).up == 0, "no part is handed on in other jobs"


# ------------------------------------------------------------------------------------ a site that is lost


@pytest.mark.parametrize("lost", [("b", "receive", 0), ("b", "backward", 0), ("b", "backward", 1), ("b", "send", 2)])
def test_after_a_lost_site_the_next_one_begins_with_the_part_that_it_was_given(data, lost):
    plan = plan_of(**TURNS)
    wire = Wire(plan, data, [lost])
    there, result = wire.run(0, PASS)
    server, sites = plain(plan)
    drawn, finished = wire.batches(), {"receive": 0, "backward": lost[2] + 1, "send": 2}[lost[1]]
    for site, count, before in (("a", 2, 0), ("b", finished, 2), ("c", 1, 4)):
        if site != "a":
            sites[site].set_weights(sites["a"].weights())
        for number in range(count):
            progress = (before + number) / 5 * 0.5
            splitavg_step(server, {site: sites[site]}, {site: next(drawn[site])}, progress)
    assert there == ["a", "c"]
    assert result.iterations == 3 + finished
    assert same_bits(wire.server.weights(), server.weights()), "what the server learned from it stays"
    assert same_bits(wire.common.weights(), sites["c"].weights())


def test_waiting_sites_are_asked_now_and_then_and_one_that_is_gone_is_not_waited_for(data):
    plan = plan_of(**TURNS)
    wire = Wire(plan, data, [("c", "ready", 0)])
    there, result = wire.run(0, PASS, pause=0.0)
    assert there == ["a", "b"]
    assert result.samples == {"a": 4, "b": 3}
    asked = [(site, str(ask)) for site, way, ask, _ in wire.messages if way == "down" and ask is not Ask.BACKWARD]
    # c does not answer the first time. b waits for a's turn of four calls, and a until b's is over.
    assert asked.count(("c", "ready")) == 1
    assert (asked.count(("b", "ready")), asked.count(("a", "ready"))) == (4, 4)
    assert ("c", "receive") not in asked
    calm = Wire(plan, data)
    calm.run(0, PASS, pause=60.0)
    assert not [ask for _, _, ask, _ in calm.messages if ask is Ask.READY]


@pytest.mark.parametrize("spoil", ["missing", "shape", "type", "nan"])
def test_a_part_that_does_not_fit_leaves_its_site_out_by_name(data, spoil):
    wire = Wire(plan_of(**TURNS), data)
    honest = wire.sites["b"].answer

    def spoilt(call):
        answer = honest(call)
        if call.ask is Ask.SEND:
            part = answer.arrays[PART]
            first = next(iter(part))
            change = {"shape": part[first][None], "type": part[first].astype(np.float64), "nan": part[first] * np.nan}
            part.update({first: change[spoil]} if spoil != "missing" else {})
            if spoil == "missing":
                del part[first]
        return answer

    wire.sites["b"].answer = spoilt
    there, _ = wire.run(0, PASS)
    assert there == ["a", "c"]
    assert list(wire.left) == ["b"]
    assert wire.left["b"].startswith("weights: ")


# ----------------------------------------------------------------------------------------- refusals


def test_no_site_gives_its_part_where_none_is_handed_on(data):
    for split in ({}, {"site_update": "averaged"}, {"site_update": "summed"}):
        wire = Wire(plan_of(**split), data)
        part = wire.common.weights()
        for call in (Call(Ask.SEND, "s", 0), Call(Ask.RECEIVE, "s", 0, arrays={PART: part})):
            with pytest.raises(RefusalError, match="no site hands its part on") as error:
                wire.sites["a"].answer(call)
            assert error.value.reason == "state"


def test_a_site_takes_no_part_that_does_not_fit(data):
    wire = Wire(plan_of(**TURNS), data)
    before, part = wire.halves["a"].weights(), wire.common.weights()
    first = next(iter(part))
    for wrong in (
        {},
        {**part, "more": part[first]},
        {**part, first: part[first][None]},
        {**part, first: part[first].astype(np.float16)},
        {**part, first: np.full_like(part[first], np.inf)},
    ):
        with pytest.raises(RefusalError) as error:
            wire.sites["a"].answer(Call(Ask.RECEIVE, "s", 0, arrays={PART: wrong}))
        assert error.value.reason == "weights"
    with pytest.raises(RefusalError, match="brings no part"):
        wire.sites["a"].answer(Call(Ask.RECEIVE, "s", 0))
    assert same_bits(wire.halves["a"].weights(), before)


def test_a_part_is_compared_with_the_type_that_it_has():
    part = {name: value.numpy() for name, value in plan_parts(plan_of(), plan_of().split)[0].state_dict().items()}
    check_part(part, {name: value.copy() for name, value in part.items()})
    first = next(iter(part))
    with pytest.raises(RefusalError, match=f"{first} is float64, not float32"):
        check_part(part, {**part, first: part[first].astype(np.float64)})


def test_the_mean_of_gradients_is_refused_where_one_site_trains_at_a_time():
    with pytest.raises(ConfigurationError, match=r"split\.cut_gradient is 'mean', but must be own with site_update"):
        parse_split({"cut_gradient": "mean", **TURNS})


# ---------------------------------------------------------------------------- some sites in a round


@pytest.mark.parametrize("update", ["separate", "averaged", "summed", "handed_on"])
def test_a_site_that_was_not_asked_comes_back_with_what_it_should_have(data, tmp_path, update):
    """Its own part as it was, or the common one; its optimizer as it was, or with ``summed`` that of all."""
    plan = plan_of(site_update=update)
    wire = Wire(plan, data, states=tmp_path)
    steps = PASS if update == "handed_on" else 2
    wire.run(0, steps, rounds=3)
    mine = wire.halves["b"].weights()
    finish(wire, "abc")
    wire.run(1, steps, rounds=3, asked="ac")
    finish(wire, "ac")
    common = wire.common.weights()
    wire.run(2, steps, rounds=3)
    assert not same_bits(mine, common)
    assert same_bits(wire.sites["b"].site._before, mine if update == "separate" else common)
    # Two of its own in each round in which it was asked; or those of all rounds where the optimizers are one.
    assert wire.halves["b"].steps == (3 * 2 if update == "summed" else 2 * 2)


def finish(wire, sites):
    for site in sites:
        wire.sites[site].site.finish()


@pytest.mark.parametrize("update", ["separate", "handed_on"])
def test_rounds_of_some_sites_are_the_plain_loop_to_the_last_bit(data, tmp_path, update):
    plan = plan_of(site_update=update)
    wire, (server, sites) = Wire(plan, data, states=tmp_path), plain(plan)
    for number, asked in enumerate(("abc", "ac", "bc")):
        chosen = {site: sites[site] for site in asked}
        batches, span = wire.batches(number), (number / 3, (number + 1) / 3)
        if update == "handed_on":
            wire.run(number, PASS, rounds=3, asked=asked)
            if number == 2:
                # The loop takes the part from the last site of its own round; here that is c in each.
                assert sorted(chosen)[-1] == "c"
            splitnn_round(server, chosen, batches, {site: PASS[site] for site in asked}, *span)
        else:
            wire.run(number, 2, rounds=3, asked=asked)
            splitavg_round(server, chosen, batches, 2, *span)
        finish(wire, asked)
    assert same_bits(all_weights(wire.server, wire.halves), all_weights(server, sites))
