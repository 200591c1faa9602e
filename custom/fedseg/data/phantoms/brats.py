"""Phantom of the BraTS task: a brain with a ring-enhancing tumour in four MR sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fedseg.data.phantoms.brain import TISSUES, Brain, make_brain
from fedseg.data.phantoms.shapes import Grid, ellipsoid, smooth_noise, soft
from fedseg.data.phantoms.sites import SiteStyle

CHANNELS = ("t1", "t1ce", "t2", "flair")
EXTENT = (144.0, 176.0, 144.0)
SPACING = (2.0, 2.0, 2.0)
NECROSIS, OEDEMA, ENHANCING = 1, 2, 4

# intensity of each of TISSUES: csf, grey, white, hyperintensity, choroid, oedema, enhancing, necrosis
_INTENSITY = {
    "t1": (240, 570, 830, 660, 420, 540, 560, 340),
    "t1ce": (240, 590, 850, 670, 1000, 550, 1330, 350),
    "t2": (1150, 640, 470, 800, 1000, 900, 720, 1040),
    "flair": (150, 630, 520, 830, 420, 850, 700, 400),
}
_NOISE = {"t1": 24.0, "t1ce": 24.0, "t2": 26.0, "flair": 34.0}
_BIAS = 0.12
_BLUR = 0.9


@dataclass(frozen=True)
class BrainCase:
    """One examination.

    Attributes:
        images: int16, shape [4, X, Y, Z], in the order of ``CHANNELS``; 0 outside the brain, at least 1 inside.
        label: uint8, shape [X, Y, Z]; 0, 1 necrosis, 2 oedema, 4 enhancing.
        grid: the voxels.
    """

    images: np.ndarray
    label: np.ndarray
    grid: Grid


def make_brats_case(rng: np.random.Generator, style: SiteStyle) -> BrainCase:
    """Draw one patient and image it on the scanner of a site."""
    x, y, z = (round(s * f, 2) for s, f in zip(SPACING, style.spacing, strict=True))
    brain = make_brain(rng, Grid.covering(EXTENT, (x, y, z)))
    label = _grow_tumour(rng, brain, style.lesion)
    mask = brain.depth > 0
    label[~mask] = 0
    images = np.stack([_render(rng, brain, mask, channel, style) for channel in CHANNELS])
    return BrainCase(images, label, brain.grid)


def _grow_tumour(rng: np.random.Generator, brain: Brain, scale: float) -> np.ndarray:
    """Paint oedema, then the enhancing core, then the necrosis in it; return the label map."""
    radius = rng.uniform(15.5, 20.5) * scale
    centre = _tumour_centre(rng, brain, radius)
    grid = brain.grid
    semi = radius * np.exp(rng.normal(0, 0.09, 3))
    core = ellipsoid(brain.at, centre, semi) + 2.0 * smooth_noise(rng, grid, 9.0)
    side = np.sign(centre[0]) * brain.at[0]
    core = np.minimum(np.minimum(core, brain.depth - 2.5), side - 1.5)  # neither skull nor falx is crossed
    core = np.where(_piece(core > 0, brain, centre), core, np.minimum(core, -1))
    rim = np.maximum(4.5 + 1.2 * smooth_noise(rng, grid, 11.0), 3.5)
    # a rim without a hole: the outermost layer of voxels of the core is never necrotic
    necrosis = np.where(ndimage.binary_erosion(core > 0), core - rim, np.minimum(core - rim, -0.5))

    reach = ellipsoid(brain.at, centre + rng.normal(0, 4, 3), semi + rng.uniform(11, 17) * scale)
    white = ndimage.gaussian_filter(brain.part("white") + brain.part("hyperintensity"), 0.6)
    # oedema follows the white matter: fluid stops it, grey matter almost
    oedema = reach + 4.0 * smooth_noise(rng, grid, 14.0) - 16 * (1 - white)
    oedema = np.minimum(np.maximum(oedema, core), np.minimum(side - 1, brain.depth - 1))
    tumour = _piece(oedema > 0, brain, centre) | (core > 0)

    brain.paint("oedema", soft(np.where(tumour, np.maximum(oedema, 0.2), -2.0), 3.0))
    brain.paint("enhancing", soft(core, 2.0))
    brain.paint("necrosis", soft(necrosis, 2.0))
    return np.select([necrosis > 0, core > 0, tumour], [NECROSIS, ENHANCING, OEDEMA], 0).astype(np.uint8)


def _tumour_centre(rng: np.random.Generator, brain: Brain, radius: float) -> np.ndarray:
    """A point in one hemisphere from which a core of this radius reaches neither the surface nor far over the falx."""
    x, _, z = brain.at
    room = (brain.depth > radius * 0.95 + 3) & (np.abs(x) > radius * 0.85 + 3) & (z > -15)
    index = rng.choice(np.flatnonzero(room))
    return np.array([axis.flat[index] for axis in brain.at])


def _piece(mask: np.ndarray, brain: Brain, centre: np.ndarray) -> np.ndarray:
    """The connected piece of ``mask`` that is largest near ``centre``: islands are dropped."""
    pieces, _ = ndimage.label(mask)
    near = pieces[ellipsoid(brain.at, centre, (6, 6, 6)) > 0]
    sizes = np.bincount(near, minlength=2)
    sizes[0] = 0
    return pieces == np.argmax(sizes)


def _render(rng: np.random.Generator, brain: Brain, mask: np.ndarray, channel: str, style: SiteStyle) -> np.ndarray:
    """One sequence: tissue contrast, texture, point spread, shading and Rician noise."""
    intensity = np.array(_INTENSITY[channel], np.float32) * _contrast(rng, channel)
    image = np.einsum("t,txyz->xyz", intensity.astype(np.float32), brain.tissue)
    mottle = brain.part("enhancing") * 0.10 + brain.part("necrosis") * 0.08 + 0.012
    image *= 1 + mottle * smooth_noise(rng, brain.grid, 5.0)
    image = ndimage.gaussian_filter(image, [_BLUR * style.blur / s for s in brain.grid.spacing])
    image = 1000 * (np.maximum(image, 1) / 1000) ** style.contrast
    image *= np.exp(_BIAS * style.bias * smooth_noise(rng, brain.grid, 70.0))
    noise = rng.standard_normal((2, *image.shape), np.float32) * np.float32(_NOISE[channel] * style.noise)
    image = np.hypot(image + noise[0], noise[1]) * style.gain * np.exp(rng.normal(0, 0.08))
    return np.where(mask, np.clip(np.rint(image), 1, 32767), 0).astype(np.int16)


def _contrast(rng: np.random.Generator, channel: str) -> np.ndarray:
    """Factors by which the tissues of this patient differ from the table; FLAIR varies most, as between protocols."""
    spread = np.where([name in ("csf", "grey", "white") for name in TISSUES], 0.015, 0.05)
    if channel == "flair":
        spread = spread * 1.4
    return np.exp(np.clip(rng.standard_normal(len(TISSUES)), -1.5, 1.5) * spread)
