import numpy as np
import pytest
import torch

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.registry import NETWORKS, parse_network
from fedseg.networks.weights import apply_difference, difference, get_weights, set_weights

EVERY = [{"name": name, "norm": norm} for name in NETWORKS for norm in ("instance", "group")]


def label(declaration):
    return f"{declaration['name']}-{declaration['norm']}"


@pytest.mark.parametrize("declaration", EVERY, ids=label)
def test_logits_have_the_shape_of_the_image(declaration):
    network = parse_network(declaration).build(4, 3, seed=0)
    assert network(torch.zeros(2, 4, 32, 16, 24)).shape == (2, 3, 32, 16, 24)


@pytest.mark.parametrize("declaration", EVERY, ids=label)
def test_no_bias_has_a_gradient_of_rounding_noise_only(declaration):
    network = parse_network(declaration).build(2, 2, seed=0).double()
    network(torch.randn(1, 2, 32, 32, 32, dtype=torch.float64)).pow(2).mean().backward()
    gradients = {n: float(p.grad.abs().max()) for n, p in network.named_parameters() if n.endswith("bias")}
    assert gradients
    assert min(gradients.values()) > 1e-9, gradients


@pytest.mark.parametrize("declaration", EVERY, ids=label)
def test_the_seed_alone_decides_about_the_weights(declaration):
    torch.manual_seed(1)
    first = get_weights(parse_network(declaration).build(1, 3, seed=5))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second = get_weights(parse_network(declaration).build(1, 3, seed=5))
    other = get_weights(parse_network(declaration).build(1, 3, seed=6))
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
        ({"name": "residual_unet", "res_units": 0}, "res_units"),
        ({"name": "dynunet", "filters": [8, 16]}, "filters"),
        ({"name": "dynunet", "residual": 1}, "residual"),
        ({"name": "segresnet", "blocks_up": [1]}, "blocks_up"),
        ({"name": "segresnet", "norm": "batch"}, "norm"),
    ],
)
def test_wrong_arguments_are_refused_by_name(declaration, named):
    with pytest.raises(ConfigurationError, match=named):
        parse_network(declaration)


def test_a_network_survives_its_json_form():
    network = parse_network({"name": "dynunet", "filters": [8, 16, 32], "strides": [1, 2, 2]})
    assert parse_network(network.to_dict()) == network


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
