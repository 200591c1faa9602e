"""Which pieces of a region are one lesion, and which lesions count: the rule of lesion-wise scores."""

from __future__ import annotations

from dataclasses import dataclass

from fedseg import allowed


@dataclass(frozen=True)
class LesionRule:
    """The rule of the BraTS 2023 challenges (Saluja et al., github.com/rachitsaluja/BraTS-2023-Metrics); the defaults
    are those of adult glioma (GLI), of Africa (SSA) and of children (PED). Meningioma has a dilation of 1, metastases
    have one of 1 and a smallest volume of 2.

    Attributes:
        dilation: by how many voxels, corners left out, lesions of the reference grow before pieces that touch count as
            one, and before predicted pieces that touch them count as found; 0: they do not grow.
        smallest: a lesion of the reference of at most so many mm3 is not scored; 50 voxels of a BraTS image.
        penalty: distance in mm that counts for a missed and for an invented lesion. None: the diagonal of the image,
            rounded up to a whole number, which is the 374 of the challenge for its images of 240 x 240 x 155 mm.
    """

    dilation: int = allowed.setting(3, allowed.whole, least=0, most=20)
    smallest: float = allowed.setting(50.0, allowed.number, least=0)
    penalty: float | None = allowed.setting(None, allowed.number, least=0)
