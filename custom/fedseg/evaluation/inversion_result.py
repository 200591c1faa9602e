"""What the inversion probe gives: numbers for a summary, and what a picture is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fedseg.tasks.reconstruction.metrics import Likeness


@dataclass(frozen=True)
class CutInversion:
    """What came back from the features of one cut.

    Attributes:
        cut: its name.
        likeness: of reconstruction and image, mean over the victim's patches.
        ssim_of_patches: of each of these patches.
        steps: of the decoder's training.
        bytes: of the features of one patch in the job's precision.
    """

    cut: str
    likeness: Likeness
    ssim_of_patches: tuple[float, ...]
    steps: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        rest = {"ssim_of_patches": list(self.ssim_of_patches), "steps": self.steps, "bytes": self.bytes}
        return {"cut": self.cut, **self.likeness.to_dict(), **rest}


@dataclass(frozen=True)
class Inversion:
    """What the probe found.

    Attributes:
        cut: that of the job.
        message: precision in which features leave.
        feature_noise: standard deviation of the noise on them.
        seed: of patches, decoder and noise.
        box: voxels of the middle of a patch that were reconstructed.
        public_patches, victim_patches: how many there were.
        references: what the same numbers are without features (``guess``: the mean of the public patches) and for
            copies of the victim's image at a lower resolution (``half``, ``quarter``).
        cuts: from the image on.
    """

    cut: str
    message: str
    feature_noise: float
    seed: int
    box: tuple[int, ...]
    public_patches: int
    victim_patches: int
    references: dict[str, Likeness]
    cuts: tuple[CutInversion, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        plain = {name: getattr(self, name) for name in ("cut", "message", "feature_noise", "seed")}
        counts = {"public_patches": self.public_patches, "victim_patches": self.victim_patches}
        references = {name: value.to_dict() for name, value in self.references.items()}
        cuts = [cut.to_dict() for cut in self.cuts]
        return {**plain, "box": list(self.box), **counts, "references": references, "cuts": cuts}


@dataclass(frozen=True)
class Reconstruction:
    """One patch of the victim and what was made of its features, without padding.

    Attributes:
        original: [C, X, Y, Z].
        classes: class values [1, X, Y, Z].
        aspect: height of a voxel over its width in an axial slice.
        copies: by name, images of the shape of ``original``: the references, and the reconstruction of each cut.
    """

    original: torch.Tensor
    classes: torch.Tensor
    aspect: float
    copies: dict[str, torch.Tensor]
