from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fedseg.aggregators.control_variates import ControlVariates
from fedseg.contract.plan import parse_plan
from fedseg.contract.settings import parse_training
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.weights import get_weights, is_averaged
from fedseg.training.methods.scaffold import Scaffold
from hooked import (
    SGD,
    assert_differ,
    assert_same,
    check_seeded_and_restarted,
    make_trainer,
    plain_rounds,
    run_rounds,
    start_of,
)
from tiny import PLAN, make_sites


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (4, 1)}) / "a")


class Quadratic(nn.Module):
    """curvature / 2 * (w - optimum)^2 in one parameter."""

    def __init__(self, curvature, optimum):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.curvature, self.optimum = curvature, optimum

    def forward(self):
        return (self.curvature / 2 * (self.w - self.optimum) ** 2).sum()


def local_round(network, hook, received, control, rates):
    """Local steps of a site whose data is the quadratic; returns the update of w and the extra arrays."""
    with torch.no_grad():
        network.w.fill_(received)
    optimizer = torch.optim.SGD(network.parameters(), lr=rates[0])
    trainer = SimpleNamespace(
        network=network, optimizer=optimizer, received_shared_arrays={"control/w": np.array([control])}
    )
    weights = {"w": np.array([received])}
    if hook is not None:
        hook.before_round(trainer, weights, 0)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        network().backward()
        if hook is not None:
            hook.after_backward(trainer)
        optimizer.step()
        if hook is not None:
            hook.after_step(trainer)
    if hook is None:
        return network.w.item() - received, {}
    hook.after_round(trainer, weights, 0)
    return network.w.item() - received, hook.shared_arrays(trainer)


def federate(sites, rounds, rates, with_scaffold, start=0.0):
    """Rounds over quadratic sites (uniform mean); returns w after the last round and the server's c."""
    variates = ControlVariates()
    variates.set_plan(None, {"w": np.zeros(1)})
    variates.start(len(sites))
    hooks = {name: Scaffold() if with_scaffold else None for name in sites}
    w = start
    for _ in range(rounds):
        updates = []
        for name, network in sites.items():
            control = float(variates.outgoing("a")["control/w"][0])
            update, shared = local_round(network, hooks[name], w, control, rates)
            updates.append(update)
            if with_scaffold:
                variates.accept(name, shared)
        variates.finish_round(dict.fromkeys(sites, 1))
        w += sum(updates) / len(updates)
    return w, float(variates.outgoing("a")["control/w"][0])


def test_one_round_by_hand():
    """(w - 1)^2 from w = 0 with rate 0.1, c = 0.5 and c_i = 0.

    Corrected gradients: -2 + 0.5 = -1.5, so w = 0.15; then 2 * (0.15 - 1) + 0.5 = -1.2, so w = 0.27.
    c_i+ = 0 - 0.5 + (0 - 0.27) / (2 * 0.1) = -1.85, the mean of the plain gradients -2 and -1.7.
    """
    hook = Scaffold()
    update, shared = local_round(Quadratic(2.0, 1.0), hook, 0.0, 0.5, [0.1, 0.1])
    assert update == pytest.approx(0.27)
    assert shared["control/w"] == pytest.approx(-1.85)
    assert hook.state()["control"]["w"].item() == pytest.approx(-1.85)


def test_changing_rates_weigh_each_gradient_by_its_step():
    """Rates 0.1 and 0.3: gradients -2 and 2 * (0.2 - 1) = -1.6; (0.1 * -2 + 0.3 * -1.6) / 0.4 = -1.7."""
    _, shared = local_round(Quadratic(2.0, 1.0), Scaffold(), 0.0, 0.0, [0.1, 0.3])
    assert shared["control/w"] == pytest.approx(-1.7)


def test_client_drift_goes_away():
    """Two sites of unequal curvature, ten local steps: the optimum of the sum is (1 * 0 + 4 * 1) / 5 = 0.8.

    FedAvg ends where the mean of the local moves is 0: with r_i = 1 - (1 - rate * curvature_i)^10 at
    sum(r_i * optimum_i) / sum(r_i), which is pulled towards the flatter site.
    """
    sites = {"a": Quadratic(1.0, 0.0), "b": Quadratic(4.0, 1.0)}
    rates = [0.1] * 10
    moves = [1 - 0.9**10, 1 - 0.6**10]
    drifted, _ = federate(sites, 100, rates, with_scaffold=False)
    assert drifted == pytest.approx(moves[1] / sum(moves), abs=1e-9)
    assert abs(drifted - 0.8) > 0.1
    corrected, control = federate(sites, 100, rates, with_scaffold=True)
    assert corrected == pytest.approx(0.8, abs=1e-9)
    assert control == pytest.approx(0.0, abs=1e-9)  # the mean gradient at the optimum


def test_equal_sites_follow_fedavg():
    """With equal sites c = c_i after every round, so nothing is corrected."""
    sites = {"a": Quadratic(2.0, 1.0), "b": Quadratic(2.0, 1.0)}
    corrected, _ = federate(sites, 4, [0.1] * 3, with_scaffold=True)
    plain, _ = federate(sites, 4, [0.1] * 3, with_scaffold=False)
    assert corrected == pytest.approx(plain, rel=1e-12)


# ------------------------------------------------------------ in a trainer


