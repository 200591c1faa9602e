import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from fedseg.errors import ConfigurationError
from fedseg.networks.layers import last_names
from fedseg.networks.parts.head_calibration import HeadCalibration, bells, calibration_of, head_of, peaks
from fedseg.networks.registry import parse_network

NETWORKS = [
    {"name": "residual_unet", "channels": [4, 8, 8], "strides": [2, 2]},
    {"name": "dynunet", "filters": [4, 6, 8], "strides": [1, 2, 2]},
    {"name": "segresnet", "init_filters": 4, "blocks_down": [1, 1], "blocks_up": [1]},
    {"name": "residual_encoder_unet", "features": [4, 6, 8, 10], "blocks": [1, 1, 2, 1]},
]
SIZE = (16, 16, 16)
EACH = pytest.mark.parametrize("declaration", NETWORKS, ids=lambda each: each["name"])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parsed(declaration, **part):
    return parse_network({**declaration, "parts": [{"name": "head_calibration", **part}]})


def built(declaration, **part):
    return parsed(declaration, **part).build(2, 3, seed=1, patch_size=SIZE).eval()


def given_heads(network, count, step=0.0):
    """The network's own head so many times, each moved a little further away."""
    head = head_of(network)
    move = [step * (n + 1) * draw(*head.weight.shape, seed=n) for n in range(count)]
    return torch.stack([head.weight + m for m in move]), torch.stack([head.bias + m.mean() for m in move])


def logits_of(declaration, network, images):
    """What the network without the part gives."""
    plain = parse_network(declaration).build(2, 3, seed=1, patch_size=SIZE).eval()
    plain.load_state_dict({n: v for n, v in network.state_dict().items() if not n.startswith("parts.")})
    return plain(images)


@EACH
def test_the_head_is_the_last_module_and_private_with_all_that_is_its_own(declaration):
    declared, network = parsed(declaration), built(declaration)
    plain = parse_network(declaration).build(2, 3, seed=1)
    private = {name for name, owner in declared.owners(network).items() if owner.private}
    heads = set(last_names(plain, 1, (1, 2, *SIZE)))
    assert private == heads | {name for name in network.state_dict() if name.startswith("parts.")}


@EACH
def test_with_a_weight_of_zero_the_network_gives_what_it_gives_without_the_part(declaration):
    network, images = built(declaration, weight=0), draw(1, 2, *SIZE)
    with torch.no_grad():
        calibration_of(network).meet(*given_heads(network, 2, 0.5))
        assert torch.equal(network(images), logits_of(declaration, network, images))


@pytest.mark.parametrize("count", [0, 1, 3])
@EACH
def test_one_site_alone_and_equal_heads_disagree_nowhere(declaration, count):
    """Then the calibration sees the features, and them once more weighed by what the own head says."""
    network, images = built(declaration), draw(2, 2, *SIZE)
    calibration, kept = calibration_of(network), []
    head_of(network).register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        if count:
            calibration.meet(*given_heads(network, count))
        found, logits = network(images), logits_of(declaration, network, images)
        features = kept[0]
        assert not calibration.disagreement(features, logits, head_of(network)).any()
        said = bells(torch.sigmoid(logits), 9, sums_to_one=True)
        pieces = [piece for c in range(3) for piece in (features, features * said[:, c : c + 1] + features)]
        torch.testing.assert_close(found, calibration.fuse(torch.cat(pieces, dim=1)))


