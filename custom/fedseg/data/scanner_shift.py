"""Simulated differences between scanners, for experiments on how methods cope with sites that look different.

A site draws one ``ScannerShift`` at random; applying it is deterministic but for the noise, whose generator is given.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from fedseg.data.datalist import Case
from fedseg.data.problems import refuse
from fedseg.data.reading import require_image
from fedseg.errors import UsageError

# The largest shift, at strength 1: visible at a glance, still an image that a radiologist could read.
MAX_LOG_GAIN, MAX_LOG_GAMMA, MAX_LOG_BIAS, MAX_NOISE = 0.7, 0.4, 0.3, 0.06
MAX_BLUR_MM, MAX_HU_OFFSET, MAX_HU_NOISE = 1.2, 15.0, 30.0


@dataclass(frozen=True)
class ScannerShift:
    """How one simulated scanner differs from the one that the images came from.

    Attributes:
        modality: ``MR`` or ``CT``; decides which of the others act.
        blur_mm: standard deviation of a Gaussian blur in mm.
        noise: standard deviation of the noise; MR (Rician): as a share of the image's bright end; CT: in HU.
        gain: factor on MR intensities.
        gamma: exponent on MR intensities between dark and bright end (contrast).
        bias: nine coefficients of a smooth receive field in MR, x y z xx yy zz xy xz yz over [-1, 1], in log intensity.
        hu_offset: added to CT intensities, in HU (calibration).
    """

    modality: str
    strength: float
    blur_mm: float
    noise: float
    gain: float = 1.0
    gamma: float = 1.0
    bias: tuple[float, ...] = (0.0,) * 9
    hu_offset: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form, for the notes of a datalist."""
        return {**asdict(self), "bias": list(self.bias)}


def draw_shift(strength: float, seed: int, site: str, modality: str) -> ScannerShift:
    """The scanner of a site: the same for the same seed, name and strength; grows in proportion to ``strength``.

    Raises:
        UsageError: ``strength`` is outside [0, 1].
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"--scanner-shift is {strength}, but must be from 0 (none) to 1 (strong).")
    generator = _generator(seed, site)
    blur, noise = generator.uniform(0, strength, 2)
    gain, gamma, offset, *bias = generator.uniform(-strength, strength, 12)
    if modality == "CT":
        return ScannerShift(
            "CT", strength, blur * MAX_BLUR_MM, noise * MAX_HU_NOISE, hu_offset=float(offset * MAX_HU_OFFSET)
        )
    return ScannerShift(
        "MR",
        strength,
        float(blur * MAX_BLUR_MM),
        float(noise * MAX_NOISE),
        float(np.exp(gain * MAX_LOG_GAIN)),
        float(np.exp(gamma * MAX_LOG_GAMMA)),
        tuple(float(b * MAX_LOG_BIAS) for b in bias),
    )


def apply_shift(
    volume: np.ndarray, spacing: Sequence[float], shift: ScannerShift, generator: np.random.Generator
) -> np.ndarray:
    """One volume, shape [X, Y, Z], as the simulated scanner would have recorded it (float32).

    The background of an MR volume, where it is exactly 0, stays 0.
    """
    volume = np.asarray(volume, np.float32)
    sigma = [shift.blur_mm / s for s in spacing]
    if shift.modality == "CT":
        blurred = gaussian_filter(volume, sigma, mode="nearest") + np.float32(shift.hu_offset)
        return np.asarray(blurred + _noise(volume.shape, shift.noise, generator))
    inside = volume != 0
    if not inside.any():
        return volume
    low = min(0.0, float(volume.min()))
    high = max(float(np.percentile(volume[inside], 99.5)) - low, 1e-30)
    unit = np.where(inside, (volume - low) / high, 0)
    # A blur that knows where the background is does not darken the rim.
    weight = gaussian_filter(inside.astype(np.float32), sigma, mode="nearest")
    unit = gaussian_filter(unit, sigma, mode="nearest") / np.maximum(weight, 1e-6)
    unit = np.maximum(unit, 0) ** shift.gamma * np.exp(_bias_field(volume.shape, shift.bias))
    # The magnitude of a complex signal with noise in both parts: Rician, as in MR.
    real, imaginary = (_noise(volume.shape, shift.noise, generator) for _ in range(2))
    unit = np.hypot(unit + real, imaginary)
    return np.where(inside, unit * high * shift.gain + low, 0).astype(np.float32)


def shift_case(case: Case, folder: Path, shift: ScannerShift, seed: int) -> Case:
    """Write the shifted images of a case into ``folder`` and return the case that points to them.

    Raises:
        DataError: an image cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = (_shift_file(file, folder, shift, seed, case.patient) for file in case.images)
    return replace(case, images=tuple(images))


def _shift_file(file: Path, folder: Path, shift: ScannerShift, seed: int, patient: str) -> Path:
    target = folder / (file.name.removesuffix(".gz").removesuffix(".nii") + ".nii.gz")
    if target.exists():
        target = folder / f"{zlib.crc32(str(file).encode()):08x}-{target.name}"
    image = require_image(file)
    channels = image.read(refuse(file))
    assert channels is not None  # ``refuse`` raises
    generator = _generator(seed, f"{patient}/{file.name}")
    parts = [apply_shift(channel, image.grid.spacing, shift, generator) for channel in channels]
    voxels = np.stack(parts, -1) if len(parts) > 1 else parts[0]
    shifted = nib.Nifti1Image(voxels, image.grid.affine, image.image.header)
    shifted.set_data_dtype(np.float32)
    nib.save(shifted, target)
    return target


def _bias_field(shape: tuple[int, ...], coefficients: Sequence[float]) -> np.ndarray:
    """Polynomial of the second order over [-1, 1] in each axis, without its constant, shape ``shape``."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    terms = (x, y, z, x * x, y * y, z * z, x * y, x * z, y * z)
    return np.asarray(sum(np.float32(c) * term for c, term in zip(coefficients, terms, strict=True)))


def _noise(shape: tuple[int, ...], deviation: float, generator: np.random.Generator) -> np.ndarray:
    return np.float32(deviation) * generator.standard_normal(shape, dtype=np.float32)


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
