"""The random changes of nnU-Net, version 2: what is drawn for a patch, and what is made of it.

Source: Isensee et al., Nat Methods 2021, and its trainer of version 2 with batchgeneratorsv2. Patches are turned in
millimetres here, so that things keep their shape where voxels are no cubes; there they are turned in voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from fedseg.training.augmentation import Augmentation, Sample, flat_axis, turn_in_mm

TURN_PROBABILITY, LARGEST_TURN, LARGEST_FLAT_TURN = 0.2, np.pi / 6, np.pi
ZOOM_PROBABILITY, SCALES = 0.2, (0.7, 1.4)
NOISE_PROBABILITY, LARGEST_NOISE = 0.1, 0.1
BLUR_PROBABILITY, BLUR_OF_CHANNEL, BLURS = 0.2, 0.5, (0.5, 1.0)
BRIGHTNESS_PROBABILITY, CONTRAST_PROBABILITY, FACTORS = 0.15, 0.15, (0.75, 1.25)
LOW_PROBABILITY, LOW_OF_CHANNEL, LOW_SCALES = 0.25, 0.5, (0.5, 1.0)
INVERTED_GAMMA_PROBABILITY, GAMMA_PROBABILITY, GAMMAS = 0.1, 0.3, (0.7, 1.5)
MIRROR_PROBABILITY = 0.5
_LEAST = 1e-7
# Three standard deviations, as far as nnU-Net's kernels go.
_TRUNCATE = 3.0

PerChannel = tuple[float | None, ...]


@dataclass(frozen=True)
class Shown:
    """How a patch with some channels is shown otherwise; None leaves it, or a channel, as it is.

    Attributes:
        noise: standard deviation of the noise, which all channels have in common, and its seed.
        blur: of each channel the standard deviation in voxels along each axis.
        brightness, contrast: of each channel a factor.
        resolution: of each channel which share of the voxels along an axis is kept.
        inverted_gamma, gamma: of each channel an exponent.
        mirrored: axes along which image and classes are mirrored.
    """

    noise: tuple[float, int] | None
    blur: tuple[tuple[float, float, float] | None, ...]
    brightness: PerChannel
    contrast: PerChannel
    resolution: PerChannel
    inverted_gamma: PerChannel
    gamma: PerChannel
    mirrored: tuple[int, ...]


def draw_shown(generator: np.random.Generator, channels: int, flip_axes: Sequence[int]) -> Shown:
    """Draw all changes but turns and zooms, each with its probability."""

    def happens(probability: float) -> bool:
        return bool(generator.random() < probability)

    def of_channels(probability: float, draw: Callable[[], float], of_channel: float = 1.0) -> PerChannel:
        if not happens(probability):
            return (None,) * channels
        return tuple(draw() if happens(of_channel) else None for _ in range(channels))

    noise = (float(generator.uniform(0, LARGEST_NOISE)), int(generator.integers(2**31)))
    noisy = happens(NOISE_PROBABILITY)
    blurred = happens(BLUR_PROBABILITY)
    blur = []
    for _ in range(channels):
        x, y, z = generator.uniform(*BLURS, 3).tolist()
        blur.append((x, y, z) if blurred and happens(BLUR_OF_CHANNEL) else None)
    return Shown(
        noise if noisy else None,
        tuple(blur),
        of_channels(BRIGHTNESS_PROBABILITY, lambda: around_one(generator, FACTORS)),
        of_channels(CONTRAST_PROBABILITY, lambda: around_one(generator, FACTORS)),
        of_channels(LOW_PROBABILITY, lambda: float(generator.uniform(*LOW_SCALES)), LOW_OF_CHANNEL),
        of_channels(INVERTED_GAMMA_PROBABILITY, lambda: around_one(generator, GAMMAS)),
        of_channels(GAMMA_PROBABILITY, lambda: around_one(generator, GAMMAS)),
        tuple(axis for axis in sorted(set(flip_axes)) if happens(MIRROR_PROBABILITY)),
    )


def around_one(generator: np.random.Generator, bounds: tuple[float, float]) -> float:
    """A factor below 1 as often as above, evenly on each side of it."""
    low, high = bounds
    return float(generator.uniform(low, 1) if generator.random() < 0.5 else generator.uniform(1, high))


class NnunetAugmentation(Augmentation):
    """``augmentation: nnunet``: turns, zooms, noise, blur, brightness, contrast, low resolution, gamma, mirrors."""

    def draw_turn(self, spacing: Sequence[float], generator: np.random.Generator) -> np.ndarray | None:
        turned, zoomed = generator.random(2) < (TURN_PROBABILITY, ZOOM_PROBABILITY)
        across = flat_axis(self.task.patch_size, spacing)
        largest = LARGEST_TURN if across is None else LARGEST_FLAT_TURN
        angles = generator.uniform(-largest, largest, 3) * turned
        # A grid that is larger by a factor shows things smaller by it.
        zoom = np.full(3, 1 / generator.uniform(*SCALES) if zoomed else 1.0)
        if across is not None:
            angles[np.arange(3) != across] = 0
            zoom[across] = 1
        return turn_in_mm(angles, zoom, spacing) if turned or zoomed else None

    def change(self, sample: Sample, generator: np.random.Generator, spacing: Sequence[float] = (1, 1, 1)) -> Sample:
        shown = draw_shown(generator, len(sample["image"]), self.task.flip_axes)
        image = sample["image"]
        changed = show(image, shown, flat_axis(self.task.patch_size, spacing))
        result = {**sample, "image": changed * self.something(image)}
        axes = [1 + axis for axis in shown.mirrored]
        return {name: values.flip(axes) for name, values in result.items()} if axes else result


def show(image: torch.Tensor, shown: Shown, across: int | None = None) -> torch.Tensor:
    """Apply drawn changes, but for mirrors, in nnU-Net's order.

    Args:
        image: [C, X, Y, Z]; stays as it is.
        shown: what was drawn.
        across: axis across thick slices, along which resolution is kept; None without one.
    """
    result = image.clone()
    if shown.noise is not None:
        deviation, seed = shown.noise
        # Its trainer has one noise for all channels: ``synchronize_channels`` of its GaussianNoiseTransform.
        drawn = np.random.default_rng(seed).normal(0, deviation, image.shape[1:])
        result += torch.from_numpy(drawn.astype(np.float32))
    for index in range(len(result)):
        channel = result[index]
        if (blur := shown.blur[index]) is not None:
            channel = blurred(channel, blur)
        if (factor := shown.brightness[index]) is not None:
            channel = channel * factor
        if (factor := shown.contrast[index]) is not None:
            channel = contrasted(channel, factor)
        if (share := shown.resolution[index]) is not None:
            channel = at_low_resolution(channel, share, across)
        if (exponent := shown.inverted_gamma[index]) is not None:
            channel = -with_gamma(-channel, exponent)
        if (exponent := shown.gamma[index]) is not None:
            channel = with_gamma(channel, exponent)
        result[index] = channel
    return result


def blurred(channel: torch.Tensor, deviations: Sequence[float]) -> torch.Tensor:
    """A channel [X, Y, Z] smoothed with a Gaussian of these standard deviations in voxels."""
    smooth = ndimage.gaussian_filter(channel.numpy(), deviations, mode="mirror", truncate=_TRUNCATE)
    return torch.from_numpy(smooth)


def contrasted(channel: torch.Tensor, factor: float) -> torch.Tensor:
    """Distances from the mean times a factor, cut at the smallest and largest value that there were."""
    mean = channel.mean()
    return ((channel - mean) * factor + mean).clamp(channel.min(), channel.max())


def at_low_resolution(channel: torch.Tensor, share: float, across: int | None) -> torch.Tensor:
    """A channel [X, Y, Z] with a share of its voxels along each axis but ``across``, brought back to its own grid."""
    sizes = [size if axis == across else max(1, round(size * share)) for axis, size in enumerate(channel.shape)]
    small = functional.interpolate(channel[None, None], sizes, mode="nearest-exact")
    return functional.interpolate(small, tuple(channel.shape), mode="trilinear")[0, 0]


def with_gamma(channel: torch.Tensor, exponent: float) -> torch.Tensor:
    """A channel whose values between its smallest and its largest go through a power; mean and deviation stay."""
    low, mean, deviation = channel.min(), channel.mean(), channel.std()
    span = channel.max() - low
    curved = ((channel - low) / span.clamp_min(_LEAST)) ** exponent * span + low
    return (curved - curved.mean()) * (deviation / curved.std().clamp_min(_LEAST)) + mean
