import pytest
import torch
from torch import nn

from fedseg.networks.parts.site_attention import SiteAttention
from fedseg.networks.registry import parse_network

SITES, FEATURES = 4, 32


@pytest.mark.parametrize("site", range(SITES))
def test_an_embedding_of_the_sites_own_is_its_column_of_a_layer_that_sees_its_number(site):
    """The published form: a one-hot vector, two layers, and the same two for mean and maximum."""
    draw = torch.Generator().manual_seed(0)
    first = nn.Linear(SITES, FEATURES, bias=False)
    part = SiteAttention(FEATURES)
    values = torch.randn(3, FEATURES, 4, 3, 2, generator=draw)
    with torch.no_grad():
        part.embedding.copy_(first.weight[:, site])
        number = torch.zeros(1, SITES)
        number[0, site] = 1
        embedded = part.expand(torch.relu(first(number)))
        for image in range(3):
            logits = torch.zeros(FEATURES)
            for pooled in (values[image].mean(dim=(1, 2, 3)), values[image].amax(dim=(1, 2, 3))):
                logits += part.excite(torch.relu(part.squeeze(torch.cat([pooled, embedded[0]]))))
            weights = 1 / (1 + torch.exp(-logits))
            torch.testing.assert_close(part.attention(values)[image], weights)
            weighed = part.weigh(nn.Identity(), (), values)[image]
            torch.testing.assert_close(weighed, values[image] * (1 + weights)[:, None, None, None])


@pytest.mark.parametrize("name", ["residual_unet", "dynunet", "segresnet", "residual_encoder_unet"])
def test_only_the_embedding_is_private_and_each_site_sees_with_its_own(name):
    declared = parse_network({"name": name, "parts": [{"name": "site_attention"}]})
    network = declared.build(1, 2, seed=1).eval()
    assert {n for n, owner in declared.owners(network).items() if owner.private} == {"parts.site_attention.embedding"}
    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = network(image)
        network.get_submodule("parts.site_attention").embedding.neg_()
        assert not torch.equal(network(image), before)
