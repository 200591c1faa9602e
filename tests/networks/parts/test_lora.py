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
from fedseg.networks.weights import get_weights, set_weights
from fedseg.training.trainer import SiteTrainer
from tiny import LARGER, PLAN, make_sites, small

LAYERS = {
    "convolution": (nn.Conv3d(2, 3, 3, stride=(2, 1, 1), padding=1), (2, 2, 8, 8, 8)),
    "transposed": (nn.ConvTranspose3d(3, 2, 3, stride=2, padding=1, output_padding=1), (2, 3, 4, 4, 4)),
    "linear": (nn.Linear(4, 6), (2, 5, 4)),
}


def plan_with(**arguments):
    return parse_plan({**PLAN, "network": {**PLAN["network"], "parts": [{"name": "lora", **arguments}]}})


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fresh_adapter_changes_no_output(name):
    size = LARGER.get(name, (16, 32, 16))
    bare = parse_network(small(name)).build(1, 2, 3, size).eval()
    adapted = parse_network(small(name, parts=[{"name": "lora"}])).build(1, 2, 3, size).eval()
    image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(adapted(image), bare(image))
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
    declared = parse_network(small(name, parts=[{"name": "lora"}]))
    network = declared.build(1, 2, 3, (32, 32, 32))
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


def added_by(arrays, plan, start):
    """What the adapters add to the output of their layer, by layer, with arrays in the place of those at start."""
    network = plan.build_network()
    set_weights(network, {**start, **arrays})
    values = torch.randn(1, 64, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    adapters = network.get_submodule("parts.lora")
    with torch.no_grad():
        return {name: a(values[:, : a.down.weight.shape[1]]) for name, a in adapters.items() if "unit" in name}


@pytest.mark.parametrize("fixed", [True, False])
def test_with_the_first_matrix_fixed_the_mean_of_adapters_adds_the_mean_of_what_they_add(fixed, tmp_path):
    """Sites with other cases; without it the global adapter adds something else. Of several steps: in the first one
    ``up`` is zero, so that ``down`` does not move yet."""
    parts = [{"name": "lora", "rank": 2, "alpha": 64.0, "fixed_down": fixed}]
    training = {**PLAN["training"], "local_epochs": 4}
    plan = parse_plan({**PLAN, "network": {**PLAN["network"], "parts": parts}, "training": training})
    start, sites = get_weights(plan.build_network()), make_sites(tmp_path / "data", {"a": (2, 1), "b": (2, 1)})
    moved = [
        SiteTrainer(plan, site, read_datalist(sites / site)).train_round(start, 0, 2).weights for site in ("a", "b")
    ]
    down = [name for name in start if name.endswith(".down.weight")]
    assert all(np.array_equal(weights[name], start[name]) == fixed for weights in moved for name in down)
    mean = {name: np.mean([weights[name] for weights in moved], axis=0, dtype=np.float64) for name in start}
    mean = {name: value.astype(start[name].dtype) for name, value in mean.items()}
    found, own = added_by(mean, plan, start), [added_by(weights, plan, start) for weights in moved]
    far = {n: float((found[n] - (own[0][n] + own[1][n]) / 2).abs().max() / found[n].abs().max()) for n in found}
    assert far
    assert all((difference < 1e-4) == fixed for difference in far.values()), far


def test_a_fixed_first_matrix_is_neither_trained_nor_sent():
    plan = plan_with(fixed_down=True)
    owners, network = plan.network.owners(plan.build_network()), plan.build_network()
    down = {name for name in network.state_dict() if name.startswith("parts.lora.") and ".down." in name}
    assert down <= set(owners)
    assert not any(owners[name].trained("a", 0) or owners[name].sent("a", 0) for name in down)
    assert {n for n in network.state_dict() if ".up." in n}.isdisjoint(owners)


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
