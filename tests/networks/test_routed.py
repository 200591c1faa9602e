"""A routed network against its experts by themselves, against their mean, and against a loop over single images."""

import copy

import numpy as np
import pytest
import torch

from fedseg.networks.registry import parse_network
from fedseg.networks.routed import RoutedNetwork, Router
from fedseg.networks.weights import get_weights, set_weights

SHAPE = (1, 1, 16, 16, 16)
IMAGES = torch.randn(3, *SHAPE[1:], generator=torch.Generator().manual_seed(0))
NETWORKS = {
    "residual_unet": {"channels": [4, 6, 8], "strides": [2, 2], "norm": "group"},
    "dynunet": {"filters": [4, 6, 8], "strides": [1, 2, 2]},
    "segresnet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "residual_encoder_unet": {"features": [4, 6, 8, 8], "blocks": [1, 1, 1, 1]},
}
FORMS = [
    *({"name": name, **arguments} for name, arguments in NETWORKS.items()),
    {"name": "residual_unet", **NETWORKS["residual_unet"], "parts": [{"name": "deep_supervision"}]},
    {"name": "residual_unet", **NETWORKS["residual_unet"], "parts": [{"name": "lora"}]},
    {"name": "residual_unet", **NETWORKS["residual_unet"], "parts": [{"name": "amplitude"}]},
]
EVERY = pytest.mark.parametrize(
    "declaration", FORMS, ids=lambda form: " ".join([form["name"], *map(str, form.get("parts", []))])
)


def experts(declaration, count=3):
    """Trained networks, as far as their arrays go: every one has others."""
    found = []
    for seed in range(count):
        network = parse_network(declaration).build(1, 2, seed, SHAPE[2:]).eval()
        with torch.no_grad():
            draw = torch.Generator().manual_seed(seed)
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
        found.append(network)
    return found


def routed(networks):
    return RoutedNetwork(copy.deepcopy(networks[0]), [get_weights(network) for network in networks], SHAPE)


def choose(network, expert):
    for router in network.routers():
        with torch.no_grad():
            router.second.weight.zero_()
            router.second.bias.zero_()
            router.second.bias[expert] = 1000.0


def stir(network, seed=5):
    """Gates that differ between layers and images."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for router in network.routers():
            for parameter in router.parameters():
                parameter += torch.randn(parameter.shape, generator=draw)


def outputs(network, images=IMAGES):
    with torch.inference_mode():
        return network(images)


@EVERY
def test_a_gate_of_one_is_that_expert_to_the_last_bit(declaration):
    networks = experts(declaration)
    found = [outputs(network) for network in networks]
    assert not torch.equal(found[0], found[1])
    mix = routed(networks)
    for expert in range(3):
        choose(mix, expert)
        assert torch.equal(outputs(mix), found[expert])
        assert mix.shares().tolist() == [float(each == expert) for each in range(3)]


@EVERY
def test_one_expert_is_that_one_to_the_last_bit_whatever_the_routers(declaration):
    networks = experts(declaration, 1)
    mix = routed(networks)
    stir(mix)
    assert torch.equal(outputs(mix), outputs(networks[0]))


@EVERY
def test_fresh_routers_are_the_mean_model(declaration):
    networks = experts(declaration)
    weights = [get_weights(network) for network in networks]
    mean = {n: sum(np.float64(w[n]) for w in weights) / 3 for n in weights[0]}
    set_weights(networks[0], {n: value.astype(weights[0][n].dtype) for n, value in mean.items()})
    mix = RoutedNetwork(experts(declaration, 1)[0], weights, SHAPE)
    torch.testing.assert_close(outputs(mix), outputs(networks[0]), atol=2e-5, rtol=1e-4)
    assert mix.shares().tolist() == pytest.approx([1 / 3] * 3)


def test_gates_between_experts_are_the_sum_by_hand():
    """One convolution of one voxel: each image has its own kernel, the sum by its own gates."""
    convolutions = [torch.nn.Conv3d(2, 1, 1) for _ in range(2)]
    mix = RoutedNetwork(copy.deepcopy(convolutions[0]), [get_weights(c) for c in convolutions], (1, 2, 4, 4, 4))
    stir(mix)
    images = torch.randn(3, 2, 4, 4, 4)
    (router,) = mix.routers()
    for image, found in zip(images, outputs(mix, images), strict=True):
        hidden = router.first.weight @ image.mean(dim=(1, 2, 3)) + router.first.bias
        score = router.second.weight @ hidden + router.second.bias
        gates = score.exp() / score.exp().sum()
        kernel = sum(g * c.weight[0, :, 0, 0, 0] for g, c in zip(gates, convolutions, strict=True))
        bias = sum(g * c.bias for g, c in zip(gates, convolutions, strict=True))
        torch.testing.assert_close(found[0], torch.einsum("c,cxyz->xyz", kernel, image) + bias)


@EVERY
def test_images_of_a_batch_do_not_see_each_other(declaration):
    mix = routed(experts(declaration))
    stir(mix)
    alone = torch.cat([outputs(mix, image[None]) for image in IMAGES])
    torch.testing.assert_close(outputs(mix), alone, atol=1e-4, rtol=1e-4)
    assert not torch.equal(*[outputs(mix, image[None] * 0 + k) for image, k in zip(IMAGES, (1, 2), strict=False)])


@EVERY
def test_routers_are_all_that_learns(declaration):
    networks = experts(declaration)
    mix = routed(networks)
    mix(IMAGES).square().mean().backward()
    learning = {id(parameter) for router in mix.routers() for parameter in router.parameters()}
    assert {id(parameter) for parameter in mix.parameters() if parameter.requires_grad} == learning
    gradients = [router.second.bias.grad for router in mix.routers()]
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients) > len(gradients) / 2


def test_gates_are_shares():
    router = Router(3, 4)
    assert router(torch.randn(2, 3, 4, 4, 4)).tolist() == [[0.25] * 4] * 2
    with torch.no_grad():
        router.second.weight.normal_()
    gates = router.eval()(torch.randn(5, 3, 4, 4, 4))
    assert torch.all((gates > 0) & (gates < 1))
    torch.testing.assert_close(gates.sum(dim=1), torch.ones(5))


def test_routers_follow_from_the_seed_and_leave_the_generator_alone():
    networks, before = experts(FORMS[0]), torch.random.get_rng_state()
    one, same = routed(networks), routed(networks)
    other = RoutedNetwork(networks[0], [get_weights(network) for network in networks], SHAPE, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    first = [[router.first.weight for router in mix.routers()] for mix in (one, same, other)]
    assert all(map(torch.equal, first[0], first[1]))
    assert not all(map(torch.equal, first[0], first[2]))
