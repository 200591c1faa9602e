"""Loops over rounds against slow ones written by hand, and runs that stop and go on."""

import itertools

import numpy as np
import pytest
import torch

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.site.state import SiteState
from fedseg.training.split.halves import plan_cost
from fedseg.training.split.weights import average_parts
from split_baselines import cyclic_round, pooled_round
from split_bytes import step_bytes
from split_example import all_weights, batch, distance, halves, plan_of, same_bits, stream, whole
from split_loops import splitavg_round, splitavg_step, splitnn_round

MOMENTUM, RATE = 0.9, 0.1
STEPS = {"a": 2, "b": 1, "c": 2}


pytestmark = pytest.mark.usefixtures("one_thread")


def by_hand(plan, owner, rate=lambda visit, step, steps: RATE):
    """Two rounds of one network that visits sites a, b, c, by the formulas of SGD with Nesterov's momentum.

    v = 0.9 v + g, w = w - r (g + 0.9 v); ``owner`` says whose v a parameter has while it is at a site, and ``rate``
    what r is.
    """
    network = whole(plan)
    parameters, velocity = network.parameters(), {}
    data = {site: stream(site, 1, 2) for site in STEPS}
    for visit, site in enumerate("abcabc"):
        for step in range(STEPS[site]):
            drawn = next(data[site])
            loss = network.loss(network.part(drawn["image"]), drawn["classes"])
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                key = (owner(name, site), name)
                velocity[key] = MOMENTUM * velocity.get(key, 0) + gradient
                parameter.data -= rate(visit, step, STEPS[site]) * (gradient + MOMENTUM * velocity[key])
    return network


def test_sequential_split_learning_by_hand():
    plan = plan_of(momentum=MOMENTUM)
    server, sites = halves(plan, "abc")
    data = {site: stream(site, 1, 2) for site in STEPS}
    for number in range(2):
        done = splitnn_round(server, sites, data, STEPS, number / 2, (number + 1) / 2)
        assert [set(iteration.bytes) for iteration in done] == [{"a"}, {"a"}, {"b"}, {"c"}, {"c"}]
    # The first parts have the optimizer of the site where they are, the rest has the server's.
    expected = by_hand(plan, lambda name, site: site if name in sites["a"].parameters() else "server")
    assert distance(server, expected) < 1e-12
    assert distance(sites["c"], expected) < 1e-12
    assert distance(sites["b"], expected) > 1e-4, "the part went on from b to c"


