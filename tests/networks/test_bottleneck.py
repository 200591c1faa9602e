"""The module that each network names as its bottleneck gives the coarsest representation there is."""

import pytest
import torch

from fedseg.networks.registry import parse_network
from fedseg.training.methods.bottleneck_features import BottleneckFeatures

# declaration, features of the coarsest level, its factor of downsampling
NETWORKS = [
    ({"name": "residual_unet", "channels": [4, 8], "strides": [2]}, 8, 2),
    ({"name": "residual_unet", "channels": [4, 8, 12, 16], "strides": [2, 1, 2], "res_units": 1}, 16, 4),
    ({"name": "residual_unet", "channels": [4, 6, 8, 10, 12], "strides": [2, 2, 2, 2], "norm": "group"}, 12, 16),
    ({"name": "dynunet", "filters": [4, 6, 8], "strides": [1, 2, 2]}, 8, 4),
    ({"name": "dynunet", "filters": [4, 6, 8, 10], "strides": [2, 2, 2, 2], "residual": True}, 10, 16),
    ({"name": "dynunet", "filters": [4, 6, 8], "strides": [1, 2, 2], "norm": "group"}, 8, 4),
    ({"name": "segresnet", "init_filters": 4, "blocks_down": [1, 1], "blocks_up": [1]}, 8, 2),
    ({"name": "segresnet", "init_filters": 4, "blocks_down": [1, 2, 2, 1], "blocks_up": [1, 1, 1]}, 32, 8),
    ({"name": "segresnet", "init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1], "norm": "group"}, 16, 2),
    ({"name": "residual_encoder_unet", "features": [4, 6, 8, 10], "blocks": [1, 1, 2, 1]}, 10, 8),
    ({"name": "mednext", "init_filters": 4, "blocks_down": [1, 2], "blocks_up": [1, 1]}, 16, 4),
]


@pytest.mark.parametrize(("declaration", "features", "factor"), NETWORKS)
def test_the_bottleneck_is_the_coarsest_level(declaration, features, factor):
    declared = parse_network(declaration)
    network = declared.build(2, 3, seed=0)
    assert declared.arguments.divisor == (factor,) * 3
    shapes = []
    for module in network.modules():
        module.register_forward_hook(lambda _module, _arguments, output: shapes.append(tuple(output.shape)))
    caught = []
    declared.arguments.bottleneck(network).register_forward_hook(lambda _m, _a, output: caught.append(output.shape))
    network(torch.zeros(1, 2, 64, 32, 16 * factor))
    assert [tuple(shape) for shape in caught] == [(1, features, 64 // factor, 32 // factor, 16)]
    assert declared.arguments.bottleneck_features == features
    assert min(shape[2] for shape in shapes) == 64 // factor


def test_features_are_the_mean_over_space_and_the_watch_ends():
    declared = parse_network({"name": "residual_unet", "channels": [4, 8], "strides": [2]})
    network = declared.build(1, 1, seed=0)
    module = declared.arguments.bottleneck(network)
    features = BottleneckFeatures()
    features.watch(module)
    features.watch(module)
    outputs = []
    module.register_forward_hook(lambda _m, _a, output: outputs.append(output))
    network(torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)))
    found = features.features()
    assert found.shape == (2, 8)
    assert torch.equal(found[1, 3], outputs[0][1, 3].flatten().mean())
    with pytest.raises(RuntimeError, match="No forward pass"):
        features.features()
    features.release()
    network(torch.zeros(1, 1, 8, 8, 8))
    with pytest.raises(RuntimeError, match="No forward pass"):
        features.features()
