import copy

import numpy as np
import pytest
import torch
from torch import nn

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError, DataError
from fedseg.models.model_file import initial_weights, write_model
from fedseg.networks.parts.lora import Adapter
from fedseg.networks.registry import NETWORKS, parse_network
from fedseg.networks.weights import get_weights
from fedseg.training.trainer import SiteTrainer
from tiny import PLAN, make_sites

IMAGE = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
LAYERS = {
    "convolution": (nn.Conv3d(2, 3, 3, stride=(2, 1, 1), padding=1), (2, 2, 8, 8, 8)),
    "transposed": (nn.ConvTranspose3d(3, 2, 3, stride=2, padding=1, output_padding=1), (2, 3, 4, 4, 4)),
    "linear": (nn.Linear(4, 6), (2, 5, 4)),
}


def plan_with(**arguments):
    return parse_plan({**PLAN, "network": {**PLAN["network"], "parts": [{"name": "lora", **arguments}]}})


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fresh_adapter_changes_no_output(name):
    bare = parse_network(name).build(1, 2, seed=3).eval()
    adapted = parse_network({"name": name, "parts": [{"name": "lora"}]}).build(1, 2, seed=3).eval()
    assert torch.equal(adapted(IMAGE), bare(IMAGE))
    assert any(n.startswith("parts.lora.") for n in adapted.state_dict())


@pytest.mark.parametrize("kind", LAYERS)
def test_with_full_rank_an_adapter_is_any_change_of_the_weights(kind):
    layer, shape = LAYERS[kind]
    layer, generator = copy.deepcopy(layer).double(), torch.Generator().manual_seed(1)
    values = torch.randn(*shape, dtype=torch.float64, generator=generator)
    change = torch.randn(*layer.weight.shape, dtype=torch.float64, generator=generator)
    # Of a transposed convolution the inputs stand first.
    turned = change.transpose(0, 1) if kind == "transposed" else change
    u, s, v = torch.linalg.svd(turned.flatten(1), full_matrices=False)
    adapter, scale = Adapter(layer, 100, 2.5).double(), 2.5
    with torch.no_grad():
        down = v.reshape(len(s), *turned.shape[1:])
        adapter.down.weight.copy_(down.transpose(0, 1) if kind == "transposed" else down)
        adapter.up.weight.copy_((u * s / scale).reshape(adapter.up.weight.shape))
        expected = copy.deepcopy(layer)
        expected.weight += change
    assert torch.allclose(layer(values) + adapter(values), expected(values), atol=1e-10)


def test_adapters_are_as_large_as_their_rank_says():
    adapter = Adapter(nn.Conv3d(16, 32, 3), 4, 1.0)
    assert sum(p.numel() for p in adapter.parameters()) == 4 * 16 * 27 + 32 * 4
    assert Adapter(nn.Conv3d(1, 2, 1), 4, 1.0).up.weight.shape == (2, 1, 1, 1, 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_site_owns_the_adapters_alone_under_all_names(name):
    declared = parse_network({"name": name, "parts": [{"name": "lora"}]})
    network = declared.build(1, 2, seed=3)
    fixed = declared.owners(network)
    assert set(fixed) == {n for n in network.state_dict() if not n.startswith("parts.")}
    assert not any(owner.trained("a", 5) or owner.sent("a", 5) for owner in fixed.values())


def test_only_adapters_and_what_else_is_named_move_and_are_shared(tmp_path):
    datalist = read_datalist(make_sites(tmp_path / "data", {"a": (2, 1)}) / "a")
    plan = plan_with(rank=2, trained=["model.2.1.conv.unit0.conv.*"])
    trainer = SiteTrainer(plan, "a", datalist)
    weights = get_weights(plan.build_network())
    result = trainer.train_round(weights, 0, 2)
    moves = {n for n in weights if n.startswith(("parts.lora.", "model.2.1.conv.unit0.conv."))}
    assert set(result.update) == moves
    assert {n for n in weights if not np.array_equal(result.weights[n], weights[n])} <= moves
    assert all(np.abs(result.update[n]).max() > 0 for n in moves if n.endswith("up.weight"))


def test_layers_are_chosen_by_name():
    network = plan_with(layers=["model.0.*"]).build_network()
    adapted = {n for n in network.state_dict() if n.startswith("parts.")}
    assert adapted
    assert all(n.startswith("parts.lora.model-0-") for n in adapted)
    with pytest.raises(ConfigurationError, match=r"lora\.layers is \['nothing'\], but must be patterns of some of"):
        plan_with(layers=["nothing"]).build_network()


def test_a_job_brings_the_network_that_is_adapted(tmp_path):
    bare, adapted = parse_plan(PLAN), plan_with()
    with pytest.raises(ConfigurationError, match="The part lora changes a network that was trained before"):
        initial_weights(adapted)
    before = {name: value + 1 for name, value in get_weights(bare.build_network()).items()}
    write_model(tmp_path / "m.safetensors", bare, before, 4)
    found = initial_weights(adapted, tmp_path / "m.safetensors")
    fresh = get_weights(adapted.build_network())
    assert set(found) == set(fresh)
    for name, value in found.items():
        np.testing.assert_array_equal(value, before.get(name, fresh[name]))
    write_model(tmp_path / "adapted.safetensors", adapted, found, 5)
    assert set(initial_weights(adapted, tmp_path / "adapted.safetensors")) == set(fresh)
    with pytest.raises(DataError, match="of another network"):
        initial_weights(bare, tmp_path / "adapted.safetensors")
    with pytest.raises(DataError, match="of another network"):
        initial_weights(plan_with(rank=3), tmp_path / "adapted.safetensors")