@pytest.mark.parametrize("schedule", ["constant", "polynomial"])
def test_cyclic_weight_transfer_by_hand(schedule):
    plan = plan_of(momentum=MOMENTUM, schedule=schedule)
    sites, data = {site: whole(plan) for site in "abc"}, {site: stream(site, 1, 2) for site in STEPS}
    for number in range(2):
        assert len(cyclic_round(sites, data, STEPS, number / 2, (number + 1) / 2)) == 5

    def rate(visit, step, steps):
        """Each visit runs from the start to the end of its round, which is a half of the whole: visits 0-2 and 3-5."""
        progress = (visit // 3 + step / steps) / 2
        return RATE if schedule == "constant" else RATE * (1 - progress) ** 0.9

    expected = by_hand(plan, lambda name, site: site, rate)
    assert distance(sites["c"], expected) < 1e-12
    assert distance(sites["b"], expected) > 1e-4


def test_what_a_visit_leaves_is_what_came_and_the_update_rounded():
    """As over FLARE, where the update travels: (w + (v - w)) is not v in float32."""
    plan = plan_of(learning_rate=0.01)
    sites = {"a": whole(plan, double=False)}
    before = sites["a"].weights()
    drawn = batch(0, 2)
    cyclic_round(sites, {"a": iter([{**drawn, "image": drawn["image"].float()}])}, {"a": 1}, 0.0, 1.0)
    alone = whole(plan, double=False)
    alone.step({**drawn, "image": drawn["image"].float()}, 0.0)
    after = sites["a"].weights()
    assert not same_bits(after, alone.weights())
    for name, value in alone.weights().items():
        np.testing.assert_array_equal(after[name], before[name] + (value - before[name]))


def test_baselines_of_one_site_are_one():
    """Pooled, cyclic, sequential and SplitAVG differ in what they do with several sites, in nothing else."""
    plan = plan_of(optimizer="adamw", schedule="one_cycle", learning_rate=0.01)
    centre, visited = whole(plan), whole(plan)
    average, split = halves(plan, "a"), halves(plan, "a")
    pooled_round(centre, {"a": stream("a", 2)}, 4, 0.0, 0.5)
    cyclic_round({"a": visited}, {"a": stream("a", 2)}, {"a": 4}, 0.0, 0.5)
    splitavg_round(*average, {"a": stream("a", 2)}, 4, 0.0, 0.5)
    splitnn_round(*split, {"a": stream("a", 2)}, {"a": 4}, 0.0, 0.5)
    for other in ({**server.weights(), **sites["a"].weights()} for server, sites in (average, split)):
        assert same_bits(centre.weights(), other)
    # What is carried is the sum of what came and the update.
    assert distance(visited, centre) < 1e-15


def test_the_learning_rate_follows_the_whole_job():
    plan = plan_of(schedule="polynomial")
    server, sites = halves(plan, "ab")
    splitavg_round(server, sites, {s: stream(s, 1) for s in "ab"}, 4, 0.5, 0.75)
    # The last of four steps from 0.5 to 0.75 starts at 0.6875; 0.1 (1 - 0.6875) ** 0.9 = 0.0351.
    rates = {half.optimizer.param_groups[0]["lr"] for half in (server, *sites.values())}
    assert rates == {0.1 * (1 - 0.6875) ** 0.9}


# ------------------------------------------------------------------------ stop and go on


@pytest.mark.parametrize("update", ["separate", "summed"])
@pytest.mark.parametrize("optimizer", [{"optimizer": "adamw"}, {"momentum": 0.9}], ids=["adamw", "sgd"])
def test_a_saved_run_goes_on_to_the_bit(tmp_path, update, optimizer):
    """With noise from a generator and rounded messages, over a file, in new objects."""
    plan = plan_of(**optimizer, schedule="one_cycle", learning_rate=0.01)
    split = {"site_update": update, "message": "float16", "feature_noise": 0.1}

    def steps(halves_of_all, first, last):
        server, sites = halves_of_all
        for number in range(first, last):
            drawn = {site: batch(10 * number + ord(site), 1) for site in sites}
            for value in drawn.values():
                value["image"] = value["image"].float()
            splitavg_step(server, sites, drawn, number / 6)
        return server, sites

    through = steps(halves(plan, "ab", double=False, **split), 0, 6)
    server, sites = steps(halves(plan, "ab", double=False, **split), 0, 3)
    stores = {name: SiteState(tmp_path / name, "run") for name in ("server", *sites)}
    for name, half in {"server": server, **sites}.items():
        stores[name].save(0, half.state())
    steps((server, sites), 3, 4)  # what is saved does not change any more
    server, sites = halves(plan, "ab", double=False, **split)
    for name, half in {"server": server, **sites}.items():
        half.load_state(stores[name].load(1))
    assert same_bits(all_weights(*steps((server, sites), 3, 6)), all_weights(*through))


def test_a_state_is_a_copy():
    server, sites = halves(plan_of(momentum=0.9), "a")
    splitavg_step(server, sites, {"a": batch(0, 1)}, 0.0)
    kept, weights = sites["a"].state(), sites["a"].weights()
    splitavg_step(server, sites, {"a": batch(1, 1)}, 0.0)
    assert not same_bits(sites["a"].weights(), weights)
    sites["a"].load_state(kept)
    assert same_bits(sites["a"].weights(), weights)
    assert sites["a"].steps == 1


def test_the_state_of_another_half_is_refused():
    server, sites = halves(plan_of(), "a")
    for state in (server.state(), {}, {"weights": sites["a"].state()["weights"]}):
        with pytest.raises(RefusalError, match="not that of this part") as error:
            sites["a"].load_state(state)
        assert error.value.reason == "state"


def test_a_site_can_take_over_the_state_of_another():
    """With summed gradients the parts are one, so a site that was away goes on from any other's state."""
    plan = plan_of(optimizer="adamw")
    server, sites = halves(plan, "abc", site_update="summed")
    splitavg_step(server, sites, {s: batch(ord(s), 1) for s in "abc"}, 0.0)
    present = {s: sites[s] for s in "ab"}
    splitavg_step(server, present, {s: batch(ord(s) + 9, 1) for s in "ab"}, 0.1)
    sites["c"].load_state(sites["a"].state())
    splitavg_step(server, sites, {s: batch(ord(s) + 99, 1) for s in "abc"}, 0.2)
    assert same_bits(sites["a"].state()["weights"], sites["c"].state()["weights"])


# --------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    ("labels", "update", "message"),
    itertools.product(("shared", "private"), ("separate", "summed"), ("float16", "float32")),
)
def test_bytes_of_a_step_are_those_foretold(labels, update, message):
    plan = plan_of(batch_dice=False)
    split = {"labels": labels, "site_update": update, "message": message, "cut": "encoder2"}
    server, sites = halves(plan, "ab", double=False, **split)
    drawn = {"a": batch(0, 1), "b": batch(1, 3)}
    for value in drawn.values():
        value["image"] = value["image"].float()
    found = splitavg_step(server, sites, drawn, 0.0).bytes
    cost = plan_cost(plan, server.split)
    assert found == {"a": step_bytes(cost, server.split, 1), "b": step_bytes(cost, server.split, 3)}
    # By hand, without the part's own gradients: 4 features of 4^3 voxels and 8 of 2^3 cross; logits are 2 of 8^3.
    if (labels, update, message) == ("shared", "separate", "float32"):
        features = 4 * (4 * 4**3 + 8 * 2**3)
        assert (found["a"].up, found["a"].down) == (features + 8**3, features)
    if (labels, update, message) == ("private", "separate", "float16"):
        values, logits = 2 * (4 * 4**3 + 8 * 2**3) + 2 * 8, 2 * 2 * 8**3 + 8
        assert (found["a"].up, found["a"].down) == (values + logits, values + logits)


