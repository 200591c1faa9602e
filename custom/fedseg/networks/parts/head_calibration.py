"""Private heads, and a second one that looks where the heads of the sites disagree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from fedseg.allowed import number, setting, whole
from fedseg.errors import ConfigurationError
from fedseg.networks.parts.part import PREFIX, PRIVATE, Call, Owners, Part, Place, add_module, module_of

HEAD_CALIBRATION = "head_calibration"
# Share of an image's largest disagreement, below which a peak does not count.
_LEAST_PEAK = 0.2


class HeadCalibration(nn.Module):
    """A head of the site's own on its features f, weighed by where its sites' heads disagree and by what its own says.

    1. u = sqrt(mean over the other sites' heads of (p_other - p)^2), p being the sigmoid of logits, divided by its
       largest value in each image and channel; 0 while no other head is known.
    2. Of u the peaks stay: voxels that are the largest in their window, and above 0.2. G(u) puts a bell of height 1 at
       each; G(p) is p, smoothed by a bell of sum 1.
    3. The calibrated logits are a convolution of f * G(u_c) + f and f * G(p_c) + f of all channels c. f, u and p are
       taken as given: the gradient reaches that convolution only.

    Source: Wang et al., "Personalizing federated medical image segmentation via local calibration", ECCV 2022 (head
    calibration), in three dimensions. The published bell has height 1 for p too, which in a volume would multiply
    features by hundreds.

    Attributes:
        fuse: the convolution.
        weights, biases: of the other sites' heads, [sites, *of the head].
        known: 1 where there is such a head, [sites].
        weight: of the loss of the calibrated logits; 0 for the network's own head alone.
        place: name of the network's own head.
        calibrated: logits [B, out, ...] of the last forward pass in training; empty where there was none.
    """

    weights: torch.Tensor
    biases: torch.Tensor
    known: torch.Tensor

    def __init__(self, head: nn.Conv3d, sites: int, window: int, weight: float, place: str = "") -> None:
        """Make a fresh convolution, and room for heads.

        Args:
            head: the network's own.
            sites: how many others there may be.
            window, weight: see ``HeadCalibrationPart``.
            place: name of the head in its network.
        """
        super().__init__()
        outputs = head.out_channels
        self.fuse = nn.Conv3d(2 * outputs * head.in_channels, outputs, 3, padding=1)
        self.register_buffer("weights", torch.zeros(sites, *head.weight.shape))
        self.register_buffer("biases", torch.zeros(sites, outputs))
        self.register_buffer("known", torch.zeros(sites))
        self.weight, self.window, self.place = weight, window, place
        self.calibrated = torch.zeros(0)
        self._features = torch.zeros(0)

    def meet(self, weights: torch.Tensor, biases: torch.Tensor) -> None:
        """Take the heads of the other sites, in the place of those that were known.

        Args:
            weights: [N, *of the head], N from 0 up.
            biases: [N, out].

        Raises:
            ConfigurationError: they are more than there is room for.
        """
        if len(weights) > len(self.known):
            where, room = f"network.parts: {HEAD_CALIBRATION}.sites", f"at least {len(weights)}, the other sites"
            raise ConfigurationError(where, len(self.known), room)
        with torch.no_grad():
            for kept, given in ((self.weights, weights), (self.biases, biases)):
                kept.zero_()
                kept[: len(given)] = given.to(kept)
            self.known.zero_()
            self.known[: len(weights)] = 1

    def see(self, head: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Keep the features [B, F, ...] that the head gets."""
        self._features = inputs[0]

    def calibrate(self, network: nn.Module, inputs: Any, logits: torch.Tensor) -> torch.Tensor | None:
        """In training keep the calibrated logits, else put them in the place of the network's own."""
        features, self._features = self._features, torch.zeros(0)
        if not self.weight:
            return None
        head = network.get_submodule(self.place)
        assert isinstance(head, nn.Conv3d)
        found = self.fused(features.detach().float(), logits.detach().float(), head)
        if not network.training:
            return found
        self.calibrated = found
        return None

    def fused(self, features: torch.Tensor, logits: torch.Tensor, head: nn.Conv3d) -> torch.Tensor:
        """The calibrated logits [B, out, ...] of features [B, F, ...] and the own head's logits."""
        with torch.no_grad():
            raised = bells(peaks(self.disagreement(features, logits, head), self.window), self.window)
            said = bells(torch.sigmoid(logits), self.window, sums_to_one=True)
            maps = torch.stack([raised, said], dim=2).flatten(1, 2)
        pieces = [features * weights[:, None] + features for weights in maps.unbind(dim=1)]
        fused: torch.Tensor = self.fuse(torch.cat(pieces, dim=1))
        return fused

    def disagreement(self, features: torch.Tensor, logits: torch.Tensor, head: nn.Conv3d) -> torch.Tensor:
        """u, from 0 to 1, as the logits [B, out, ...]."""
        own, total, count = torch.sigmoid(logits), torch.zeros_like(logits), 0
        for place in self.known.nonzero().flatten().tolist():
            bias = self.biases[place] - head.bias if head.bias is not None else None
            change = functional.conv3d(
                features, self.weights[place] - head.weight, bias, head.stride, head.padding, head.dilation
            )
            total, count = total + (torch.sigmoid(logits + change) - own) ** 2, count + 1
        spread = (total / max(count, 1)).sqrt()
        largest = spread.amax(dim=(2, 3, 4), keepdim=True)
        return torch.where(largest > 0, spread / largest.clamp(min=torch.finfo(spread.dtype).tiny), 0.0)


def peaks(values: torch.Tensor, window: int) -> torch.Tensor:
    """1 where a value [B, C, X, Y, Z] is the largest in the window around it and above 0.2, else 0."""
    largest = values
    for axis in range(3):
        size, reach = [1, 1, 1], [0, 0, 0]
        size[axis], reach[axis] = window, window // 2
        largest = functional.max_pool3d(largest, size, 1, reach)
    return ((values == largest) & (values > _LEAST_PEAK)).to(values.dtype)


def bells(values: torch.Tensor, window: int, sums_to_one: bool = False) -> torch.Tensor:
    """Values [B, C, X, Y, Z] under a Gaussian bell that is cut at the window, and a fifth of it wide.

    Args:
        values: 0 around the image.
        window: odd.
        sums_to_one: whether the bell's sum is 1; else its height is.
    """
    places = torch.arange(window, dtype=values.dtype, device=values.device) - window // 2
    bell = torch.exp(-0.5 * (places / (window / 5)) ** 2)
    bell = bell / bell.sum() if sums_to_one else bell
    smoothed, shape = values.flatten(0, 1)[:, None], [1, 1, 1]
    for axis in range(3):
        kernel, reach = [*shape], [0, 0, 0]
        kernel[axis], reach[axis] = window, window // 2
        smoothed = functional.conv3d(smoothed, bell.view(1, 1, *kernel), padding=reach)
    return smoothed.view(values.shape)


def _odd(name: str, value: Any) -> int:
    window = whole(name, value, least=3, most=63)
    if window % 2 == 0:
        raise ConfigurationError(name, value, "odd")
    return window


@dataclass(frozen=True)
class HeadCalibrationPart(Part):
    """The part ``head_calibration``: the last convolution and the calibration are the site's own.

    ``LCFed`` trains it, and brings the heads of the other sites; before that no other head is known. MedNeXt, which
    ends in a transposed convolution, is refused.

    Attributes:
        weight: of the loss of the calibrated logits; 0 leaves private heads alone.
        window: of peaks and bells, in voxels; odd.
        sites: how many other sites there may be.
    """

    name: ClassVar[str] = HEAD_CALIBRATION
    weight: float = setting(1.0, number, least=0, most=1e6)
    window: int = setting(9, _odd)
    sites: int = setting(16, whole, most=1000)

    def add(self, network: nn.Module, place: Place) -> None:
        head = network.get_submodule(place.head)
        if not isinstance(head, nn.Conv3d):
            found = f"on {type(network).__name__}, whose last layer is {type(head).__name__}"
            raise ConfigurationError(f"network.parts: {HEAD_CALIBRATION}", found, "on a network that ends in Conv3d")
        calibration = HeadCalibration(head, self.sites, self.window, self.weight, place.head)
        add_module(network, HEAD_CALIBRATION, calibration)
        head.register_forward_pre_hook(Call(calibration, "see"))
        network.register_forward_hook(Call(calibration, "calibrate"))

    def owners(self, network: nn.Module) -> Owners:
        start = f"{PREFIX}.{HEAD_CALIBRATION}."
        heads = [f"{calibration_of(network).place}.{name}" for name in ("weight", "bias")]
        return {name: PRIVATE for name in network.state_dict() if name.startswith(start) or name in heads}


def calibration_of(network: nn.Module) -> HeadCalibration:
    """The part of a network that has it."""
    return module_of(network, HEAD_CALIBRATION, HeadCalibration)


def take_calibrated(network: nn.Module) -> list[tuple[float, torch.Tensor]]:
    """What the part has of the last forward pass in training, which is then forgotten.

    Returns:
        The weight of the loss and the calibrated logits [B, out, ...]; none of a network without the part.
    """
    parts: Any = getattr(network, PREFIX, {})
    if HEAD_CALIBRATION not in parts:
        return []
    calibration: HeadCalibration = parts[HEAD_CALIBRATION]
    logits, calibration.calibrated = calibration.calibrated, torch.zeros(0)
    return [(calibration.weight, logits)] if logits.numel() else []


def head_of(network: nn.Module) -> nn.Conv3d:
    """The head of a network that has the part."""
    head = network.get_submodule(calibration_of(network).place)
    assert isinstance(head, nn.Conv3d)
    return head
