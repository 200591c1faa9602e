import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aggregators.test_fedavg import aggregate, make_update
from fedseg.aggregators.base import AggregationError
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.fednova import FedNova, accumulated_steps
from fedseg.contract.combinations import conflict
from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import Datalist
from fedseg.errors import ConfigurationError
from fedseg.filters.dp_sgd import DPSGD
from fedseg.filters.noise import GaussianNoise, LaplaceNoise
from fedseg.filters.norm_clip import NormClip
from fedseg.filters.sparse_vector import SparseVector
from fedseg.training.trainer import SiteTrainer
from tiny import PLAN


def sites(*triples):
    """Updates of (value, samples, steps)."""
    return [make_update(f"s{i}", {"w": np.array([v])}, n, k) for i, (v, n, k) in enumerate(triples)]


def plan(**training):
    return parse_plan({**PLAN, "training": {**PLAN["training"], **training}})


@pytest.mark.parametrize(
    ("steps", "momentum", "nesterov", "expected"),
    [
        (3, 0.0, False, 3.0),
        (3, 0.0, True, 3.0),
        # b = 1, 1.5, 1.75
        (3, 0.5, False, 4.25),
        # 1 + 0.5 b = 1.5, 1.75, 1.875
        (3, 0.5, True, 5.125),
        (0, 0.9, True, 0.0),
    ],
)
def test_accumulated_steps_by_hand(steps, momentum, nesterov, expected):
    assert accumulated_steps(steps, momentum, nesterov) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 7, 200])
def test_accumulated_steps_are_what_torch_moves_along_a_constant_gradient(steps, momentum, nesterov):
    rate, weight = 0.01, torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=rate, momentum=momentum, nesterov=nesterov and momentum > 0)
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert accumulated_steps(steps, momentum, nesterov) == pytest.approx(-weight.item() / rate, rel=1e-11)


def test_the_defaults_are_the_sgd_of_the_trainer():
    group = SiteTrainer(plan(optimizer="sgd"), "a", Datalist((), ())).optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["dampening"]) == (FedNova().momentum, FedNova().nesterov, 0)


def test_by_hand():
    # Without momentum a = 2, 4, 1; shares 1/8, 3/8, 4/8; tau = (2 + 12 + 4) / 8 = 2.25.
    # Mean direction: (6 / 2 + 3 * (8 / 4) + 4 * (-1)) / 8 = 5/8; update 2.25 * 5/8.
    rule = FedNova(momentum=0.0)
    result = aggregate(rule, sites((6.0, 1, 2), (8.0, 3, 4), (-1.0, 4, 1)))
    assert result["w"].item() == pytest.approx(2.25 * 5 / 8)
    assert rule.last_notes == {"accumulated": {"s0": 2.0, "s1": 4.0, "s2": 1.0}, "effective": 2.25}
    assert rule.last_weights == {"s0": 1 / 8, "s1": 3 / 8, "s2": 4 / 8}


@given(st.lists(st.tuples(st.floats(-100, 100), st.integers(1, 500)), min_size=1, max_size=6), st.integers(1, 300))
def test_equal_steps_are_fedavg_to_the_bit(rows, steps):
    updates = sites(*((value, samples, steps) for value, samples in rows))
    np.testing.assert_array_equal(aggregate(FedNova(), updates)["w"], aggregate(FedAvg(), updates)["w"])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_two_sites_with_unequal_steps_reach_the_optimum_of_their_mean_loss(momentum):
    # Quadratic losses (w - 0)^2 / 2 and (w - 1)^2 / 2 with equal cases: the mean loss has its minimum at 0.5. Local SGD
    # with 1 and 10 steps and plain averaging is drawn towards the site of 10 steps; normalised averaging is not, up to
    # terms of the order of rate times steps. Each round goes a hundred times as far, to arrive sooner.
    rate, steps, ends = 1e-4, {"s0": 1, "s1": 10}, {}

    def local(start, target, count):
        weight = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
        optimizer = torch.optim.SGD([weight], lr=rate, momentum=momentum, nesterov=momentum > 0)
        for _ in range(count):
            weight.grad = weight.detach() - target
            optimizer.step()
        return weight.item() - start

    for rule in (FedNova(momentum), FedAvg()):
        weight = 0.5
        for _ in range(40):
            moves = [(local(weight, float(i), steps[f"s{i}"]), 1, steps[f"s{i}"]) for i in range(2)]
            weight += 100 * aggregate(rule, sites(*moves))["w"].item()
        ends[type(rule).__name__] = weight
    assert ends["FedNova"] == pytest.approx(0.5, abs=0.01)
    assert ends["FedAvg"] > 0.6


def test_with_a_clip_that_binds_the_site_with_the_fewest_steps_has_the_model_to_itself():
    # As above, with both updates clipped to 0.2 rates. Site 0 moves by -min(w, 0.2) rates, divided by 1 step; site 1 by
    # +0.2 rates, divided by 10. They balance at w = 0.02, where plain averaging would have stayed anywhere.
    rate, steps, clip, weight = 1e-4, {"s0": 1, "s1": 10}, 0.2e-4, 0.5
    for _ in range(400):
        moves = [float(np.clip(rate * steps[f"s{i}"] * (i - weight), -clip, clip)) for i in range(2)]
        weight += 100 * aggregate(FedNova(0.0), sites(*zip(moves, (1, 1), (1, 10), strict=True)))["w"].item()
    assert weight == pytest.approx(0.02, abs=0.001)


