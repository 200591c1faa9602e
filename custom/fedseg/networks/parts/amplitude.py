"""Amplitude normalisation: every image gets the amplitudes of all sites, and keeps its own phases."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from fedseg.allowed import one_of, setting, whole
from fedseg.errors import ConfigurationError
from fedseg.networks.parts.part import FIXED, PREFIX, Owners, Part, Place, module_of, see_first

AMPLITUDE = "amplitude"
SPECTRUM = f"{PREFIX}.{AMPLITUDE}.spectrum"
"""Name of the mean amplitudes among the arrays of a network."""


class AmplitudeNormalisation(nn.Module):
    """x' = Re IFFT(A * exp(i * phase(FFT x))) over the three axes of a patch, where A is known; elsewhere x's own.

    Source: Jiang, Wang and Dou, "HarmoFL", AAAI 2022, eq. 2 to 4, in three dimensions.

    Attributes:
        spectrum: A, mean |FFT x| / (X * Y * Z) of all sites' images [1, C, X', Y', Z'], in the order of the FFT: the
            frequencies from 0 up, then those below 0. While all are 0, as before the sites were asked, images stay as
            they are.
    """

    spectrum: torch.Tensor

    def __init__(self, place: Place, window: int | None) -> None:
        """Make room for the amplitudes.

        Args:
            place: gives channels and patch size.
            window: highest frequency on each axis, in cycles per patch, whose amplitude is replaced; None for all.
        """
        super().__init__()
        self.patch_size, self.window = place.patch_size, window
        kept = [len(_frequencies(size, window)) for size in place.patch_size]
        self.register_buffer("spectrum", torch.zeros(1, place.in_channels, *kept))

    def measure(self, images: torch.Tensor) -> torch.Tensor:
        """Amplitudes [B, C, X', Y', Z'] of patches [B, C, X, Y, Z], as ``spectrum`` holds their mean."""
        return self._transform(images)[self._places()].abs()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not bool(self.spectrum.any()):
            return images
        transformed, places = self._transform(images), self._places()
        phases = transformed[places].angle()
        transformed[places] = torch.polar(self.spectrum.to(phases.dtype).expand_as(phases), phases)
        return torch.fft.ifftn(transformed, dim=(-3, -2, -1), norm="forward").real.contiguous()

    def _transform(self, images: torch.Tensor) -> torch.Tensor:
        if tuple(images.shape[2:]) != tuple(self.patch_size):
            raise ValueError(f"The image is {tuple(images.shape[2:])}, but amplitudes are of {self.patch_size}.")
        return torch.fft.fftn(images, dim=(-3, -2, -1), norm="forward")

    def _places(self) -> tuple[slice | torch.Tensor, ...]:
        """Where the amplitudes of the window stand in a transform [B, C, X, Y, Z]."""
        x, y, z = (_frequencies(size, self.window).to(self.spectrum.device) for size in self.patch_size)
        return slice(None), slice(None), x[:, None, None], y[:, None], z


@dataclass(frozen=True)
class Amplitude(Part):
    """The part ``amplitude``. Its amplitudes come from the server, and no site changes them.

    Attributes:
        mode: ``dc``: the amplitude of frequency 0 only, which moves an image's mean, as the published code does;
            ``window``: all up to ``window``; ``full``: all, as the paper writes.
        window: highest frequency of mode ``window`` on each axis, in cycles per patch.
    """

    name: ClassVar[str] = AMPLITUDE
    one_size: ClassVar[bool] = True
    mode: str = setting("dc", one_of, choices=("dc", "window", "full"))
    window: int = setting(1, whole, least=1)

    def add(self, network: nn.Module, place: Place) -> None:
        window = {"dc": 0, "window": self.window, "full": None}[self.mode]
        see_first(network, AMPLITUDE, AmplitudeNormalisation(place, window))

    def owners(self, network: nn.Module) -> Owners:
        return {SPECTRUM: FIXED}

    def check_channels(self, channels: Sequence[str], optional: Collection[str], where: str) -> None:
        if optional:
            why = "An image without a channel has no amplitudes of it."
            raise ConfigurationError(where, self.name, "left out of a task with optional channels", why)


def amplitude_of(network: nn.Module) -> AmplitudeNormalisation:
    """The part of a network that has it."""
    return module_of(network, AMPLITUDE, AmplitudeNormalisation)


def _frequencies(size: int, window: int | None) -> torch.Tensor:
    """Where the frequencies from -window to window stand among the ``size`` of an FFT."""
    if window is None or 2 * window + 1 >= size:
        return torch.arange(size, device="cpu")
    return torch.cat([torch.arange(window + 1, device="cpu"), torch.arange(size - window, size, device="cpu")])
