import copy

import pytest
import torch

from fedseg.contract.plan import parse_plan
from fedseg.errors import ConfigurationError
from fedseg.networks.parts.mixture import mixture_of
from fedseg.networks.registry import parse_network
from tiny import PLAN

NETWORKS = [
    {"name": "residual_unet", "channels": [4, 8, 8], "strides": [2, 2]},
    {"name": "dynunet", "filters": [4, 6, 8], "strides": [1, 2, 2]},
    {"name": "segresnet", "init_filters": 4, "blocks_down": [1, 1], "blocks_up": [1]},
    {"name": "residual_encoder_unet", "features": [4, 6, 8, 10], "blocks": [1, 1, 2, 1]},
]
BESIDE = [[], [{"name": "amplitude"}], [{"name": "deep_supervision"}]]
SIZE = (16, 16, 16)


def built(declaration, parts=()):
    return parse_network({**declaration, "parts": list(parts)}).build(2, 3, seed=1, patch_size=SIZE).eval()


def mixtures(declaration, parts):
    """A mixture whose halves differ, and both halves alone."""
    whole = built(declaration, [*parts, {"name": "mixture"}])
    first, second = built(declaration, parts), built(declaration, parts)
    with torch.no_grad():
        for number, network in enumerate((first, second)):
            for name, value in network.state_dict().items():
                value += 0.1 * (number + 1)
                if name.endswith("spectrum"):
                    value += torch.rand(value.shape, generator=torch.Generator().manual_seed(number))
    whole.load_state_dict(first.state_dict(), strict=False)
    mixture_of(whole).expert.load_state_dict(second.state_dict())
    return whole, first, second


@pytest.mark.parametrize("parts", BESIDE, ids=lambda parts: parts[0]["name"] if parts else "plain")
@pytest.mark.parametrize("declaration", NETWORKS, ids=lambda each: each["name"])
def test_a_shut_gate_gives_the_output_of_one_expert_to_the_last_bit(declaration, parts):
    if parts and parts[0]["name"] == "deep_supervision" and declaration["name"] == "segresnet":
        pytest.skip("its decoder has no coarser level")
    whole, first, second = mixtures(declaration, parts)
    images = torch.randn(2, 2, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for share, expert in ((1.0, first), (0.0, second)):
            mixture_of(whole).open(share)
            assert torch.equal(whole(images), expert(images))
        assert not torch.equal(first(images), second(images))
        mixture_of(whole).open(0.25)
        torch.testing.assert_close(whole(images), 0.25 * first(images) + 0.75 * second(images))


@pytest.mark.parametrize("declaration", NETWORKS, ids=lambda each: each["name"])
def test_each_image_has_a_share_of_its_own(declaration):
    whole, first, second = mixtures(declaration, [])
    sizes = torch.tensor([1.0, 3, 9]).view(3, 1, 1, 1, 1)
    images = torch.randn(3, 2, *SIZE, generator=torch.Generator().manual_seed(0)) * sizes
    gate, kept = mixture_of(whole).gate, []
    arguments = parse_network(declaration).arguments
    arguments.bottleneck(first).register_forward_hook(lambda m, i, o: kept.append(o))
    with torch.no_grad():
        one, other = first(images), second(images)
        gate.weight.copy_(torch.linspace(-1, 0.6, gate.in_features)[None] / kept[0].mean(dim=(2, 3, 4)).abs().max())
        gate.bias.fill_(0.2)
        found = whole(images)
        shares = []
        for image in range(3):
            sums = [float(kept[0][image, f].sum()) / kept[0][image, f].numel() for f in range(gate.in_features)]
            logit = sum(w * s for w, s in zip(gate.weight[0].tolist(), sums, strict=True)) + 0.2
            shares.append(1 / (1 + torch.tensor(-logit).exp()))
            mixed = shares[-1] * one[image] + (1 - shares[-1]) * other[image]
            torch.testing.assert_close(found[image], mixed, rtol=1e-4, atol=1e-5)
    assert len({round(float(share), 4) for share in shares}) == 3


def test_a_copy_mixes_with_its_own_expert():
    whole, _, second = mixtures(NETWORKS[0], [])
    twin = copy.deepcopy(whole)
    mixture_of(whole).open(0.0)
    mixture_of(twin).open(0.0)
    images = torch.randn(1, 2, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for value in mixture_of(twin).expert.parameters():
            value.zero_()
        assert torch.equal(whole(images), second(images))
        assert not twin(images).any()


def test_the_network_without_it_has_the_same_weights():
    plain, whole = built(NETWORKS[0]).state_dict(), built(NETWORKS[0], [{"name": "mixture"}]).state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in plain.items())
    assert set(whole) - set(plain) == {
        *(f"parts.mixture.expert.{name}" for name in plain),
        "parts.mixture.gate.weight",
        "parts.mixture.gate.bias",
    }


def test_no_plan_names_it():
    with pytest.raises(ConfigurationError, match="left out of the plan"):
        parse_plan({**PLAN, "network": {**PLAN["network"], "parts": [{"name": "mixture"}]}})
