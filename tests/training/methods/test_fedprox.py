import numpy as np
import pytest
import torch

from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.training.methods.fedprox import FedProx
from hooked import SGD, assert_differ, assert_same, check_seeded_and_restarted, make_trainer, plain_rounds, start_of
from tiny import make_sites


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (4, 1)}) / "a")


def moved(trainer, by):
    """Move every parameter of the network by ``by`` away from the received weights."""
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.add_(by)


def test_the_term_by_hand(datalist):
    hook = FedProx(0.5)
    trainer = make_trainer(datalist, [hook])
    received = start_of(trainer)
    hook.before_round(trainer, received, 0)
    assert float(hook.loss(trainer, None, None, None).detach()) == 0
    moved(trainer, 2.0)
    count = sum(p.numel() for p in trainer.network.parameters())
    # 0.5 / 2 * (count entries, each 2 away: 4 each) = count
    assert float(hook.loss(trainer, None, None, None).detach()) == pytest.approx(count, rel=1e-5)


def test_the_gradient_is_mu_times_the_way_from_the_global_weights(datalist):
    hook = FedProx(0.5)
    trainer = make_trainer(datalist, [hook])
    hook.before_round(trainer, start_of(trainer), 0)
    moved(trainer, 2.0)
    hook.loss(trainer, None, None, None).backward()
    for name, parameter in trainer.network.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), 0.5 * 2.0, rtol=1e-5, err_msg=name)


def test_what_is_not_trained_is_not_pulled(datalist):
    hook = FedProx(1.0)
    trainer = make_trainer(datalist, [hook])
    first, *rest = trainer.network.parameters()
    for parameter in rest:
        parameter.requires_grad_(False)
    hook.before_round(trainer, start_of(trainer), 0)
    moved(trainer, 1.0)
    assert float(hook.loss(trainer, None, None, None).detach()) == pytest.approx(first.numel() / 2, rel=1e-5)


def test_a_strong_pull_keeps_the_model_near(datalist):
    def way(mu):
        trainer = make_trainer(datalist, [FedProx(mu)], changes={**SGD, "local_epochs": 8})
        update = trainer.train_round(start_of(trainer), 0, 1).update
        return sum(float((value.astype(np.float64) ** 2).sum()) for value in update.values())

    # Plain SGD with rate 0.05 and mu 10 goes half the way back in each step.
    assert way(10.0) < 0.3 * way(0.0)


def test_training_is_seeded_and_survives_a_restart(datalist, tmp_path):
    assert_differ(check_seeded_and_restarted(datalist, lambda: FedProx(0.5), tmp_path), plain_rounds(datalist))


def test_mu_zero_is_plain_training_to_the_last_bit(datalist, tmp_path):
    assert_same(check_seeded_and_restarted(datalist, lambda: FedProx(0.0), tmp_path), plain_rounds(datalist))


@pytest.mark.parametrize("mu", [-1, float("nan"), float("inf"), "1", True, None])
def test_a_wrong_strength_is_refused(mu):
    with pytest.raises(ConfigurationError, match=r"mu is .* a number from 0 up"):
        FedProx(mu)