@pytest.mark.parametrize("filter_class", [NormClip, GaussianNoise, LaplaceNoise, SparseVector, DPSGD])
@pytest.mark.parametrize("rule", [FedNova(0.0), FedNova(0.0, mu=0.01)])
def test_so_filters_that_clip_are_refused(rule, filter_class):
    assert f"how far a site went, which {filter_class.__name__} withholds" in str(conflict([rule, filter_class], False))
    assert conflict([FedAvg(), filter_class], False) is None


def test_a_site_without_steps_does_not_count():
    rule = FedNova(momentum=0.0)
    assert aggregate(rule, sites((6.0, 1, 2), (0.0, 50, 0), (4.0, 1, 4)))["w"].item() == pytest.approx(3 * (3 + 1) / 2)
    assert rule.last_weights["s1"] == 0
    with pytest.raises(AggregationError):
        aggregate(rule, sites((0.0, 5, 0)))


@pytest.mark.parametrize(
    ("rule", "training"),
    [
        (FedNova(), {"optimizer": "sgd", "reset_optimizer": True}),
        (FedNova(momentum=0.5), {"optimizer": "sgd", "momentum": 0.5, "reset_optimizer": True}),
        (FedNova(momentum=0.0, nesterov=False), {"optimizer": "sgd", "momentum": 0}),
    ],
)
def test_fitting_plans_pass(rule, training):
    rule.check_plan(plan(**training))


@pytest.mark.parametrize(
    ("rule", "training", "message"),
    [
        (FedNova(), {"optimizer": "adamw"}, "training.optimizer is 'adamw', but must be sgd with FedNova"),
        (FedNova(momentum=0.5), {"optimizer": "sgd", "reset_optimizer": True}, "momentum is 0.5, but must be 0.9, as"),
        (FedNova(nesterov=False), {"optimizer": "sgd", "reset_optimizer": True}, "nesterov is False, but must be true"),
        (
            FedNova(0.0, mu=0.1),
            {"optimizer": "sgd", "momentum": 0, "schedule": "cosine"},
            "training.schedule is 'cosine', but must be constant with FedNova and FedProx",
        ),
        (FedNova(), {"optimizer": "sgd"}, "training.reset_optimizer is missing, but must be true with FedNova and mom"),
    ],
)
def test_plans_whose_steps_cannot_be_counted_are_refused(rule, training, message):
    with pytest.raises(ConfigurationError, match=message):
        rule.check_plan(plan(**training))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1}, "momentum is 1, but must be a number from 0 to below 1"),
        ({"momentum": -0.1}, "momentum is -0.1"),
        ({"momentum": float("nan")}, "momentum is nan"),
        ({"nesterov": 1}, "nesterov is 1, but must be true or false"),
        ({"mu": -1}, "mu is -1, but must be a number from 0 up"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        FedNova(**arguments)


def test_description():
    assert FedNova().describe() == {"name": "FedNova", "momentum": 0.9, "nesterov": True, "mu": 0.0}


# ------------------------------------------------------------------ with a proximal term


@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 40])
def test_accumulated_steps_are_what_torch_moves_against_a_proximal_term(steps, momentum, nesterov):
    rate, mu, weight = 0.01, 7.0, torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=rate, momentum=momentum, nesterov=nesterov and momentum > 0)
    for _ in range(steps):
        optimizer.zero_grad()
        (weight + mu / 2 * weight.square()).sum().backward()
        optimizer.step()
    moved = accumulated_steps(steps, momentum, nesterov, rate * mu)
    assert moved == pytest.approx(-weight.item() / rate, rel=1e-11)
    if not momentum:
        assert moved == pytest.approx((1 - (1 - rate * mu) ** steps) / (rate * mu), rel=1e-12)
    assert accumulated_steps(steps, momentum, nesterov, 1e-12) == pytest.approx(
        accumulated_steps(steps, momentum, nesterov), rel=1e-9
    )


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_with_fedprox_the_fixed_point_is_the_optimum_of_the_mean_loss_only_if_the_rule_knows_mu(momentum):
    # Losses (w - c)^2 / 2 with c = 1, 0.2, 0 and cases 5, 2, 1: the optimum of their mean is 5.4 / 8. Sites take 12, 4
    # and 2 steps with mu = 60 and a rate of 1e-3, in which mu counts (the pull over a round is up to 0.5) while the
    # losses' own curvature does not.
    rate, mu, targets, cases, steps = 1e-3, 60.0, (1.0, 0.2, 0.0), (5, 2, 1), (12, 4, 2)

    def local(start, target, count):
        weight = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
        optimizer = torch.optim.SGD([weight], lr=rate, momentum=momentum, nesterov=momentum > 0)
        for _ in range(count):
            weight.grad = weight.detach() - target + mu * (weight.detach() - start)
            optimizer.step()
        return weight.item() - start

    ends = []
    for known in (mu, 0.0):
        rule = FedNova(momentum, mu=known)
        rule.check_plan(
            plan(optimizer="sgd", momentum=momentum, reset_optimizer=True, schedule="constant", learning_rate=rate)
        )
        weight = 0.0
        for _ in range(60):
            moves = [local(weight, *each) for each in zip(targets, steps, strict=True)]
            weight += 20 * aggregate(rule, sites(*zip(moves, cases, steps, strict=True)))["w"].item()
        ends.append(weight)
    assert ends[0] == pytest.approx(5.4 / 8, abs=0.005)
    assert abs(ends[1] - 5.4 / 8) > 0.03


def test_the_mu_of_the_rule_is_that_of_the_sites():
    FedNova(mu=0.1).check_pull(0.1)
    FedAvg().check_pull(0.1)
    with pytest.raises(ConfigurationError, match=r"mu is 0\.0, but must be 0\.1, the mu of FedProx at the sites"):
        FedNova().check_pull(0.1)
