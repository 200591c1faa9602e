"""Layers found by name, by type and by place, in every network that a job can name."""

import numpy as np
import pytest
import torch
from monai.networks.layers.factories import Norm
from torch import nn

from fedseg.networks.layers import NORMALISATIONS, last_names, matching_names, normalisation_names, with_aliases
from fedseg.networks.registry import NETWORKS, parse_network
from tiny import small

OUTPUT = {
    "residual_unet": {"model.2.1.conv.unit0.conv.weight", "model.2.1.conv.unit0.conv.bias"},
    "dynunet": {"output_block.conv.conv.weight", "output_block.conv.conv.bias"},
    "segresnet": {"conv_final.2.conv.weight", "conv_final.2.conv.bias"},
    "residual_encoder_unet": {"head.weight", "head.bias"},
    "mednext": {"out_0.conv_out.weight", "out_0.conv_out.bias"},
    "swin_unetr": {"out.conv.conv.weight", "out.conv.conv.bias"},
    "unetr": {"out.conv.conv.weight", "out.conv.conv.bias"},
}


def build(name, **arguments):
    declaration = parse_network(small(name, **arguments))
    size = declaration.arguments.example_size((16, 32, 16))
    return declaration.build(1, 3, 0, size), (1, 1, *size)


def test_every_network_is_looked_at():
    assert set(OUTPUT) == set(NETWORKS)


@pytest.mark.parametrize("name", OUTPUT)
def test_the_last_layer_is_the_output_convolution(name):
    network, example = build(name)
    assert last_names(network, 1, example) == OUTPUT[name]
    # Its shape proves it: it has as many outputs as the network.
    # Of a transposed convolution the inputs stand first.
    assert all(3 in network.state_dict()[n].shape[:2] for n in OUTPUT[name])


@pytest.mark.parametrize("name", OUTPUT)
@pytest.mark.parametrize("norm", ["instance", "group", "batch"])
def test_normalisations_are_found_by_type(name, norm):
    """Against a slow way: arrays of one dimension and counters, but for slopes of PReLU and biases of layers."""
    network, _ = build(name, norm=norm)
    slopes = {
        f"{path}.weight"
        for path, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, nn.PReLU)
    }
    slopes |= {
        f"{path}.bias"
        for path, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.Linear)
    }
    one_dimensional = {n for n, value in network.state_dict().items() if value.ndim < 2}
    found = normalisation_names(network)
    assert found == one_dimensional - slopes - OUTPUT[name]
    assert len(found) >= 10


@pytest.mark.parametrize("name", OUTPUT)
def test_the_choice_is_complete_under_every_name(name):
    """Changing what is NOT chosen leaves every chosen array as it was: no array has a name in both halves."""
    network, example = build(name)
    chosen = last_names(network, 5, example)
    before = {n: network.state_dict()[n].clone() for n in chosen}
    with torch.no_grad():
        for other, value in network.state_dict().items():
            if other not in chosen:
                value.add_(1)
    for n in chosen:
        np.testing.assert_array_equal(network.state_dict()[n].numpy(), before[n].numpy())


def test_a_layer_with_two_names_is_found_by_either():
    network, example = build("dynunet")
    other = next(n for n in network.state_dict() if n.startswith("skip_layers") and n.endswith("norm1.weight"))
    names = matching_names(network, other)
    assert len(names) == 2
    assert with_aliases(network, names) == names
    last = last_names(network, 2, example)
    assert any(n.startswith("skip_layers") for n in last)
    assert any(n.startswith("upsamples") for n in last)


def test_the_order_is_that_of_use_and_not_of_definition():
    """Defined first, used last."""

    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.unused, self.first = nn.Conv3d(2, 1, 1), nn.Conv3d(1, 1, 1), nn.Conv3d(1, 2, 1)

        def forward(self, image):
            return self.last(self.first(image))

    network = Reversed().train()
    assert last_names(network, 1, (1, 1, 2, 2, 2)) == {"last.weight", "last.bias"}
    assert last_names(network, 2, (1, 1, 2, 2, 2)) == {"last.weight", "last.bias", "first.weight", "first.bias"}
    assert last_names(network, 9, (1, 1, 2, 2, 2)) == last_names(network, 2, (1, 1, 2, 2, 2))
    assert network.training
    assert not network.last._forward_hooks


def test_buffers_of_batch_normalisation_count():
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    assert normalisation_names(network) == {
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }


def test_normalisation_without_parameters_has_no_names():
    assert normalisation_names(nn.Sequential(nn.Conv3d(1, 2, 1), nn.InstanceNorm3d(2))) == frozenset()


@pytest.mark.parametrize("name", ["INSTANCE", "BATCH", "GROUP", "LAYER", "LOCALRESPONSE", "SYNCBATCH"])
def test_every_normalisation_of_monai_is_known(name):
    kind = Norm[getattr(Norm, name), 3] if name in ("INSTANCE", "BATCH") else Norm[getattr(Norm, name)]
    assert issubclass(kind, NORMALISATIONS)


def test_patterns_are_those_of_the_shell():
    network, _ = build("residual_unet")
    assert matching_names(network, "model.2.1.*") == OUTPUT["residual_unet"]
    assert matching_names(network, "MODEL.2.1.*") == frozenset()
    assert matching_names(network, "*") == set(network.state_dict())