@EACH
def test_disagreement_is_the_root_of_the_mean_square_over_heads_by_its_largest_value(declaration):
    """Against whole networks, each with another site's head in the place of its own."""
    network, images, kept = built(declaration), draw(2, 2, *SIZE), []
    head_of(network).register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        weights, biases = given_heads(network, 2, 0.3)
        calibration_of(network).meet(weights, biases)
        network(images)
        own = logits_of(declaration, network, images)
        found = calibration_of(network).disagreement(kept[0], own, head_of(network))
        others, before = [], {n: v.clone() for n, v in head_of(network).state_dict().items()}
        for weight, bias in zip(weights, biases, strict=True):
            head_of(network).load_state_dict({"weight": weight, "bias": bias})
            others.append(torch.sigmoid(logits_of(declaration, network, images)).double())
        head_of(network).load_state_dict(before)
        square = sum((other - torch.sigmoid(own).double()) ** 2 for other in others) / 2
        for image, channel in itertools.product(range(2), range(3)):
            spread = square[image, channel].sqrt()
            np.testing.assert_allclose(found[image, channel], spread / spread.max(), atol=2e-4)
        assert found.amax(dim=(2, 3, 4)).tolist() == [[1.0] * 3] * 2


def around(volume, place, window):
    """The values of a window that lie in the volume, with how far each is from its centre along the axes."""
    reach = range(-(window // 2), window // 2 + 1)
    for far in itertools.product(reach, repeat=3):
        at = tuple(p + d for p, d in zip(place, far, strict=True))
        if all(0 <= a < s for a, s in zip(at, volume.shape, strict=True)):
            yield far, volume[at]


@pytest.mark.parametrize("window", [3, 5])
def test_peaks_and_bells_voxel_by_voxel(window):
    values = torch.rand(1, 2, 4, 5, 6, generator=torch.Generator().manual_seed(2))
    raised, one, high = peaks(values, window), bells(values, window, sums_to_one=True), bells(values, window)
    line = [math.exp(-0.5 * (d / (window / 5)) ** 2) for d in range(-(window // 2), window // 2 + 1)]
    for channel in range(2):
        volume = values[0, channel].numpy().astype(float)
        for place in np.ndindex(volume.shape):
            near = list(around(volume, place, window))
            peak = bool(volume[place] == max(value for _, value in near) and volume[place] > 0.2)
            assert bool(raised[0, channel][place]) is peak
            sums = sum(v * math.exp(-0.5 * sum((d / (window / 5)) ** 2 for d in far)) for far, v in near)
            assert float(high[0, channel][place]) == pytest.approx(sums, rel=1e-4)
            assert float(one[0, channel][place]) == pytest.approx(sums / sum(line) ** 3, rel=1e-4)
    assert 0 < raised.sum() < raised.numel()


def test_the_gradient_of_the_calibrated_logits_reaches_the_calibration_only():
    network, images = built(NETWORKS[1]).train(), draw(1, 2, *SIZE)
    calibration_of(network).meet(*given_heads(network, 1, 0.3))
    network(images)
    calibration_of(network).calibrated.sum().backward()
    assert {n for n, p in network.named_parameters() if p.grad is not None} == {
        "parts.head_calibration.fuse.weight",
        "parts.head_calibration.fuse.bias",
    }


def test_a_network_that_ends_in_another_layer_is_refused_by_name():
    small = {"name": "mednext", "init_filters": 4, "blocks_down": [1], "blocks_up": [1], "blocks_bottom": 1}
    wrong = r"head_calibration is 'on MedNeXt, whose last layer is ConvTranspose3d', but must be on a network that ends"
    with pytest.raises(ConfigurationError, match=wrong):
        built(small)
    attention = parse_network({**small, "parts": [{"name": "site_attention"}]}).build(2, 3, seed=1, patch_size=SIZE)
    assert attention(draw(1, 2, *SIZE)).shape == (1, 3, *SIZE)


def test_more_heads_than_there_is_room_for_are_refused():
    calibration = HeadCalibration(nn.Conv3d(2, 1, 1), sites=1, window=3, weight=1.0)
    with pytest.raises(ConfigurationError, match="at least 2, the other sites"):
        calibration.meet(torch.zeros(2, 1, 2, 1, 1, 1), torch.zeros(2, 1))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"weight": -1}, "weight"), ({"window": 4}, "window"), ({"window": 1}, "window"), ({"sites": 0}, "sites")],
)
def test_wrong_arguments_are_refused(arguments, named):
    with pytest.raises(ConfigurationError, match=f"{named} is "):
        parsed(NETWORKS[0], **arguments)
