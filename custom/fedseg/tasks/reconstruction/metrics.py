"""How alike a reconstruction and an image are, and the references without which such a number says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from monai.metrics.regression import SSIMMetric
from torch.nn import functional

WINDOW = 11  # voxels of the Gaussian window of SSIM along each axis, as published
_EXACT = 1e-12  # squared error, in squared ranges, below which images count as equal: 120 dB


@dataclass(frozen=True)
class Likeness:
    """How alike two images are, as means over channels.

    Attributes:
        ssim: structural similarity (Wang et al., IEEE TIP 2004) in 3D; 1 for equal images, about 0 for unrelated ones.
        psnr: peak signal-to-noise ratio in dB, the peak being the range of the original; at most 120.
        correlation: Pearson's, over voxels; 0 where the reconstruction is constant.
    """

    ssim: float
    psnr: float
    correlation: float

    def to_dict(self) -> dict[str, float]:
        """Plain JSON form."""
        return asdict(self)


def likeness(original: torch.Tensor, other: torch.Tensor) -> Likeness | None:
    """Compare an image [C, X, Y, Z] with its reconstruction of the same shape.

    Both are brought to the range of the original, channel by channel: SSIM is made for values that begin at 0, and its
    constants count in ranges. A channel without contrast is left out.

    Returns:
        Means over the other channels; None where no channel has any contrast.
    """
    found = []
    for reference, guess in zip(original.double(), other.double(), strict=True):
        low, high = reference.min(), reference.max()
        if high > low:
            found.append(_compare((reference - low) / (high - low), (guess - low) / (high - low)))
    return mean_likeness(found)


def mean_likeness(found: Sequence[Likeness | None]) -> Likeness | None:
    """The mean of those that there are; None where there is none."""
    known = [one for one in found if one is not None]
    if not known:
        return None
    return Likeness(*(sum(getattr(one, name) for one in known) / len(known) for name in Likeness.__annotations__))


def blurred(image: torch.Tensor, factor: int) -> torch.Tensor:
    """A copy of an image [C, X, Y, Z] at a lower resolution: averaged to a ``factor``-th, and interpolated back."""
    x, y, z = image.shape[1:]
    coarse = functional.adaptive_avg_pool3d(image, (-(-x // factor), -(-y // factor), -(-z // factor)))
    return functional.interpolate(coarse[None], size=(x, y, z), mode="trilinear")[0]


def _compare(reference: torch.Tensor, guess: torch.Tensor) -> Likeness:
    """Of one channel [X, Y, Z] in ranges of the reference."""
    # An axis shorter than the published window gets the largest odd window that fits.
    window = [min(WINDOW, length - 1 + length % 2) for length in reference.shape]
    metric = SSIMMetric(spatial_dims=3, data_range=1.0, win_size=window)
    ssim = float(metric(guess[None, None].float(), reference[None, None].float()))  # type: ignore[arg-type]
    error = ((guess - reference) ** 2).mean().clamp(min=_EXACT)
    return Likeness(ssim, float(-10 * torch.log10(error)), _correlation(reference, guess))


def _correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    a, b = first - first.mean(), second - second.mean()
    lengths = a.norm() * b.norm()
    return float((a * b).sum() / lengths) if lengths > 0 else 0.0