@pytest.mark.parametrize("labels", ["shared", "private"])
def test_rounded_messages_train_nearly_the_same(labels):
    """Gradients at the cut are so small here that float16 without its scale would lose most of them."""
    plan = plan_of(batch_dice=False, momentum=0.9)
    ends, start = {}, halves(plan, "a", double=False)[0]
    for message in ("float32", "float16"):
        server, sites = halves(plan, "ab", double=False, labels=labels, message=message)
        for number in range(5):
            drawn = {s: batch(10 * number + ord(s), 2) for s in "ab"}
            splitavg_step(server, sites, {s: {**b, "image": b["image"].float()} for s, b in drawn.items()}, 0.0)
        ends[message] = (server, sites)
    for other, reference in (
        (ends["float16"][0], ends["float32"][0]),
        (ends["float16"][1]["a"], ends["float32"][1]["a"]),
    ):
        assert 0 < distance(other, reference) < 2e-3
    assert distance(start, ends["float32"][0]) > 0.05


# ------------------------------------------------------------------------------ averages


def test_an_average_by_hand():
    first = {"w": np.array([1.0, 2.0], np.float32), "count": np.array(3)}
    second = {"w": np.array([5.0, 0.0], np.float32), "count": np.array(9)}
    mean = average_parts({"b": second, "a": first}, {"a": 3, "b": 1})
    assert mean["w"].tolist() == [2.0, 1.5]
    assert mean["w"].dtype == np.float32
    assert mean["count"] == 3


@pytest.mark.parametrize("samples", [{"a": 1}, {"a": 0, "b": 0}, {"a": 1, "b": -1}])
def test_an_average_needs_samples(samples):
    part = {"w": np.ones(2, np.float32)}
    with pytest.raises(ConfigurationError, match="samples"):
        average_parts({"a": part, "b": part}, samples)


def test_an_average_of_other_parts_is_refused():
    with pytest.raises(RefusalError, match="missing"):
        average_parts({"a": {"w": np.ones(2)}, "b": {"v": np.ones(2)}}, {"a": 1, "b": 1})
