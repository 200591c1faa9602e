"""Activation checkpointing changes what is kept, and nothing that is computed."""

import copy

import pytest
import torch

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.networks.arguments import NetworkArguments
from fedseg.networks.demand import NUMBER_BYTES, demand
from fedseg.networks.parts.deep_supervision import take_coarser
from fedseg.networks.registry import NETWORKS, parse_network
from fedseg.training.demand import training_bytes
from hooked import assert_same, make_trainer, run_rounds
from tiny import PLAN, make_sites

SMALL = {
    "residual_unet": {"channels": [4, 6, 8, 8], "strides": [2, 2, 2]},
    "dynunet": {"filters": [4, 6, 8, 8], "strides": [1, 2, 2, 2]},
    "segresnet": {"init_filters": 8},
    "residual_encoder_unet": {"features": [4, 6, 8, 8], "blocks": [1, 2, 1, 1]},
    "mednext": {"init_filters": 4, "blocks_down": [1, 1, 1], "blocks_up": [1, 1, 1], "blocks_bottom": 1},
}
STAGED = [name for name in SMALL if name in NETWORKS]
IMAGES = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))


def declare(name, norm="instance"):
    return parse_network({"name": name, "norm": norm, **SMALL[name], "parts": [{"name": "deep_supervision"}]})


def step(network):
    """Bytes that torch keeps of a forward pass, weights left out; then the network has gradients."""
    network.train()
    kept, weights = {}, {p.untyped_storage().data_ptr() for p in network.parameters()}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(IMAGES)
    weight, coarser = take_coarser(network)
    loss = weight * logits.square().mean() + sum(share * each.square().mean() for share, each in coarser)
    loss.backward()
    return sum(size for place, size in kept.items() if place not in weights)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("name", STAGED)
def test_gradients_and_running_statistics_are_the_same_to_the_bit_and_less_is_kept(name, norm):
    declared = declare(name, norm)
    plain, twice = (declared.build(1, 2, 1, (16, 16, 16), chosen) for chosen in (False, True))
    kept, less = step(plain), step(twice)
    for (own, first), (other, second) in zip(plain.named_parameters(), twice.named_parameters(), strict=True):
        assert own == other
        assert torch.equal(first.grad, second.grad), own
    assert_same(plain.state_dict(), twice.state_dict())
    needs = demand(declared, 1, 2, (16, 16, 16))
    assert less < 0.5 * kept
    assert less < len(IMAGES) * NUMBER_BYTES * needs.kept_once < len(IMAGES) * NUMBER_BYTES * needs.kept


def test_a_copy_computes_with_its_own_weights():
    network = declare("dynunet").build(1, 2, 1, (16, 16, 16), True)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.input_block.conv1.conv.weight.zero_()
    step(other)
    assert all(p.grad is None for p in network.parameters())
    assert not torch.equal(network.eval()(IMAGES), other.eval()(IMAGES))


def test_prediction_keeps_nothing():
    network = declare("dynunet").build(1, 2, 1, (16, 16, 16), True).eval()
    plain = declare("dynunet").build(1, 2, 1, (16, 16, 16)).eval()
    with torch.inference_mode():
        assert torch.equal(network(IMAGES), plain(IMAGES))


def test_a_site_trains_to_the_same_weights(tmp_path):
    datalist = read_datalist(make_sites(tmp_path, {"a": (3, 1)}) / "a")
    both = [
        run_rounds(lambda chosen=chosen: make_trainer(datalist, changes={"activation_checkpointing": chosen}))
        for chosen in (False, True)
    ]
    assert_same(*both)


def test_the_estimate_of_a_job_falls():
    kept, once = (
        training_bytes(parse_plan({**PLAN, "training": {**PLAN["training"], "activation_checkpointing": chosen}}), 3)
        for chosen in (False, True)
    )
    assert once < kept


def test_it_is_refused_where_it_cannot_work(monkeypatch):
    asked = {**PLAN, "training": {**PLAN["training"], "activation_checkpointing": True}}
    with pytest.raises(ConfigurationError, match="split training"):
        parse_plan({**asked, "split": {}})
    monkeypatch.setattr(NETWORKS["residual_unet"], "stages", NetworkArguments.stages)
    with pytest.raises(ConfigurationError, match=r"training\.activation_checkpointing.*residual_unet"):
        parse_plan({**asked, "network": "residual_unet", "task": "hippocampus"})
