"""The mathematics of one split step: what must equal what, to which digit."""

import numpy as np
import pytest
import torch

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.tasks.segmentation.losses import SegmentationLoss
from split_example import (
    EXCLUSIVE,
    OVERLAPPING,
    all_weights,
    batch,
    distance,
    halves,
    plan_of,
    same_bits,
    stream,
    whole,
)
from split_loops import splitavg_round, splitavg_step

SIZES = {"two": {"a": 2, "b": 2}, "unequal": {"a": 1, "b": 3}, "three": {"a": 2, "b": 1, "c": 3}}
SEGRESNET = {"name": "segresnet", "init_filters": 4, "blocks_down": [1, 1], "blocks_up": [1]}
DYNUNET = {"name": "dynunet", "filters": [4, 6, 8], "strides": [1, 2, 2]}
CLIPPED = {"gradient_clip": 0.05, "schedule": "one_cycle", "weight_decay": 1e-3}


pytestmark = pytest.mark.usefixtures("one_thread")


def batches(sizes, seed=0):
    return {site: batch(seed + number, size) for number, (site, size) in enumerate(sizes.items())}


def pooled(drawn):
    return {key: torch.cat([drawn[site][key] for site in sorted(drawn)]) for key in ("image", "classes")}


# --------------------------------------------------- equal to training on all samples together


