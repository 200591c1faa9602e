"""An average of the weights over the steps of a round."""

import numpy as np
import pytest
import torch
from torch import nn

from fedseg.aggregators.fednova import FedNova
from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.training.hooks import TrainingHook
from fedseg.training.methods.scaffold import Scaffold
from fedseg.training.patient_dp_sgd import PatientDPSGD
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from fedseg.training.weight_average import WeightAverage
from hooked import SGD, assert_same, check_seeded_and_restarted, make_trainer, plain_rounds, start_of
from tiny import PLAN, make_sites

WEIGHT = "model.0.conv.unit0.conv.weight"


class Watch(TrainingHook):
    """Keeps the weights after every step."""

    def __init__(self):
        self.seen = []

    def after_step(self, training):
        self.seen.append({n: v.detach().clone() for n, v in training.network.state_dict().items()})


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (5, 1)}) / "a")


def test_two_steps_by_hand():
    """From 0 through 4 and 8 with decays 2/11 and 3/12: 36/11, then 75/11; counters and frozen values are the last."""
    network = nn.BatchNorm1d(2)
    network.bias.requires_grad_(False)
    nn.init.zeros_(network.weight)
    network.running_mean.zero_()
    average = WeightAverage(network, 0.5)
    for value in (4.0, 8.0):
        network.weight.data.fill_(value)
        network.bias.data.fill_(value)
        network.running_mean.fill_(-value)
        network.num_batches_tracked += 1
        average.step()
    average.load()
    assert network.weight.tolist() == pytest.approx([75 / 11] * 2)
    assert network.running_mean.tolist() == pytest.approx([-75 / 11] * 2)
    assert network.bias.tolist() == [8, 8]
    assert int(network.num_batches_tracked) == 2


def received_share(decay, steps):
    """Share of the received weights in the average, from 1 through steps that all end at 0."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    average = WeightAverage(network, decay)
    for _ in range(steps):
        network.weight.data.zero_()
        average.step()
    average.load()
    return network.weight.item()


@pytest.mark.parametrize(
    ("decay", "steps", "share"),
    [
        (0.999, 1, 2 / 11),
        (0.999, 3, 2 / 11 * 3 / 12 * 4 / 13),
        (0.2, 3, 2 / 11 * 0.2 * 0.2),
        (0.1, 2, 0.1 * 0.1),
        (0.5, 9, 2 / 11 * 3 / 12 * 4 / 13 * 5 / 14 * 6 / 15 * 7 / 16 * 8 / 17 * 0.5 * 0.5),
    ],
)
def test_the_decay_rises_to_its_value(decay, steps, share):
    assert received_share(decay, steps) == pytest.approx(share)


def test_few_steps_outweigh_the_received_weights():
    """A constant decay of 0.999 would leave the received weights a share of 0.99 after ten steps."""
    assert received_share(0.999, 10) < 1e-4


def test_the_update_is_the_average_of_the_steps(datalist):
    watch = Watch()
    trainer = make_trainer(datalist, [watch], changes={"weight_average": 0.7})
    start = start_of(trainer)
    update = trainer.train_round(start, 0, 2).update
    assert len(watch.seen) == 3
    expected = {name: value.astype(np.float64) for name, value in start.items()}
    for decay, seen in zip((2 / 11, 3 / 12, 4 / 13), watch.seen, strict=True):
        expected = {n: decay * value + (1 - decay) * seen[n].double().numpy() for n, value in expected.items()}
    for name, value in update.items():
        np.testing.assert_allclose(value, expected[name] - start[name], atol=1e-6, err_msg=name)


def test_a_decay_of_0_is_training_without_to_the_bit_and_its_steps_are_the_same_with_any(datalist):
    assert_same(plain_rounds(datalist, {"weight_average": 0.0}), plain_rounds(datalist))
    seen = []
    for decay in (0.0, 0.9):
        watch = Watch()
        trainer = make_trainer(datalist, [watch], changes={"weight_average": decay})
        trainer.train_round(start_of(trainer), 0, 2)
        seen.append(watch.seen[-1])
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])


def test_arrays_of_the_sites_own_are_kept_as_their_average(datalist):
    plan = parse_plan({**PLAN, "training": {**PLAN["training"], "weight_average": 0.6}})
    shared = SiteTrainer(plan, "a", datalist)
    private = SiteTrainer(plan, "a", datalist, TrainerSetup(private=frozenset({WEIGHT})))
    start = start_of(shared)
    expected, found = shared.train_round(start, 0, 2).weights, private.train_round(start, 0, 2).weights
    assert_same(found, expected)
    np.testing.assert_array_equal(private.own_model(start)[WEIGHT], expected[WEIGHT])
    assert not np.array_equal(expected[WEIGHT], start[WEIGHT])


def test_it_is_seeded_and_goes_on_after_the_site_died(datalist, tmp_path):
    check_seeded_and_restarted(datalist, TrainingHook, tmp_path, changes={"weight_average": 0.5})


@pytest.mark.parametrize("part", [Scaffold(), FedNova(momentum=0.0), PatientDPSGD(1.0, 1.0)])
def test_methods_that_reckon_with_the_way_of_the_steps_refuse_it(part):
    plan = parse_plan({**PLAN, "training": {**PLAN["training"], **SGD, "weight_average": 0.5}})
    with pytest.raises(ConfigurationError, match=r"training\.weight_average is 0\.5, but must be 0"):
        part.check_plan(plan)


def test_split_training_refuses_it():
    training = {**PLAN["training"], "weight_average": 0.5}
    with pytest.raises(ConfigurationError, match=r"training\.weight_average is 0\.5, but must be 0 in split training"):
        parse_plan({**PLAN, "split": {}, "training": training})
