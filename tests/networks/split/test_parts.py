"""A network cut in two is the network: bits, names, and what crosses."""

import numpy as np
import pytest
import torch
from torch import nn

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.registry import parse_network
from fedseg.networks.split.costs import BYTES, cut_costs
from fedseg.networks.split.parts import check_normalisations, cut_network, join_weights, part_weights, split_network
from fedseg.networks.split.stages import cut_names, stages_of
from fedseg.networks.weights import get_weights, set_weights

DECLARATIONS = [
    {"name": "residual_unet", "channels": [4, 6], "strides": [2], "res_units": 1},
    {"name": "residual_unet", "channels": [4, 6, 8], "strides": [2, 2]},
    {"name": "residual_unet", "channels": [4, 6, 8, 8], "strides": [2, 1, 2], "norm": "group"},
    {"name": "dynunet", "filters": [4, 6, 8], "strides": [1, 2, 2]},
    {"name": "dynunet", "filters": [4, 6, 8, 8], "strides": [1, 2, 2, 2], "residual": True, "norm": "group"},
    {"name": "segresnet", "init_filters": 4, "blocks_down": [1, 1], "blocks_up": [1]},
    {"name": "segresnet", "init_filters": 4, "blocks_down": [1, 2, 1], "blocks_up": [1, 2], "norm": "group"},
    {"name": "residual_unet", "channels": [4, 6, 8], "strides": [[2, 2, 1], 2], "kernel": [3, 3, 1]},
    {
        "name": "residual_encoder_unet",
        "features": [4, 6, 8],
        "strides": [1, [2, 2, 1], 2],
        "blocks": [1, 2, 1],
        "blocks_up": [1, 2],
    },
    {"name": "dynunet", "filters": [4, 6, 8], "strides": [1, [2, 2, 1], 2], "kernels": [[3, 3, 1], 3, 3]},
]
EVERY_CUT = [(d, cut) for d in DECLARATIONS for cut in cut_names(parse_network(d))]
SMALL = parse_network(DECLARATIONS[1])


def label(value):
    return (
        value if isinstance(value, str) else f"{value['name']}-{len(value.get('channels', value.get('filters', [])))}"
    )


def image(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("declaration", "cut"), EVERY_CUT, ids=label)
def test_halves_put_together_are_the_whole_to_the_last_bit(declaration, cut):
    network = parse_network(declaration)
    whole = network.build(2, 3, seed=4).double()
    site, server = (part.double() for part in split_network(network, 2, 3, cut, seed=4))
    images, wanted = image(2, 2, 16, 8, 16), image(2, 3, 16, 8, 16)

    logits = whole(images)
    logits.backward(wanted)

    features = site(images)
    received = {name: value.detach().clone().requires_grad_() for name, value in features.items()}
    predicted = server(received)
    predicted.backward(wanted)
    torch.autograd.backward(list(features.values()), [received[name].grad for name in features])

    assert torch.equal(predicted, logits)
    found = {n: p.grad for part in (site, server) for n, p in part.named_parameters()}
    expected = {n: p.grad for n, p in whole.named_parameters()}
    assert found.keys() == expected.keys()
    assert [n for n in expected if not torch.equal(found[n], expected[n])] == []


@pytest.mark.parametrize(("declaration", "cut"), EVERY_CUT, ids=label)
def test_weights_of_the_parts_are_those_of_the_whole(declaration, cut):
    network = parse_network(declaration)
    whole = get_weights(network.build(2, 3, seed=4))
    site, server = split_network(network, 2, 3, cut, seed=4)
    joined = join_weights(get_weights(site), get_weights(server))
    assert len(get_weights(site)) > 0
    assert joined.keys() == whole.keys()
    assert all(np.array_equal(joined[n], whole[n]) for n in whole)
    # Weights of another whole network find their way into the parts, and a network from the joined ones is that one.
    other = get_weights(network.build(2, 3, seed=5))
    for part in (site, server):
        set_weights(part, part_weights(other, part))
    rebuilt = network.build(2, 3, seed=0)
    set_weights(rebuilt, join_weights(get_weights(site), get_weights(server)))
    images = image(1, 2, 16, 8, 16).float()
    assert torch.equal(rebuilt(images), server(site(images)))
    assert all(np.array_equal(value, other[n]) for n, value in get_weights(rebuilt).items())


# What crosses, by hand: a decoder reads the level below and the encoder of its own level.
CROSSING = {
    "residual_unet": {
        "encoder1": ["encoder1"],
        "encoder2": ["encoder1", "encoder2"],
        "bottom": ["encoder1", "encoder2", "bottom"],
        "decoder2": ["encoder1", "decoder2"],
    },
    "dynunet": {
        "encoder1": ["encoder1"],
        "encoder2": ["encoder1", "encoder2"],
        "bottom": ["encoder1", "encoder2", "bottom"],
        "decoder2": ["encoder1", "decoder2"],
        "decoder1": ["decoder1"],
    },
    "segresnet": {
        "stem": ["stem"],
        "encoder1": ["encoder1"],
        "encoder2": ["encoder1", "encoder2"],
        "bottom": ["encoder1", "encoder2", "bottom"],
        "decoder2": ["encoder1", "decoder2"],
        "decoder1": ["decoder1"],
    },
}