@pytest.mark.parametrize("task", [OVERLAPPING, EXCLUSIVE], ids=["overlapping", "exclusive"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("update", ["separate", "summed"])
def test_one_step_is_pooled_training(task, sizes, update):
    plan = plan_of(task)
    server, sites = halves(plan, sizes, site_update=update)
    centre, drawn = whole(plan), batches(sizes)
    start = whole(plan)
    splitavg_step(server, sites, drawn, 0.0)
    centre.step(pooled(drawn), 0.0)
    assert distance(centre, start) > 1e-3, "the step must be one"
    assert distance(server, centre) < 1e-10
    if update == "summed":
        assert max(distance(half, centre) for half in sites.values()) < 1e-10
    else:
        # Each site has its own share of the step; the shares add up to the whole one.
        moved = {n: sum(h.weights()[n] - start.weights()[n] for h in sites.values()) for n in sites["a"].weights()}
        expected = {n: centre.weights()[n] - start.weights()[n] for n in moved}
        assert max(np.abs(moved[n] - expected[n]).max() for n in moved) < 1e-10


@pytest.mark.parametrize(("network", "cut"), [(SEGRESNET, "stem"), (DYNUNET, "encoder2"), (DYNUNET, "decoder2")])
def test_one_step_of_other_networks_and_cuts_is_pooled_training(network, cut):
    plan = plan_of(network=network)
    server, sites = halves(plan, "ab", site_update="summed", cut=cut)
    centre, drawn = whole(plan), batches(SIZES["unequal"])
    splitavg_step(server, sites, drawn, 0.0)
    centre.step(pooled(drawn), 0.0)
    assert max(distance(half, centre) for half in (server, *sites.values())) < 1e-10


@pytest.mark.parametrize(
    "optimizer", [{"momentum": 0.9, "learning_rate": 0.1}, {"optimizer": "adamw", "learning_rate": 0.01}]
)
def test_twenty_summed_steps_are_pooled_training(optimizer):
    """Clipping, schedule and weight decay on: the joint norm of both parts is that of the whole network."""
    plan = plan_of(**CLIPPED, **optimizer)
    server, sites = halves(plan, "abc", site_update="summed")
    centre, start = whole(plan), whole(plan)
    sizes = {"a": (1, 2), "b": (2, 2, 1), "c": (1,)}
    splitavg_round(server, sites, {s: stream(s, *sizes[s]) for s in "abc"}, 20, 0.0, 1.0)
    mine = {s: stream(s, *sizes[s]) for s in "abc"}
    for number in range(20):
        centre.step(pooled({s: next(mine[s]) for s in "abc"}), number / 20)
    assert distance(centre, start) > 0.01
    assert max(distance(half, centre) for half in (server, *sites.values())) < 1e-6
    assert same_bits(sites["a"].weights(), sites["c"].weights()), "the parts stay one"
    # Clipping was at work: without it the end is another.
    free = whole(plan_of(**{**CLIPPED, "gradient_clip": 1e9}, **optimizer))
    for number, drawn in zip(range(20), zip(*(stream(s, *sizes[s]) for s in "abc"), strict=True), strict=False):
        free.step(pooled(dict(zip("abc", drawn, strict=True))), number / 20)
    assert distance(free, centre) > 1e-4


@pytest.mark.parametrize("task", [OVERLAPPING, EXCLUSIVE], ids=["overlapping", "exclusive"])
@pytest.mark.parametrize("update", ["separate", "summed"])
def test_private_labels_give_what_shared_ones_give(task, update):
    plan = plan_of(task, batch_dice=False, momentum=0.9)
    results = []
    for labels in ("shared", "private"):
        server, sites = halves(plan, "abc", labels=labels, site_update=update)
        data = {s: stream(s, *sizes) for s, sizes in {"a": (1, 2), "b": (3,), "c": (2, 1)}.items()}
        done = splitavg_round(server, sites, data, 3, 0.0, 1.0)
        results.append((all_weights(server, sites), done))
    (shared, of_shared), (private, of_private) = results
    assert max(np.abs(shared[n] - private[n]).max() for n in shared) < 1e-10
    # Masks of regions are float32, and torch rounds the value of the cross-entropy (not its gradient) to that.
    for one, other in zip(of_shared, of_private, strict=True):
        assert one.loss == pytest.approx(other.loss, abs=1e-6)
        assert one.losses == pytest.approx(other.losses, abs=1e-6)


def test_batch_wise_dice_would_not_add_up():
    """Why it is refused: the n_j/n-weighted gradients of the sites' losses are not the gradient of the common loss."""
    plan = plan_of(EXCLUSIVE)
    drawn, loss = batches(SIZES["unequal"]), SegmentationLoss(plan.task, batch_dice=True)
    logits = torch.randn(4, 3, 8, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    (together,) = torch.autograd.grad(loss(logits, pooled(drawn)["classes"]), logits)
    apart = loss(logits[:1], drawn["a"]["classes"]) / 4 + loss(logits[1:], drawn["b"]["classes"]) * 3 / 4
    (weighted,) = torch.autograd.grad(apart, logits)
    assert float((together - weighted).abs().max() / together.abs().max()) > 0.01


# ----------------------------------------------------------------------------- properties


class Doubled(SegmentationLoss):
    def forward(self, logits, classes):
        return 2 * super().forward(logits, classes)


def test_doubling_the_loss_doubles_the_gradient_of_the_sites():
    plan = plan_of()
    moved = []
    for loss in (SegmentationLoss(plan.task), Doubled(plan.task)):
        server, sites = halves(plan, "ab", loss=loss)
        before = sites["b"].weights()
        splitavg_step(server, sites, batches(SIZES["two"]), 0.0)
        moved.append({n: value - before[n] for n, value in sites["b"].weights().items()})
    assert max(np.abs(value).max() for value in moved[0].values()) > 1e-3
    for name, value in moved[0].items():
        assert np.allclose(moved[1][name], 2 * value, rtol=1e-9, atol=1e-14)


def test_one_site_is_ordinary_split_learning():
    """With one site the two halves are the network, trained as always, to the last bit."""
    plan = plan_of(momentum=0.9)
    server, sites = halves(plan, "a")
    centre = whole(plan)
    data, again = stream("a", 2, 1), stream("a", 2, 1)
    for _ in range(3):
        splitavg_step(server, sites, {"a": next(data)}, 0.5)
        centre.step(next(again), 0.5)
    assert same_bits({**server.weights(), **sites["a"].weights()}, centre.weights())


def test_order_of_arrival_changes_nothing():
    results = []
    for order in ("abc", "cab"):
        server, sites = halves(plan_of(optimizer="adamw"), order, site_update="summed")
        drawn = batches(SIZES["three"])
        features = {s: sites[s].forward(drawn[s]["image"]) for s in order}
        assert list(server.forward(features)) == ["a", "b", "c"]
        found = server.backward_labels({s: drawn[s]["classes"] for s in reversed(order)})
        total = server.step({s: sites[s].backward(found.gradients[s]) for s in order})
        for half in sites.values():
            half.apply(total)
        results.append(all_weights(server, sites))
    assert same_bits(*results)


def test_mean_cut_gradient_is_the_mean_over_sites_sample_by_sample():
    plan, drawn, found = plan_of(), batches({"a": 2, "b": 2, "c": 2}), {}
    for kind in ("own", "mean"):
        server, sites = halves(plan, "abc", cut_gradient=kind)
        server.forward({s: sites[s].forward(drawn[s]["image"]) for s in "abc"})
        found[kind] = server.backward_labels({s: drawn[s]["classes"] for s in "abc"}).gradients
    for name, value in found["own"]["a"].items():
        expected = (value + found["own"]["b"][name] + found["own"]["c"][name]) / 3
        assert float((value - expected).abs().max()) > 1e-6
        for site in "abc":
            assert torch.allclose(found["mean"][site][name], expected, rtol=0, atol=1e-15)


def test_mean_cut_gradient_of_unequal_batches_is_refused():
    server, sites = halves(plan_of(), "ab", cut_gradient="mean")
    with pytest.raises(ConfigurationError, match=r"cut_gradient is 'mean'.*own where batches differ.*'a': 1, 'b': 3"):
        splitavg_step(server, sites, batches(SIZES["unequal"]), 0.0)


def test_averaged_parts_are_the_mean_by_samples():
    plan = plan_of()
    results = {}
    for update in ("separate", "averaged"):
        server, sites = halves(plan, "ab", site_update=update)
        splitavg_round(server, sites, {"a": stream("a", 1), "b": stream("b", 3)}, 2, 0.0, 1.0)
        results[update] = {site: half.weights() for site, half in sites.items()}
    assert same_bits(results["averaged"]["a"], results["averaged"]["b"])
    for name, mean in results["averaged"]["a"].items():
        apart = results["separate"]
        assert np.allclose(mean, (2 * apart["a"][name] + 6 * apart["b"][name]) / 8, rtol=0, atol=1e-14)


# ------------------------------------------------------------------- what goes wrong


def test_a_site_that_does_not_answer_is_left_out():
    """What is left is the iteration of the others alone; a normalisation looks at one sample at a time."""
    plan, drawn = plan_of(batch_dice=False), batches(SIZES["three"])
    results = []
    for present in ("abc", "ac"):
        server, sites = halves(plan, "abc", labels="private")
        predictions = server.forward({s: sites[s].forward(drawn[s]["image"]) for s in present})
        answers = {s: sites[s].loss_gradient(predictions[s], drawn[s]["classes"]) for s in "ac"}
        found = server.backward_gradients({s: a[0] for s, a in answers.items()}, {s: a[1] for s, a in answers.items()})
        assert set(found.gradients) == {"a", "c"}
        for site, gradients in found.gradients.items():
            sites[site].backward(gradients)
        server.step()
        results.append(all_weights(server, sites))
    assert max(np.abs(results[0][n] - results[1][n]).max() for n in results[0]) < 1e-12


def test_an_iteration_that_never_ended_leaves_no_trace():
    plan, drawn, results = plan_of(momentum=0.9), batches(SIZES["two"]), []
    for lost in (False, True):
        server, sites = halves(plan, "ab")
        if lost:
            server.forward({s: sites[s].forward(batch(9, 2)["image"]) for s in "ab"})
            server.backward_labels({s: batch(9, 2)["classes"] for s in "ab"})
        splitavg_step(server, sites, drawn, 0.0)
        results.append(all_weights(server, sites))
    assert same_bits(*results)


def test_gradients_that_nobody_waits_for_are_refused():
    server, sites = halves(plan_of(), "ab")
    drawn = batches(SIZES["two"])
    features = {s: sites[s].forward(drawn[s]["image"]) for s in "ab"}
    with pytest.raises(RefusalError, match="No forward pass"):
        server.backward_labels({s: drawn[s]["classes"] for s in "ab"})
    server.forward(features)
    found = server.backward_labels({s: drawn[s]["classes"] for s in "ab"})
    with pytest.raises(RefusalError, match="not those of the features"):
        sites["a"].backward({name: value[:1] for name, value in found.gradients["a"].items()})
    sites["b"].backward(found.gradients["b"])
    with pytest.raises(RefusalError, match="not those of the features"):
        sites["b"].backward(found.gradients["b"])
    sites["b"].forward(drawn["b"]["image"])
    sites["b"].forget()
    with pytest.raises(RefusalError, match="not those of the features") as error:
        sites["b"].backward(found.gradients["b"])
    assert error.value.reason == "state"


@pytest.mark.parametrize("update", ["separate", "summed"])
def test_no_gradient_is_used_twice(update):
    server, sites = halves(plan_of(), "a", site_update=update)
    splitavg_step(server, sites, {"a": batch(0, 1)}, 0.0)
    before = all_weights(server, sites)
    with pytest.raises(RefusalError, match="no backward pass since its last step") as error:
        server.step({"a": sites["a"].gradients()})
    assert error.value.reason == "state"
    assert same_bits(all_weights(server, sites), before)


def spoiled(change):
    """Features and labels of two sites, one of them not as it should be."""
    server, sites = halves(plan_of(), "ab")
    drawn = batches(SIZES["two"])
    features = {s: sites[s].forward(drawn[s]["image"]) for s in "ab"}
    classes = {s: drawn[s]["classes"] for s in "ab"}
    change(features, classes)
    server.forward(features)
    server.backward_labels(classes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f, c: f.clear(), "No site has sent features"),
        (lambda f, c: f.update(b={}), r"features of b are \[\], not \['encoder1'\]"),
        (lambda f, c: f.update(b={**f["b"], "more": f["b"]["encoder1"]}), "features of b are"),
        (lambda f, c: f.update(b={"encoder1": f["b"]["encoder1"][:0]}), "not of one batch"),
        (lambda f, c: f.update(b={"encoder1": f["b"]["encoder1"][0]}), "not of one batch"),
        (lambda f, c: c.pop("b"), "labels of b"),
        (lambda f, c: c.update(b=c["b"][:1]), "labels of b"),
        (lambda f, c: c.update(b=c["b"].float()), "whole numbers"),
        (lambda f, c: c.update(b=c["b"] + 3), "classes that the task does not have"),
    ],
)
def test_messages_that_do_not_fit_are_refused(change, said):
    with pytest.raises(RefusalError, match=said) as error:
        spoiled(change)
    assert error.value.reason == "data"


def test_tensors_of_a_site_must_be_of_one_batch():
    server, sites = halves(plan_of(), "a", cut="encoder2")
    features = sites["a"].forward(batch(0, 2)["image"])
    features["encoder2"] = features["encoder2"][:1]
    with pytest.raises(RefusalError, match="not of one batch"):
        server.forward({"a": features})


def test_gradients_at_predictions_must_fit():
    plan = plan_of(batch_dice=False)
    server, sites = halves(plan, "ab", labels="private")
    features = {s: sites[s].forward(batch(0, 2)["image"]) for s in "ab"}
    predictions = server.forward(features)
    for gradients, said in (
        ({}, "at least from one"),
        ({"a": predictions["a"], "z": predictions["a"]}, "whose features have come"),
        ({"a": predictions["a"][:1]}, "gradient of a is not"),
    ):
        with pytest.raises(RefusalError, match=said):
            server.backward_gradients(gradients, dict.fromkeys(gradients, 0.0))


def test_sums_of_other_parts_are_refused():
    server, sites = halves(plan_of(), "ab", site_update="summed")
    drawn = batches(SIZES["two"])
    server.forward({s: sites[s].forward(drawn[s]["image"]) for s in "ab"})
    found = server.backward_labels({s: drawn[s]["classes"] for s in "ab"})
    back = {s: sites[s].backward(found.gradients[s]) for s in "ab"}
    with pytest.raises(RefusalError, match="No site has sent"):
        server.step()
    with pytest.raises(RefusalError, match="gradients of b"):
        server.step({"a": back["a"], "b": dict(list(back["b"].items())[1:])})
    with pytest.raises(RefusalError, match="sum of gradients"):
        sites["a"].apply(dict(list(back["a"].items())[1:]))


@pytest.mark.parametrize("update", ["separate", "summed"])
def test_a_gradient_that_is_not_finite_changes_nothing(update):
    server, sites = halves(plan_of(), "a", site_update=update)
    before, drawn = all_weights(server, sites), batch(0, 2)
    server.forward({"a": sites["a"].forward(drawn["image"])})
    found = server.backward_labels({"a": drawn["classes"]})
    poisoned = {name: value * float("nan") for name, value in found.gradients["a"].items()}
    with pytest.raises(RefusalError, match="not finite") as error:
        server.step({"a": sites["a"].backward(poisoned)})
    assert error.value.reason == "loss"
    with pytest.raises(RefusalError, match="not finite"):
        sites["a"].apply({name: torch.full_like(p, float("inf")) for name, p in sites["a"].parameters().items()})
    assert same_bits(all_weights(server, sites), before)


@pytest.mark.parametrize("labels", ["shared", "private"])
def test_a_loss_that_is_not_finite_is_refused(labels):
    server, sites = halves(plan_of(batch_dice=False), "a", labels=labels)
    drawn = batch(0, 1)
    features = sites["a"].forward(drawn["image"])
    predictions = server.forward({"a": {name: value * float("inf") for name, value in features.items()}})
    ask = {
        "shared": lambda: server.backward_labels({"a": drawn["classes"]}),
        "private": lambda: sites["a"].loss_gradient(predictions["a"], drawn["classes"]),
    }
    with pytest.raises(RefusalError, match="training loss is not finite"):
        ask[labels]()


def test_mixed_precision_trains_nearly_the_same(monkeypatch):
    """As on a GPU; the library that computes bfloat16 on CPUs is left out: its gradients are not to be trusted."""
    for place in ("steps", "split.half"):
        monkeypatch.setattr(f"fedseg.training.{place}.autocast", lambda *_: torch.autocast("cpu", torch.bfloat16))
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    plan = plan_of()
    server, sites = halves(plan, "ab", double=False, site_update="summed")
    centre, exact = whole(plan, double=False), whole(plan, double=False)
    start, drawn = whole(plan, double=False), batches(SIZES["unequal"])
    splitavg_step(server, sites, drawn, 0.0)
    centre.step(pooled(drawn), 0.0)
    monkeypatch.undo()
    exact.step(pooled(drawn), 0.0)
    assert distance(centre, exact) > 0
    for half in (server, sites["a"]):
        assert distance(half, centre) < 0.02 * distance(centre, start)


@pytest.mark.parametrize("precision", ["auto", "bfloat16", "float32"])
def test_a_cpu_computes_in_float32_whatever_a_plan_asks_for(precision):
    asked, plain = whole(plan_of(precision=precision), double=False), whole(plan_of(), double=False)
    for centre in (asked, plain):
        centre.step(pooled(batches(SIZES["two"])), 0.0)
    assert distance(asked, plain) == 0
