import itertools

import pytest
import torch
from torch import nn

from fedseg.errors import ConfigurationError
from fedseg.networks.registry import parse_network
from fedseg.networks.residual_encoder import ResidualBlock

PLAN_L = {
    "name": "residual_encoder_unet",
    "features": [32, 64, 128, 256, 320, 320],
    "strides": [1, 2, 2, 2, 2, 2],
    "blocks": [1, 3, 4, 6, 6, 6],
    "blocks_up": [1, 1, 1, 1, 1],
}


def test_the_plan_l_has_as_many_parameters_as_nnunets():
    """Counted by hand from nnU-Net's plan, one channel in and two out; published as 102 million.

    There every convolution but those of the ways around has a bias as well, which the normalisation takes away.
    """
    widths, depths = PLAN_L["features"], PLAN_L["blocks"]
    total = 27 * 1 * widths[0] + 2 * widths[0]  # stem and its normalisation
    inputs = widths[0]
    for width, depth in zip(widths, depths, strict=True):
        total += 27 * width * (inputs + width) + 4 * width  # the first block
        total += (inputs * width + 2 * width) * (inputs != width)  # its way around
        total += (depth - 1) * (2 * 27 * width * width + 4 * width)
        inputs = width
    for fine, coarse in itertools.pairwise(widths):
        total += 8 * coarse * fine  # transposed convolution
        total += 27 * 2 * fine * fine + 2 * fine
    total += 2 * widths[0] + 2
    with torch.device("meta"):
        network = parse_network(PLAN_L).build(1, 2, seed=0)
    assert sum(parameter.numel() for parameter in network.parameters()) == total
    assert round(total / 1e6) == 102


def test_a_first_level_below_the_images_resolution_is_refused():
    strides = [2, *PLAN_L["strides"][1:]]
    with pytest.raises(ConfigurationError, match=r"must be 1 first\. Its output has the resolution of the first level"):
        parse_network({**PLAN_L, "strides": strides})


def test_a_block_begins_as_the_way_around_it():
    block = ResidualBlock(3, 5, 3, (2, 2, 1)).double()
    nn.init.zeros_(block.second.normalisation.weight)
    values = torch.randn(2, 3, 8, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # The mean over each 2 x 2 x 1 voxels, mixed over the channels, normalised over space, and a leaky ReLU.
    means = values.reshape(2, 3, 4, 2, 4, 2, 4).mean(dim=(3, 5))
    mixed = torch.einsum("oi,bixyz->boxyz", block.around[1].convolution.weight[..., 0, 0, 0], means)
    centred = mixed - mixed.mean(dim=(2, 3, 4), keepdim=True)
    normal = centred / (centred.square().mean(dim=(2, 3, 4), keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(block(values), torch.where(normal > 0, normal, 0.01 * normal), atol=1e-10)
    same = ResidualBlock(3, 3, 3).double()
    nn.init.zeros_(same.second.normalisation.weight)
    assert torch.equal(same(values), nn.functional.leaky_relu(values, 0.01))


@pytest.mark.parametrize("norm", ["instance", "group", "batch"])
def test_fresh_weights_have_such_blocks_only(norm):
    network = parse_network({"name": "residual_encoder_unet", "norm": norm}).build(1, 2, seed=0)
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 1 + 3 + 4 + 6
    assert not any(block.second.normalisation.weight.any() for block in blocks)
    assert all((block.first.normalisation.weight == 1).all() for block in blocks)
