import copy

import numpy as np
import pytest
import torch

from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.networks.parts.deep_supervision import nnunet_weights, take_coarser
from fedseg.networks.registry import parse_network
from fedseg.networks.weights import get_weights
from fedseg.training.patient_dp_sgd import PatientDPSGD
from hooked import assert_differ, assert_same, make_trainer
from tiny import make_sites

IMAGE = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
U = {
    "residual_unet": {"channels": [4, 6, 8, 8], "strides": [2, 2, 2]},
    "dynunet": {"filters": [4, 6, 8, 8], "strides": [1, 2, 2, 2]},
    "segresnet": {"init_filters": 8},
    "residual_encoder_unet": {"features": [4, 6, 8, 8], "blocks": [1, 1, 1, 1]},
    "mednext": {"init_filters": 4, "blocks_down": [1, 1, 1], "blocks_up": [1, 1, 1], "blocks_bottom": 1},
}


def declare(name, *weights, **arguments):
    return {"name": name, **arguments, "parts": [{"name": "deep_supervision", "weights": list(weights)}]}


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (3, 1)}) / "a")


def test_weights_are_those_of_nnunet():
    raw = np.array([1 / 2**i for i in range(5)])
    raw[-1] = 0
    np.testing.assert_allclose(nnunet_weights(5), raw / raw.sum(), rtol=1e-15)
    assert nnunet_weights(2) == (1.0, 0.0)


@pytest.mark.parametrize("name", U)
def test_every_level_halves_the_image_and_predictions_have_full_resolution_only(name):
    network = parse_network(declare(name, 4, 2, 2, **U[name])).build(1, 2, seed=1)
    full = network.train()(IMAGE)
    weight, coarser = take_coarser(network)
    assert (weight, [share for share, _ in coarser]) == (0.5, [0.25, 0.25])
    assert [tuple(each.shape) for _, each in coarser] == [(1, 2, 8, 8, 8), (1, 2, 4, 4, 4)]
    assert full.shape == (1, 2, 16, 16, 16)
    assert take_coarser(network) == (0.5, [])
    network.eval()(IMAGE)
    assert take_coarser(network) == (0.5, [])


def test_an_axis_keeps_its_size_where_its_stride_is_one():
    network = parse_network(declare("dynunet", filters=[4, 4, 4, 4], strides=[1, [2, 2, 1], [2, 2, 1], 2]))
    built = network.build(1, 2, seed=1)
    built.train()(IMAGE)
    assert [tuple(each.shape[2:]) for _, each in take_coarser(built)[1]] == [(8, 8, 16)]


def test_a_copy_has_outputs_of_its_own():
    network = parse_network(declare("dynunet", 1, 1)).build(1, 2, seed=1).train()
    other = copy.deepcopy(network)
    other(IMAGE)
    assert take_coarser(network)[1] == []
    assert len(take_coarser(other)[1]) == 1


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (declare("residual_unet", channels=[4, 8], strides=[2]), "network.parts[0]"),
        (declare("dynunet", 1, 1, 1, 1), "network.parts[0].weights"),
        (declare("dynunet", 0, 1), "network.parts[0].weights"),
        (declare("dynunet", 1, -1), "network.parts[0].weights"),
    ],
)
def test_what_cannot_be_supervised_is_refused(network, name):
    with pytest.raises(ConfigurationError) as raised:
        parse_network(network)
    assert raised.value.name == name


def rounds(datalist, network, hooks=()):
    trainer = make_trainer(datalist, hooks, network=network)
    return trainer.train_round(get_weights(trainer.plan.build_network()), 0, 2)


def test_weights_of_full_resolution_alone_are_training_without_to_the_bit(datalist):
    bare = {"name": "dynunet", **U["dynunet"]}
    without = rounds(datalist, bare)
    assert_same(rounds(datalist, declare("dynunet", 1, 0, 0, **U["dynunet"])).update, without.update)
    with_it = rounds(datalist, declare("dynunet", **U["dynunet"]))
    assert_differ({name: with_it.update[name] for name in without.update}, without.update)


def test_the_loss_is_the_weighted_mean_of_the_losses_at_all_levels(datalist):
    trainer = make_trainer(datalist, network=declare("dynunet", 3, 1, **U["dynunet"]))
    targets = torch.randint(0, 3, (2, 1, 16, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    trainer.network.train()
    logits = trainer.forward(torch.cat([IMAGE, -IMAGE]))
    coarse = trainer.network.get_submodule("parts.deep_supervision").outputs[1]
    # The nearest voxel of each block of two by two by two, by its centre, is the upper one.
    expected = 0.75 * trainer.loss(logits, targets) + 0.25 * trainer.loss(coarse, targets[:, :, 1::2, 1::2, 1::2])
    assert torch.allclose(trainer.supervise(logits, targets), expected, rtol=1e-6)


def test_each_patients_gradient_has_the_coarser_levels_too(datalist):
    """With one case of each patient, neither clip nor noise, DP-SGD is one step with the mean of the gradients."""
    network = declare("dynunet", **U["dynunet"])
    update = rounds(datalist, network, [PatientDPSGD(clip=float("inf"), noise_multiplier=0.0)]).update
    heads = [name for name in update if name.startswith("parts.")]
    assert heads
    assert all(np.abs(update[name]).max() > 0 for name in heads)
