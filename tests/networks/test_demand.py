"""What a network takes, counted before it is built, beside what torch really keeps once it is."""

import pytest
import torch

from fedseg import memory
from fedseg.errors import ConfigurationError
from fedseg.networks.demand import NUMBER_BYTES, check_pass, demand
from fedseg.networks.registry import NETWORKS, parse_network
from tiny import LARGER, SMALL


@pytest.mark.parametrize("norm", ["instance", "group", "batch"])
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_and_kept_outputs_are_those_of_torch(name, norm):
    """Torch itself says which storages it keeps for the backward pass."""
    declared = parse_network({"name": name, "norm": norm, **SMALL[name]})
    size = LARGER.get(name, (32, 16, 16))
    counted = demand(declared, 2, 3, size)
    network, kept = declared.build(2, 3, 0, size), {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    image, weights = torch.zeros(1, 2, *size), {p.untyped_storage().data_ptr() for p in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(image)
    real = sum(size for place, size in kept.items() if place not in weights) / NUMBER_BYTES
    assert counted.weights == sum(value.numel() for value in network.state_dict().values())
    assert 0.6 * real <= counted.kept <= 1.7 * real
    assert image.numel() < counted.largest <= counted.kept + image.numel()


def test_a_batch_of_nothing_is_built_while_it_is_counted():
    """The largest network that may be declared has terabytes of weights."""
    largest = parse_network({"name": "residual_unet", "channels": [4096] * 8, "strides": [2] * 7, "res_units": 32})
    counted = demand(largest, 64, 255, (1024, 1024, 1024))
    assert counted.weights * NUMBER_BYTES > 2**38
    assert counted.kept * NUMBER_BYTES > 2**43


def test_a_network_whose_weights_do_not_fit_is_not_built():
    declared = parse_network({"name": "residual_unet", "channels": [4096] * 8, "strides": [2] * 7, "res_units": 32})
    with pytest.raises(ConfigurationError, match=r"The memory of the network residual_unet is '.* GiB', but must be"):
        declared.build(1, 2, 0)


def test_nor_is_one_whose_pass_does_not_fit(monkeypatch):
    declared = parse_network("residual_unet")
    check_pass(declared, 1, 3, (64, 64, 64))
    needs = demand(declared, 1, 3, (64, 64, 64))
    for room, fits in ((1, True), (-1, False)):
        most = (needs.weights + needs.largest) * NUMBER_BYTES + room
        monkeypatch.setattr(memory, "machine_memory", lambda most=most: most)
        if fits:
            check_pass(declared, 1, 3, (64, 64, 64))
        else:
            with pytest.raises(ConfigurationError, match="patches of 64x64x64 voxels"):
                check_pass(declared, 1, 3, (64, 64, 64))


@pytest.mark.parametrize(
    ("declaration", "named"),
    [
        ({"channels": [16, 100_000]}, "channels"),
        ({"channels": [2**70, 2]}, "channels"),
        ({"channels": [8] * 13, "strides": [1] * 12}, "channels"),
        ({"strides": [2, 2, 10**6]}, "strides"),
        ({"strides": [2, 2, [1, 1, 16]]}, "strides"),
        ({"res_units": 10**9}, "res_units"),
        ({"name": "dynunet", "filters": [10**5, 4, 4]}, "filters"),
        ({"name": "dynunet", "filters": [8] * 100, "strides": [1] * 100}, "filters"),
        ({"name": "dynunet", "kernels": [3, 3, 3, 99]}, "kernels"),
        ({"name": "segresnet", "init_filters": 1024}, "init_filters"),
        ({"name": "segresnet", "blocks_down": [1, 10**8, 1], "blocks_up": [1, 1]}, "blocks_down"),
        ({"name": "segresnet", "blocks_down": [1] * 40, "blocks_up": [1] * 39}, "blocks_down"),
    ],
)
def test_absurd_numbers_are_refused_where_they_enter(declaration, named):
    with pytest.raises(ConfigurationError, match=rf"^network\.{named}"):
        parse_network(declaration)
