import json

import numpy as np
import pytest
import torch

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.registry import NETWORKS, parse_network
from fedseg.networks.weights import apply_difference, difference, get_weights, set_weights
from tiny import LARGER, small

EVERY = [small(name, norm=norm) for name in NETWORKS for norm in ("instance", "group", "batch")]


def label(declaration):
    return f"{declaration['name']}-{declaration['norm']}"


def size_of(declaration, otherwise=(32, 32, 32)):
    return LARGER.get(declaration["name"], otherwise)


@pytest.mark.parametrize("declaration", EVERY, ids=label)
def test_logits_have_the_shape_of_the_image(declaration):
    size = size_of(declaration, (32, 16, 48))
    network = parse_network(declaration).build(4, 3, seed=0, patch_size=size)
    assert network(torch.zeros(2, 4, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("declaration", EVERY, ids=label)
def test_no_bias_has_a_gradient_of_rounding_noise_only(declaration):
    network = parse_network(declaration).build(2, 2, seed=0, patch_size=size_of(declaration)).double()
    for module in network.modules():  # a residual branch may begin with a scale of 0, behind which nothing moves yet
        if isinstance(module, torch.nn.InstanceNorm3d | torch.nn.GroupNorm | torch.nn.BatchNorm3d):
            torch.nn.init.ones_(module.weight)
    network(torch.randn(1, 2, *size_of(declaration), dtype=torch.float64)).pow(2).mean().backward()
    gradients = {n: float(p.grad.abs().max()) for n, p in network.named_parameters() if n.endswith("bias")}
    assert gradients
    assert min(gradients.values()) > 1e-9, gradients


@pytest.mark.parametrize("declaration", EVERY, ids=label)
def test_the_seed_alone_decides_about_the_weights(declaration):
    network, size = parse_network(declaration), size_of(declaration)
    torch.manual_seed(1)
    first = get_weights(network.build(1, 3, seed=5, patch_size=size))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second = get_weights(network.build(1, 3, seed=5, patch_size=size))
    other = get_weights(network.build(1, 3, seed=6, patch_size=size))
    assert all(np.array_equal(first[n], second[n]) for n in first)
    assert any(not np.array_equal(first[n], other[n]) for n in first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "building must not move torch's own generator"


@pytest.mark.parametrize(
    ("declaration", "named"),
    [
        ("unet", "residual_unet"),
        ({"name": "residual_unet", "depth": 3}, "depth"),
        ({"name": "residual_unet", "channels": [16]}, "channels"),
        ({"name": "residual_unet", "channels": [16, -1]}, "channels"),
        ({"name": "residual_unet", "channels": "16"}, "channels"),
        ({"name": "residual_unet", "channels": [8, 16], "strides": [2, 2]}, "strides"),
        ({"name": "residual_unet", "channels": [8, 16], "strides": [[2, 2]]}, "strides"),
        ({"name": "residual_unet", "channels": [8, 16], "strides": [[2, 2, 0]]}, "strides"),
        ({"name": "residual_unet", "channels": [8, 16], "strides": [[2, 2, [1]]]}, "strides"),
        ({"name": "residual_unet", "channels": [8, 16], "strides": [True]}, "strides"),
        ({"name": "residual_unet", "kernel": [3, 3, 2]}, "kernel"),
        ({"name": "residual_unet", "kernel": 0}, "kernel"),
        ({"name": "dynunet", "kernels": [3, 3]}, "kernels is .* but must be 4 entries, as many as filters"),
        ({"name": "dynunet", "kernels": 3}, "kernels"),
        ({"name": "residual_unet", "res_units": 0}, "res_units"),
        ({"name": "dynunet", "filters": [8, 16]}, "filters"),
        ({"name": "dynunet", "residual": 1}, "residual"),
        ({"name": "segresnet", "blocks_up": [1]}, "blocks_up"),
        ({"name": "segresnet", "norm": "layer"}, "norm"),
        ({"name": "residual_encoder_unet", "blocks": [1, 1]}, "blocks"),
        ({"name": "residual_encoder_unet", "blocks": [1, 1, 1, 1, 1]}, "blocks"),
        ({"name": "residual_encoder_unet", "blocks_up": [1, 1]}, "blocks_up"),
        ({"name": "residual_encoder_unet", "kernels": [3, 3, 3]}, "kernels"),
        ({"name": "mednext", "blocks_up": [1, 1]}, "blocks_up is .* but must be 3 numbers"),
        ({"name": "mednext", "kernel": 4}, "kernel"),
        ({"name": "mednext", "kernel": [3, 3, 1]}, "kernel"),
        ({"name": "mednext", "expansion": 0}, "expansion"),
        ({"name": "mednext", "init_filters": 4096}, "init_filters"),
        ({"name": "swin_unetr", "feature_size": 16}, "feature_size is 16, but must be divisible by 12"),
        ({"name": "swin_unetr", "feature_size": 12 * 2**5}, "feature_size"),
        ({"name": "swin_unetr", "depths": [2, 2, 2]}, "depths"),
        ({"name": "swin_unetr", "depths": [2, 2, 2, 0]}, "depths"),
        ({"name": "swin_unetr", "heads": [3, 6, 12]}, "heads"),
        ({"name": "swin_unetr", "heads": [3, 5, 12, 24]}, r"heads is .* but must be divisors of the features \[24, 48"),
        ({"name": "swin_unetr", "window": 0}, "window"),
        ({"name": "swin_unetr", "window": [7, 7]}, "window"),
        ({"name": "unetr", "hidden_size": 100}, "hidden_size is 100, but must be divisible by 3"),
        ({"name": "unetr", "hidden_size": "192"}, "hidden_size"),
        ({"name": "unetr", "heads": 0}, "heads"),
        ({"name": "unetr", "mlp_size": 0}, "mlp_size"),
        ({"name": "unetr", "feature_size": 1024}, "feature_size"),
    ],
)
def test_wrong_arguments_are_refused_by_name(declaration, named):
    with pytest.raises(ConfigurationError, match=named):
        parse_network(declaration)


def test_a_default_that_does_not_fit_is_said_to_be_the_default():
    with pytest.raises(ConfigurationError) as found:
        parse_network({"name": "residual_unet", "channels": [4, 8, 16]})
    assert str(found.value) == (
        "network.strides is [2, 2, 2], but must be 2 entries, one fewer than channels, each a positive whole number or "
        "three (x, y, z), e.g. 3 or [3, 3, 1]. Change both together. This value is the default: give network.strides, "
        "too."
    )
    with pytest.raises(ConfigurationError) as found:
        parse_network({"name": "residual_unet", "channels": [4, 8, 16], "strides": [[2, 2, 1]]})
    assert "strides is [[2, 2, 1]], but" in str(found.value)
    assert str(found.value).endswith("Change both together.")
    assert "default" not in str(found.value)


THICK = [
    {"name": "residual_unet", "channels": [4, 8, 8], "strides": [[2, 2, 1], 2], "kernel": [3, 3, 1]},
    {"name": "dynunet", "filters": [4, 8, 8], "strides": [1, [2, 2, 1], 2], "kernels": [[3, 3, 1], [3, 3, 1], 3]},
    {"name": "dynunet", "filters": [4, 8, 8], "strides": [1, [2, 2, 1], 2], "kernels": [3, 3, 1], "residual": True},
]


@pytest.mark.parametrize("declaration", [{"name": "dynunet", "filters": [8, 16, 32], "strides": [1, 2, 2]}, *THICK])
def test_a_network_survives_its_json_form(declaration):
    network = parse_network(declaration)
    assert parse_network(json.loads(json.dumps(network.to_dict()))) == network


@pytest.mark.parametrize("declaration", THICK)
def test_thick_slices_are_shrunk_less_than_the_others(declaration):
    declared = parse_network(declaration)
    assert declared.arguments.divisor == (4, 4, 2)
    network = declared.build(2, 3, seed=0)
    caught = []
    declared.arguments.bottleneck(network).register_forward_hook(lambda _m, _a, output: caught.append(output.shape))
    assert network(torch.zeros(1, 2, 16, 24, 6)).shape == (1, 3, 16, 24, 6)
    assert tuple(caught[0][2:]) == (4, 6, 3)


def test_with_a_kernel_of_one_voxel_across_no_slice_sees_another():
    declaration = {"name": "residual_unet", "channels": [4, 8], "strides": [[2, 2, 1]], "kernel": [3, 3, 1]}
    network = parse_network({**declaration, "norm": "instance"}).build(1, 1, seed=0).eval()
    for name, module in list(network.named_modules()):  # statistics over the whole image would let slices meet
        if isinstance(module, torch.nn.InstanceNorm3d):
            network.get_submodule(name.rpartition(".")[0]).__setattr__(name.rpartition(".")[2], torch.nn.Identity())
    image = torch.randn(1, 1, 8, 8, 4, generator=torch.Generator().manual_seed(0))
    other = image.clone()
    other[..., 2] += 1
    changed = (network(image) - network(other)).abs().amax(dim=(0, 1, 2, 3)) > 0
    assert changed.tolist() == [False, False, True, False]


def test_three_equal_numbers_are_one_number():
    one = parse_network({"name": "residual_unet", "channels": [4, 8], "strides": [2]}).build(1, 2, seed=3)
    three = {"name": "residual_unet", "channels": [4, 8], "strides": [[2, 2, 2]], "kernel": [3, 3, 3]}
    weights = get_weights(parse_network(three).build(1, 2, seed=3))
    assert all(np.array_equal(value, weights[name]) for name, value in get_weights(one).items())
    assert len(get_weights(one)) == len(weights)


class TestWeights:
    network = parse_network({"name": "residual_unet", "channels": [2, 4], "strides": [2]}).build(1, 1, 0)

    def spoil(self, **changes):
        weights = get_weights(self.network)
        name = next(iter(weights))
        if "drop" in changes:
            del weights[name]
        if "extra" in changes:
            weights["surprise"] = np.zeros(1, np.float32)
        if "shape" in changes:
            weights[name] = weights[name][..., None]
        if "nan" in changes:
            weights[name] = weights[name] * np.nan
        return weights

    @pytest.mark.parametrize(
        ("change", "said"), [("drop", "missing"), ("extra", "unknown"), ("shape", "shape"), ("nan", "not finite")]
    )
    def test_wrong_weights_load_nothing(self, change, said):
        before = get_weights(self.network)
        with pytest.raises(RefusalError, match=said) as error:
            set_weights(self.network, self.spoil(**{change: True}))
        assert error.value.reason == "weights"
        after = get_weights(self.network)
        assert all(np.array_equal(before[n], after[n]) for n in before)

    def test_a_difference_brings_back_the_weights_and_leaves_counters_alone(self):
        before = {"w": np.array([1.0, 2.0], np.float32), "steps": np.array(3)}
        after = {"w": np.array([1.5, 1.0], np.float32), "steps": np.array(9)}
        update = difference(after, before)
        assert set(update) == {"w"}
        result = apply_difference(before, update)
        assert result["w"].tolist() == [1.5, 1.0]
        assert result["w"].dtype == np.float32
        assert result["steps"] == 3
