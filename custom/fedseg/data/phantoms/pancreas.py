"""Phantom of the pancreas task: the upper abdomen with a tumour of the pancreas in portal-venous CT, or in MR."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fedseg.data.phantoms.abdomen import AORTA, CAVA, FLUID, PANCREAS_LINE, PANCREAS_RADII, Abdomen, make_abdomen
from fedseg.data.phantoms.shapes import Grid, ellipsoid, smooth_noise, soft, tube, tube_with_position
from fedseg.data.phantoms.sites import SiteStyle

EXTENT = (240.0, 200.0, 140.0)
SPACING = (2.5, 2.5, 4.0)
PANCREAS, TUMOUR = 1, 2
PANCREAS_HU, TUMOUR_HU = 100.0, 50.0
_NOISE = 12.0
_BLUR = 1.1
# Tissues as the CT has them, and how bright fat-saturated T1 with contrast medium shows them: air, gas, fat, fluid,
# muscle and tumour, pancreas, vessels, what was drunk.
_HU = (-1000.0, -900.0, -100.0, 12.0, 55.0, 100.0, 150.0, 210.0)
_T1 = (10.0, 10.0, 160.0, 240.0, 420.0, 760.0, 980.0, 260.0)
_MR_NOISE, _MR_BIAS = 28.0, 0.15


@dataclass(frozen=True)
class AbdomenCase:
    """One examination.

    Attributes:
        image: int16, shape [X, Y, Z]: Hounsfield units; of MR intensities from 0.
        label: uint8, shape [X, Y, Z]; 0, 1 pancreas, 2 tumour.
        grid: the voxels.
    """

    image: np.ndarray
    label: np.ndarray
    grid: Grid


def make_pancreas_case(rng: np.random.Generator, style: SiteStyle, modality: str = "CT") -> AbdomenCase:
    """Draw one patient and image it on the scanner of a site, a ``CT`` or an ``MR``.

    The patient is the same in both; what the image shows of it has another order of grey values.
    """
    x, y, z = (round(s * f, 2) for s, f in zip(SPACING, style.spacing, strict=True))
    body = make_abdomen(rng, Grid.covering(EXTENT, (x, y, z)), style.contrast)
    label = _paint_pancreas(rng, body, style.lesion)
    render = {"CT": _render, "MR": _render_mr}[modality]
    return AbdomenCase(render(rng, body, style), label, body.grid)


def _paint_pancreas(rng: np.random.Generator, body: Abdomen, scale: float) -> np.ndarray:
    """Paint the gland, its tumour and duct, and the vessels along it; return the label map."""
    grid = body.grid
    line = np.asarray(PANCREAS_LINE) + rng.normal(0, 2.0, 3) + rng.normal(0, 1.2, (len(PANCREAS_LINE), 3))
    radii = np.asarray(PANCREAS_RADII) * np.exp(rng.normal(0, 0.06) + rng.normal(0, 0.04, len(PANCREAS_RADII)))
    gland, position = tube_with_position(body.at, line, radii)
    gland = gland + 1.1 * smooth_noise(rng, grid, 5.0)  # lobules
    centre, where = _tumour_centre(rng, line)
    semi = np.clip(rng.uniform(12, 17) * scale * np.exp(rng.normal(0, 0.08, 3)), 8, 18)
    tumour = ellipsoid(body.at, centre, semi) + 1.2 * smooth_noise(rng, grid, 7.0)
    tumour = np.minimum(tumour, gland + 3)  # it bulges out of the gland, but not far

    body.paint(gland + 1.5, -20.0, 4.0)  # fat between the lobules blurs the contour
    body.paint(gland, body.enhanced(PANCREAS_HU) + 5 * smooth_noise(rng, grid, 4.0))
    duct = np.minimum(tube(body.at, line, [1.6] * len(line)), 20 * (position - where))
    body.paint(np.minimum(duct, gland), FLUID)  # the duct is dilated upstream of the tumour
    body.paint(tumour, body.enhanced(TUMOUR_HU) + 5 * smooth_noise(rng, grid, 5.0), 3.0)
    vessels = _paint_vessels(rng, body, line)
    organ = np.maximum(gland, tumour)
    label = np.select([tumour > 0, organ > 0], [TUMOUR, PANCREAS], 0)
    return np.where(vessels > 0, 0, label).astype(np.uint8)


def _tumour_centre(rng: np.random.Generator, line: np.ndarray) -> tuple[np.ndarray, float]:
    """A point near the centre line, and its position along it; two of three tumours lie in the head."""
    where = rng.uniform(0.4, 1.4) if rng.uniform() < 0.65 else rng.uniform(2.4, 4.4)
    start = int(where)
    point = line[start] + (where - start) * (line[start + 1] - line[start])
    return point + rng.normal(0, 1.5, 3), where


def _paint_vessels(rng: np.random.Generator, body: Abdomen, line: np.ndarray) -> np.ndarray:
    """Aorta, caval, mesenteric, portal and splenic vessels; returns the distance inside them, mm."""
    aorta = tube(body.at, ((-6, -19, 90), (-8, -18, -90)), (10.5, 9))
    superior = tube(body.at, ((-6, -12, 4), (-4, 2, -18), (-2, 4, -90)), (4, 4, 4))
    cava = ellipsoid((body.at[0], body.at[1], body.at[2] * 0), (22, -22, 0), (13, 9, 900))
    behind = line[2:] + np.array([0, -11, 2])  # the splenic vein runs along the back of body and tail
    confluence = behind[0] + np.array([-2, 0, 2])
    portal = tube(body.at, (confluence + np.array([0, -2, -80]), confluence, (40, 14, 36)), (5.5, 6.5, 7))
    splenic = tube(body.at, (confluence, *behind[1:], (-74, -24, 32)), (4.5, 4, 4, 4, 3.5))
    for shape, value in ((cava, CAVA), (aorta, AORTA), (superior, AORTA), (portal, 165.0), (splenic, 160.0)):
        body.paint(shape, body.enhanced(value) + rng.normal(0, 3))
    return np.maximum.reduce([aorta, superior, cava, portal, splenic])


def _render(rng: np.random.Generator, body: Abdomen, style: SiteStyle) -> np.ndarray:
    """Point spread, shading, calibration and noise with the grain of a soft-tissue kernel."""
    grid = body.grid
    width = [_BLUR * style.blur / s for s in grid.spacing]
    image = ndimage.gaussian_filter(body.hu, width)
    inside = soft(image + 300, 200.0)  # air outside stays air
    image += inside * (3 * style.bias * smooth_noise(rng, grid, 60.0) + 50 * (style.gain - 1))
    noise = ndimage.gaussian_filter(rng.standard_normal(grid.shape, np.float32), [0.6, 0.6, 0])
    sd = _NOISE * style.noise * np.exp(rng.normal(0, 0.08))
    image += noise * np.float32(sd / noise.std()) * (0.3 + 0.7 * inside)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


def _render_mr(rng: np.random.Generator, body: Abdomen, style: SiteStyle) -> np.ndarray:
    """Contrast of T1, point spread, coil shading and Rician noise."""
    grid = body.grid
    image = np.interp(body.hu, _HU, _T1).astype(np.float32)
    image = ndimage.gaussian_filter(image, [_BLUR * style.blur / s for s in grid.spacing])
    image = 1000 * (np.maximum(image, 1) / 1000) ** style.contrast
    image *= np.exp(_MR_BIAS * style.bias * smooth_noise(rng, grid, 90.0))
    noise = rng.standard_normal((2, *grid.shape), np.float32) * np.float32(_MR_NOISE * style.noise)
    image = np.hypot(image + noise[0], noise[1]) * style.gain * np.exp(rng.normal(0, 0.08))
    return np.clip(np.rint(image), 0, 32767).astype(np.int16)