def zeros(datalist):
    weights = start_of(make_trainer(datalist))
    return {f"control/{name}": np.zeros_like(value) for name, value in weights.items()}


def ones(datalist, value):
    return {name: np.full_like(array, value) for name, array in zeros(datalist).items()}


def test_a_first_round_with_zeros_is_plain_training_to_the_last_bit(datalist):
    trainer = make_trainer(datalist, [Scaffold()], changes=SGD)
    start = start_of(trainer)
    result = trainer.train_round(start, 0, 1, zeros(datalist))
    assert_same(result.update, make_trainer(datalist, changes=SGD).train_round(start, 0, 1).update)
    assert set(result.shared) == set(zeros(datalist))
    assert any(value.any() for value in result.shared.values())


def test_zeros_all_along_are_plain_training_to_the_last_bit(datalist):
    """A site that is new in every round has c_i = 0; the server keeps c = 0."""

    def newcomer():
        return make_trainer(datalist, [Scaffold()], changes=SGD)

    assert_same(run_rounds(newcomer, lambda number: {"shared": zeros(datalist)}), plain_rounds(datalist, SGD))


def test_the_own_control_variate_is_the_mean_gradient(datalist):
    """One step on all cases: c_i is its gradient, computed again without a trainer's loop."""
    changes = {**SGD, "batch_size": 4, "augmentation": "none", "gradient_clip": 1e9}
    trainer = make_trainer(datalist, [Scaffold()], changes=changes)
    batch = next(trainer.batches(0, 0))
    result = trainer.train_round(start_of(trainer), 0, 1, zeros(datalist))
    other = make_trainer(datalist, changes=changes)
    other.loss(other.network(batch["image"]), batch["classes"]).backward()
    for name, parameter in other.network.named_parameters():
        # w - (w - rate * g) keeps about 1e-7 / rate of g
        np.testing.assert_allclose(result.shared[f"control/{name}"], parameter.grad, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_clip_bounds_the_corrected_step(datalist):
    changes = {**SGD, "batch_size": 4, "gradient_clip": 1.0}
    trainer = make_trainer(datalist, [Scaffold()], changes=changes)
    update = trainer.train_round(start_of(trainer), 0, 1, ones(datalist, 100.0)).update
    length = np.sqrt(sum(float((v.astype(np.float64) ** 2).sum()) for v in update.values()))
    assert length == pytest.approx(0.05 * 1.0, rel=1e-3)


def test_training_is_seeded_and_survives_a_restart(datalist, tmp_path):
    def received(number):
        return {"shared": ones(datalist, 0.01 * number)}

    assert_differ(
        check_seeded_and_restarted(datalist, Scaffold, tmp_path, received, SGD), plain_rounds(datalist, SGD, received)
    )


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda e: {}, "sent no control variates"),
        (lambda e: {n: v for i, (n, v) in enumerate(e.items()) if i}, "missing"),
        (lambda e: {n: v[..., None] for n, v in e.items()}, "shape"),
        (lambda e: {n: v * np.nan for n, v in e.items()}, "not finite"),
    ],
)
def test_control_variates_that_do_not_fit_are_refused(datalist, spoil, said):
    trainer = make_trainer(datalist, [Scaffold()], changes=SGD)
    with pytest.raises(RefusalError, match=said) as error:
        trainer.train_round(start_of(trainer), 0, 1, spoil(zeros(datalist)))
    assert error.value.reason == "weights"


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"optimizer": "adamw"}, "training.optimizer"), ({**SGD, "momentum": 0.9}, "training.momentum")],
)
def test_other_optimizers_are_refused_when_the_trainer_is_built(datalist, changes, named):
    with pytest.raises(ConfigurationError, match=rf"{named} is .* with scaffold\. SCAFFOLD needs plain"):
        make_trainer(datalist, [Scaffold()], changes=changes)


@pytest.mark.parametrize("network", ["residual_unet", "dynunet", "segresnet"])
def test_every_averaged_array_of_every_network_has_a_control_variate(network):
    plan = parse_plan({**PLAN, "network": network})
    built = plan.network.build(1, 2, 0)
    averaged = {name for name, value in get_weights(built).items() if is_averaged(value)}
    assert averaged == set(dict(built.named_parameters(remove_duplicate=False)))


def test_momentum_is_a_setting():
    assert parse_training({}).momentum == 0.9
    for wrong in (-0.1, 1, float("nan"), "0", True):
        with pytest.raises(ConfigurationError, match=r"training\.momentum is .* from 0 to below 1"):
            parse_training({"momentum": wrong})


def test_without_momentum_a_step_is_rate_times_gradient(datalist):
    """Two full-batch steps of plain SGD, written out."""
    changes = {**SGD, "batch_size": 4, "local_epochs": 2, "augmentation": "none", "gradient_clip": 1e9}
    trainer = make_trainer(datalist, changes=changes)
    batches = [next(trainer.batches(0, epoch)) for epoch in range(2)]
    own = trainer.train_round(start_of(trainer), 0, 1).weights
    other = make_trainer(datalist, changes=changes)
    for batch in batches:
        other.network.zero_grad()
        other.loss(other.network(batch["image"]), batch["classes"]).backward()
        with torch.no_grad():
            for parameter in other.network.parameters():
                parameter -= 0.05 * parameter.grad
    for name, value in get_weights(other.network).items():
        np.testing.assert_allclose(own[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
