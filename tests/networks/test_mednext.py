"""MedNeXt: the network of MONAI without the biases that a normalisation takes away."""

import numpy as np
import pytest
import torch
from monai.networks.nets import MedNeXt

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.networks.registry import parse_network
from fedseg.networks.split.stages import stages_of
from fedseg.networks.weights import get_weights
from fedseg.training.trainer import SiteTrainer
from tiny import PLAN, make_sites

TINY = {"name": "mednext", "init_filters": 4, "blocks_down": [1, 1], "blocks_up": [1, 1], "blocks_bottom": 1}


def test_it_is_that_of_monai_with_biases_of_zero():
    network = parse_network({**TINY, "kernel": 5, "expansion": 3}).build(2, 3, seed=1).eval()
    theirs = MedNeXt(
        init_filters=4,
        in_channels=2,
        out_channels=3,
        encoder_expansion_ratio=3,
        decoder_expansion_ratio=3,
        bottleneck_expansion_ratio=3,
        kernel_size=5,
        use_residual_connection=True,
        blocks_down=(1, 1),
        blocks_bottleneck=1,
        blocks_up=(1, 1),
    ).eval()
    missing, unknown = theirs.load_state_dict(network.state_dict(), strict=False)
    assert not unknown
    assert missing
    assert all(name.endswith("conv1.bias") for name in missing)
    with torch.no_grad():
        for name in missing:
            theirs.get_parameter(name).zero_()
        image = torch.randn(2, 2, 16, 8, 12, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(network(image), theirs(image), atol=1e-5)


@pytest.mark.parametrize("parts", [[], [{"name": "deep_supervision"}]])
def test_a_site_trains_it(parts, tmp_path):
    datalist = read_datalist(make_sites(tmp_path / "data", {"a": (2, 1)}) / "a")
    plan = parse_plan({**PLAN, "network": {**TINY, "parts": parts}})
    weights = get_weights(plan.build_network())
    update = SiteTrainer(plan, "a", datalist).train_round(weights, 0, 2).update
    assert set(update) == set(weights)
    assert all(np.isfinite(value).all() and np.abs(value).max() > 0 for value in update.values())


def test_patches_must_be_divisible_and_it_cannot_be_cut():
    task = {**PLAN["task"], "patch_size": [16, 18, 16]}
    with pytest.raises(ConfigurationError, match=r"patch_size is .*divisible by \(4, 4, 4\)"):
        parse_plan({**PLAN, "task": task, "network": TINY})
    with pytest.raises(ConfigurationError, match=r"network\.name is 'mednext', but must be a network that can be cut"):
        stages_of(parse_network(TINY))
