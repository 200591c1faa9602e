"""A part for tests: an affine map of the image, whose two arrays have an owner that the plan names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
from torch import nn

from fedseg.allowed import setting, switch, texts, whole
from fedseg.networks.parts import registry
from fedseg.networks.parts.part import Owners, Ownership, Part, Place, see_first
from tiny import PLAN

NAMES = ("parts.affine.weight", "parts.affine.bias")


@dataclass(frozen=True)
class Affine(Part):
    """Slope and offset of each channel."""

    name: ClassVar[str] = "affine"
    private: bool = setting(False, switch)
    sites: tuple[str, ...] = setting(("*",), texts)
    from_round: int = setting(0, whole, least=0)

    def add(self, network: nn.Module, place: Place) -> None:
        see_first(network, "affine", nn.Conv3d(place.in_channels, place.in_channels, 1, groups=place.in_channels))

    def owners(self, network: nn.Module) -> Owners:
        return dict.fromkeys(NAMES, Ownership(self.private, self.sites, self.from_round))


def declare(monkeypatch: pytest.MonkeyPatch, **arguments: object) -> dict[str, object]:
    """The tiny plan with the part ``affine``, which is known until the test ends."""
    monkeypatch.setitem(registry.PARTS, "affine", Affine)
    return {**PLAN, "network": {**PLAN["network"], "parts": [{"name": "affine", **arguments}]}}