@pytest.mark.parametrize("declaration", [DECLARATIONS[1], DECLARATIONS[3], DECLARATIONS[6]], ids=label)
def test_what_crosses_the_cut(declaration):
    network = parse_network(declaration)
    crossed = {cut: list(split_network(network, 1, 1, cut, 0)[0].sends) for cut in cut_names(network)}
    assert crossed == CROSSING[declaration["name"]]
    assert list(crossed) == list(CROSSING[declaration["name"]]), "from the image on"


def test_an_unknown_cut_is_refused_with_the_list():
    with pytest.raises(ConfigurationError, match=r"cut is 'encoder9'.*'encoder1', 'encoder2', 'bottom', 'decoder2'"):
        split_network(SMALL, 1, 1, "encoder9", 0)


def test_the_last_stage_is_no_cut():
    assert stages_of(SMALL)[-1].name == "decoder1"
    with pytest.raises(ConfigurationError, match="decoder1"):
        split_network(SMALL, 1, 1, "decoder1", 0)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [(nn.BatchNorm3d(4), "BatchNorm3d"), (nn.InstanceNorm3d(4, track_running_stats=True), "InstanceNorm3d")],
)
def test_normalisations_that_remember_other_samples_are_refused(layer, kind):
    whole = SMALL.build(1, 1, seed=0)
    whole.model[0].conv.unit0.adn.N = layer
    with pytest.raises(ConfigurationError, match=rf"model\.0\.conv\.unit0\.adn\.N is '{kind}'"):
        cut_network(whole, SMALL, "encoder1")


def test_normalisations_of_the_registry_are_taken():
    for declaration in DECLARATIONS:
        check_normalisations(parse_network(declaration).build(1, 1, seed=0))


def test_the_whole_network_stays_as_it_was():
    whole = SMALL.build(1, 2, seed=0)
    before = get_weights(whole)
    site, server = cut_network(whole, SMALL, "encoder1")
    for part in (site, server):
        for parameter in part.parameters():
            parameter.data.zero_()
    assert all(np.array_equal(value, before[n]) for n, value in get_weights(whole).items())


def test_parts_of_different_cuts_do_not_join():
    site, _ = split_network(SMALL, 1, 1, "encoder2", 0)
    _, server = split_network(SMALL, 1, 1, "encoder1", 0)
    with pytest.raises(RefusalError, match=r"Both parts hold model\.1\.submodule\.0"):
        join_weights(get_weights(site), get_weights(server))


def test_weights_that_lack_a_part_are_refused():
    site, server = split_network(SMALL, 1, 1, "encoder1", 0)
    with pytest.raises(RefusalError, match="lack"):
        part_weights(get_weights(server), site)


# ---------------------------------------------------------------- costs


@pytest.mark.parametrize("declaration", DECLARATIONS, ids=label)
def test_sizes_are_those_of_the_actual_tensors(declaration):
    network = parse_network(declaration)
    patch = (16, 8, 16)
    costs = cut_costs(network, 2, 3, patch)
    assert [cost.cut for cost in costs] == list(cut_names(network))
    kinds = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
    assert BYTES.keys() == kinds.keys()
    for cost in costs:
        site, server = split_network(network, 2, 3, cost.cut, 0)
        features = site(torch.zeros(1, 2, *patch))
        assert {n: (1, *shape) for n, shape in cost.shapes.items()} == {n: tuple(v.shape) for n, v in features.items()}
        for precision, kind in kinds.items():
            sent = sum(v.detach().to(kind).numpy().nbytes for v in features.values())
            assert cost.values * BYTES[precision] == sent
        assert cost.prediction_values == server(features).numel()
        assert (cost.image_values, cost.voxels) == (2 * 16 * 8 * 16, 16 * 8 * 16)


def test_parameters_and_operations_by_hand():
    network = parse_network({"name": "segresnet", "init_filters": 4, "blocks_down": [1, 1], "blocks_up": [1]})
    stem, first, *_ = cut_costs(network, 2, 3, (8, 8, 8))
    voxels = 8**3
    # Stem: a 3x3x3 convolution of 2 channels to 4. Level 1: two more of 4 to 4, and two normalisations of 4 channels.
    # An operation is a multiplication or an addition, so a weight of a convolution makes two for each voxel it gives.
    assert stem.site_parameters == 2 * 4 * 27
    assert stem.site_flops == 2 * (2 * 4 * 27) * voxels
    assert first.site_parameters == 2 * 4 * 27 + 2 * (4 * 4 * 27) + 2 * 2 * 4
    assert first.site_flops == 2 * (2 * 4 * 27 + 2 * 4 * 4 * 27) * voxels
    # Level 2 (4^3 voxels): 4 to 8, then two of 8 to 8. Up: 1x1x1 of 8 to 4 there, then two of 4 to 4. Head: 4 to 3.
    rest = (4 * 8 * 27 + 2 * 8 * 8 * 27) * 4**3 + 8 * 4 * 4**3 + 2 * 4 * 4 * 27 * voxels + 4 * 3 * voxels
    assert first.flops - first.site_flops == 2 * rest


def test_all_parameters_are_counted_once():
    """``DynUNet`` has most of its arrays under two names."""
    network = parse_network(DECLARATIONS[3])
    total = sum(p.numel() for p in network.build(1, 2, 0).parameters())
    assert {cost.parameters for cost in cut_costs(network, 1, 2, (16, 16, 16))} == {total}
