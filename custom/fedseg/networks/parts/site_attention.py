"""Attention over channels by site: each site has a vector of its own, which weighs the features of the bottleneck."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import torch
from torch import nn

from fedseg.networks.parts.part import PREFIX, PRIVATE, Call, Owners, Part, Place, add_module

SITE_ATTENTION = "site_attention"
_REDUCTION = 16


class SiteAttention(nn.Module):
    """x <- x * h + x, with h = sigmoid(g(mean x, e) + g(max x, e)) for each image, and e = expand(relu(embedding)).

    Source: Wang et al., "Personalizing federated medical image segmentation via local calibration", ECCV 2022
    (personalised channel selection). There the first layer sees the number of the site as a one-hot vector; of its
    weights a site meets one column only, and nobody else's gradient changes that column. Here it is ``embedding``.

    Attributes:
        embedding: the site's own vector, [features].
        expand, squeeze, excite: of all sites; g is ``excite(relu(squeeze(.)))``.
    """

    def __init__(self, features: int) -> None:
        """Make fresh weights.

        Args:
            features: of the bottleneck.
        """
        super().__init__()
        hidden = max(1, features // _REDUCTION)
        self.embedding = nn.Parameter(torch.randn(features) * sqrt(2 / features))
        self.expand = nn.Linear(features, features, bias=False)
        self.squeeze = nn.Linear(2 * features, hidden, bias=False)
        self.excite = nn.Linear(hidden, features, bias=False)

    def attention(self, values: torch.Tensor) -> torch.Tensor:
        """h of each image [B, features], from the output of the bottleneck [B, features, X, Y, Z]."""
        flat = values.flatten(2)
        site = self.expand(torch.relu(self.embedding)).expand(len(flat), -1)
        pooled = torch.stack([flat.mean(dim=2), flat.amax(dim=2)])
        each = self.excite(torch.relu(self.squeeze(torch.cat([pooled, site.expand(2, -1, -1)], dim=2))))
        return torch.sigmoid(each.sum(dim=0))

    def weigh(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """Put weighed features in the place of what the bottleneck gave."""
        return output * self.attention(output)[:, :, None, None, None] + output


@dataclass(frozen=True)
class SiteAttentionPart(Part):
    """The part ``site_attention``: the embedding stays at its site, the rest is shared."""

    name: ClassVar[str] = SITE_ATTENTION

    def add(self, network: nn.Module, place: Place) -> None:
        assert place.bottleneck is not None
        attention = SiteAttention(place.bottleneck.features)
        add_module(network, SITE_ATTENTION, attention)
        network.get_submodule(place.bottleneck.module).register_forward_hook(Call(attention, "weigh"))

    def owners(self, network: nn.Module) -> Owners:
        return {f"{PREFIX}.{SITE_ATTENTION}.embedding": PRIVATE}
