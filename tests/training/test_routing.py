"""Test-time routing: its terms against slow loops, and what adaptation may and may not change."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from fedseg.allowed import settings
from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError, DataError
from fedseg.networks.routed import RoutedNetwork
from fedseg.networks.weights import get_weights, set_weights
from fedseg.tasks.objective import objective_of
from fedseg.training.inference import infer_logits
from fedseg.training.prepare import prepare_case
from fedseg.training.routing import RoutingSettings, adapt_routing, border, entropy_of, routing_loss
from hooked import make_trainer
from tiny import PLAN, make_sites

CPU = torch.device("cpu")
DRAW = torch.Generator().manual_seed(2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("data"), {"a": (4, 2), "b": (4, 2)})


def plan():
    return parse_plan(PLAN)


def mix(weights):
    network = plan().build_network()
    set_weights(network, weights[0])
    return RoutedNetwork(network, weights, (1, 1, 16, 16, 16))


def fresh(count=2):
    found = []
    for seed in range(count):
        found.append(get_weights(parse_plan({**PLAN, "seed": seed}).build_network()))
    return found


def logits(network, task, case):
    return infer_logits(network, task, prepare_case(task, case, training=False).image, 0.25, CPU)


def test_entropy_of_regions_that_exclude_each_other_is_that_of_all_classes():
    values = torch.softmax(torch.randn(2, 3, 2, 2, 2, generator=DRAW), dim=1)
    expected = []
    for image, x, y, z in itertools.product(range(2), repeat=4):
        expected.append(-sum(p * math.log(p) for p in values[image, :, x, y, z].tolist()))
    assert float(entropy_of(values[:, 1:], True)) == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert float(entropy_of(torch.full((1, 2, 2, 2, 2), 1 / 3), True)) == pytest.approx(math.log(3))


def test_entropy_of_regions_that_overlap_is_the_mean_of_their_own():
    values = torch.rand(2, 2, 2, 2, 2, generator=DRAW)
    expected = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in values.flatten().tolist()]
    assert float(entropy_of(values, False)) == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@pytest.mark.parametrize("exclusive", [True, False])
def test_certain_predictions_have_no_entropy(exclusive):
    certain = torch.zeros(1, 2, 3, 3, 3)
    certain[:, 0, 1] = 1.0
    assert float(entropy_of(certain, exclusive)) == 0.0


@pytest.mark.parametrize("width", [1, 3, 5, 21])
def test_the_border_is_the_spread_in_each_cube(width):
    values, reach = torch.rand(1, 1, 4, 5, 3, generator=DRAW), width // 2
    found = border(values, width)[0, 0]
    for x, y, z in itertools.product(range(4), range(5), range(3)):
        near = [slice(max(0, at - reach), at + reach + 1) for at in (x, y, z)]
        cube = values[(0, 0, *near)]
        assert float(found[x, y, z]) == pytest.approx(float(cube.max() - cube.min()))


def test_the_border_of_a_flat_image_is_nothing():
    assert not border(torch.full((1, 2, 4, 4, 4), 0.3), 3).any()


def test_the_loss_is_the_sum_of_its_weighted_terms():
    network, kind = mix(fresh()), objective_of(plan().task)
    patch = torch.randn(1, 1, 16, 16, 16, generator=DRAW)
    probabilities = kind.activate(network(patch))
    nothing = {"entropy": 0.0, "consistency": 0.0, "smoothness": 0.0}

    def loss(**given):
        return float(routing_loss(network, kind, patch, RoutingSettings(**{**nothing, **given})).detach())

    assert loss() == 0.0
    assert loss(entropy=2.0) == pytest.approx(2 * float(entropy_of(probabilities, False).detach()))
    assert loss(smoothness=0.5, width=3) == pytest.approx(0.5 * float(border(probabilities, 3).sum().detach()))
    every = {"entropy": 2.0, "consistency": 3.0, "smoothness": 0.1}
    assert loss(**every) == pytest.approx(sum(loss(**{name: value}) for name, value in every.items()), rel=1e-5)
    assert loss(consistency=1.0) > 0


def test_a_view_without_noise_is_consistent_where_the_network_does_not_mind_flips():
    kind, patch = objective_of(plan().task), torch.randn(1, 1, 16, 16, 16, generator=DRAW)
    only = RoutingSettings(entropy=0.0, smoothness=0.0, noise=0.0)
    pointwise = torch.nn.Conv3d(1, 2, 1)
    for step in range(4):
        assert float(routing_loss(pointwise, kind, patch, only, step).detach()) == pytest.approx(0, abs=1e-12)
    network = mix(fresh())
    assert any(float(routing_loss(network, kind, patch, only, step).detach()) > 1e-9 for step in range(8))


def test_without_epochs_the_gates_stay_equal(data):
    network = mix(fresh(3))
    before = copy.deepcopy(network.state_dict())
    cases = read_datalist(data / "a").validation
    assert adapt_routing(network, plan().task, cases, RoutingSettings(epochs=0), CPU).losses == ()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_one_model_stays_itself_however_long_it_is_adapted(data):
    weights, cases, task = fresh(1), read_datalist(data / "a").validation, plan().task
    alone = plan().build_network()
    set_weights(alone, weights[0])
    network = mix(weights)
    adapted = adapt_routing(network, task, cases, RoutingSettings(epochs=2, learning_rate=0.1), CPU)
    assert adapted.shares == (1.0,)
    assert torch.equal(logits(network, task, cases[0]), logits(alone.eval(), task, cases[0]))


def test_adaptation_lowers_the_loss_and_changes_routers_only(data):
    """A trained model beside a fresh one: entropy moves the gates towards the one that is sure."""
    trainer = make_trainer(read_datalist(data / "a"))
    weights = fresh()
    for number in range(6):
        result = trainer.train_round(weights[0], number, 6)
        weights[0] = result.weights
    network, cases, task = mix(weights), read_datalist(data / "b").validation, plan().task
    before = copy.deepcopy(dict(network.named_parameters()))
    adapted = adapt_routing(network, task, cases, RoutingSettings(epochs=8, learning_rate=0.02), CPU)
    assert np.mean(adapted.losses[-2:]) < np.mean(adapted.losses[:2])
    assert sum(adapted.shares) == pytest.approx(1, abs=1e-5)
    assert max(adapted.shares) - min(adapted.shares) > 0.02
    moved = {n for n, value in network.named_parameters() if not torch.equal(value, before[n])}
    assert moved
    assert all(".router." in name for name in moved)
    assert not network.training
    assert not any(module.training for module in network.modules())


def test_an_adaptation_follows_from_its_seed_and_leaves_the_generator_alone(data):
    cases, task, found = read_datalist(data / "a").validation, plan().task, []
    for seed in (0, 0, 1):
        network, before = mix(fresh()), torch.random.get_rng_state()
        adapted = adapt_routing(network, task, cases, RoutingSettings(epochs=2, seed=seed), CPU)
        assert torch.equal(torch.random.get_rng_state(), before)
        found.append((adapted.losses, network.routers()[0].second.bias.tolist()))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_labels_play_no_part_and_a_case_that_cannot_be_read_is_passed_over(data, tmp_path):
    cases, task = read_datalist(data / "a").validation, plan().task
    from dataclasses import replace

    bare = [replace(case, label=None) for case in cases]
    gone = replace(cases[0], images=(tmp_path / "gone.nii.gz",), patient="gone")
    losses = [adapt_routing(mix(fresh()), task, each, RoutingSettings(epochs=1), CPU).losses for each in (cases, bare)]
    assert losses[0] == losses[1]
    assert adapt_routing(mix(fresh()), task, [*cases, gone], RoutingSettings(epochs=1), CPU).losses
    with pytest.raises(DataError, match=r"None of the 1 case\(s\) can be read, so no gates"):
        adapt_routing(mix(fresh()), task, [gone], RoutingSettings(epochs=1), CPU)


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", -1), ("learning_rate", 0), ("entropy", -1), ("width", 0), ("noise", "a")]
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ConfigurationError, match=rf"routing\.{name} is "):
        settings(RoutingSettings, {name: value}, "routing")
