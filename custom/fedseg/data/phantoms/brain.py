"""The healthy brain of the BraTS phantom: which part of each voxel is grey matter, white matter, fluid and so on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedseg.data.phantoms.shapes import Coordinates, Grid, ellipsoid, pose, smooth_noise, soft, tube

TISSUES = ("csf", "grey", "white", "hyperintensity", "choroid", "oedema", "enhancing", "necrosis")

# centre line of a lateral ventricle (|x|, y, z in mm): frontal horn, body, trigone, occipital horn; temporal horn
_VENTRICLE = ((7, 33, 4), (9, 18, 14), (12, -8, 18), (20, -32, 9), (21, -50, 4))
_VENTRICLE_RADII = (4.0, 5.5, 5.5, 7.5, 3.0)
_TEMPORAL_HORN = ((20, -32, 9), (31, -18, -10), (33, 2, -17))
_TEMPORAL_RADII = (6.5, 3.5, 2.5)


@dataclass
class Brain:
    """One brain on a grid.

    Attributes:
        grid: the voxels.
        at: where in the standard brain each voxel lies, mm.
        depth: distance to the outer surface, mm, shape [X, Y, Z]; positive inside.
        tissue: part of each voxel that is each of ``TISSUES``, shape [tissue, X, Y, Z]; sums to 1.
    """

    grid: Grid
    at: Coordinates
    depth: np.ndarray
    tissue: np.ndarray

    def part(self, name: str) -> np.ndarray:
        """Part of each voxel that is tissue ``name``, shape [X, Y, Z]."""
        return self.tissue[TISSUES.index(name)]

    def paint(self, name: str, cover: np.ndarray) -> None:
        """Replace the part ``cover`` (0 to 1) of each voxel by tissue ``name``."""
        self.tissue *= 1 - cover
        self.tissue[TISSUES.index(name)] += cover


def make_brain(rng: np.random.Generator, grid: Grid) -> Brain:
    """A healthy brain; age shows in the ventricles, the sulci and the white matter."""
    at = pose(rng, grid, tilt=3.0, size=0.025, shift=1.0, bend=1.5)
    age = rng.uniform()
    hull, hindbrain = _hull(at)
    cortex, sulcus = _cortex(rng, grid, at, hull)
    depth = np.maximum(hull, hindbrain) - 3 * np.exp(-((sulcus / 2) ** 2)) * (hindbrain < 2)
    brain = Brain(grid, at, depth, np.zeros((len(TISSUES), *grid.shape), np.float32))
    brain.paint("csf", np.ones((), np.float32))
    brain.paint("grey", soft(cortex - (0.6 + 0.8 * age), 2.0))
    brain.paint("white", soft(cortex - 5.5, 2.0))
    _paint_hindbrain(rng, brain, hindbrain)
    _paint_depths(rng, brain, age)
    return brain


def _hull(at: Coordinates) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the smooth surfaces of the cerebrum, and of cerebellum and brain stem."""
    x, y, z = at
    narrow = x * (1 + np.float32(0.0016) * np.maximum(y + 20, 0))  # frontal lobes are narrower
    temporal = 18 * np.exp(-(((np.abs(x) - 36) / 17) ** 2) - ((y - 8) / 28) ** 2)
    floor = -26 - temporal + 10 / (1 + np.exp(-(y - 38) / 6))
    cerebrum = np.minimum(ellipsoid((narrow, y, z), (0, 0, 2), (65, 81, 60)), z - floor)
    cerebellum = ellipsoid((np.abs(x), y, z), (19, -44, -40), (30, 29, 22))
    stem = tube(at, ((0, -8, -10), (0, -16, -36), (0, -26, -72)), (15, 15, 9))
    return cerebrum, np.maximum(cerebellum, stem)


def _cortex(rng: np.random.Generator, grid: Grid, at: Coordinates, hull: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance (mm) below the folded cortical surface, and distance to the nearest sulcus."""
    x, y, z = at
    length = 5.5
    # the zero surfaces of a smooth random field wind like sulci; they fade out about 2 cm below the hull
    sulcus = np.abs(smooth_noise(rng, grid, length)) * length + np.maximum(hull - 15, 0) * 0.6
    # no gap between the hemispheres where the corpus callosum and the midbrain join them
    falx = np.abs(x) + np.maximum(1 - ((y + 2) / 42) ** 2 - ((z - 6) / 24) ** 2, 0) * 60
    sylvian = np.abs(z + 6 - 0.25 * y) + np.maximum(36 - np.abs(x), 0) + np.maximum(np.abs(y - 8) - 28, 0)
    fold = np.minimum(np.minimum(sulcus, falx), sylvian)
    return np.minimum(hull, fold), fold


def _paint_hindbrain(rng: np.random.Generator, brain: Brain, distance: np.ndarray) -> None:
    brain.paint("grey", soft(distance - 1.0, 2.0))
    folia = np.abs(smooth_noise(rng, brain.grid, 5.0)) * 4
    x, y, z = brain.at
    core = ellipsoid((np.abs(x), y, z), (16, -40, -38), (17, 15, 9))
    stem = tube(brain.at, ((0, -8, -8), (0, -16, -36), (0, -26, -72)), (13, 13.5, 8))
    brain.paint("white", soft(np.maximum(np.minimum(core + folia - 3, distance - 5), stem), 3.0))


def _paint_depths(rng: np.random.Generator, brain: Brain, age: float) -> None:
    """Basal ganglia, thalami, ventricles, choroid plexus and the white matter changes of age."""
    x, y, z = brain.at
    half = (np.abs(x), y, z)
    for centre, semi in (((13, -9, 3), (9, 14, 9)), ((26, 5, 1), (6, 16, 10)), ((14, 19, 8), (5, 11, 8))):
        brain.paint("grey", soft(ellipsoid(half, centre, semi), 2.5) * 0.85)
    wide = 0.75 + 0.55 * age + rng.normal(0, 0.06)
    lateral = np.maximum(
        tube(half, _VENTRICLE, [r * wide for r in _VENTRICLE_RADII]),
        tube(half, _TEMPORAL_HORN, [r * wide for r in _TEMPORAL_RADII]),
    )
    _paint_hyperintensities(rng, brain, lateral, age)
    third = ellipsoid(brain.at, (0, -4, -1), (2.0 + 1.5 * age, 14, 9))
    fourth = ellipsoid(brain.at, (0, -30, -38), (7, 5, 9))
    brain.paint("csf", soft(np.maximum(np.maximum(lateral, third), fourth), 2.0))
    brain.paint("choroid", soft(ellipsoid(half, (20, -33, 8), (3, 5, 3)), 2.0) * 0.8)


def _paint_hyperintensities(rng: np.random.Generator, brain: Brain, ventricle: np.ndarray, age: float) -> None:
    """Caps and bands along the ventricles and spots in the white matter: bright on FLAIR, but no tumour."""
    white = brain.part("white").copy()
    halo = soft(ventricle + rng.uniform(2.0, 5.0 + 5 * age), 3.0) * rng.uniform(0.7, 1.0)
    candidates = np.flatnonzero((white > 0.95) & (brain.depth > 12) & (brain.at[2] > -10))
    for index in rng.choice(candidates, rng.poisson(6 + 14 * age)):
        centre = [axis.flat[index] for axis in brain.at]
        spot = ellipsoid(brain.at, centre, rng.uniform(2.5, 7.0, 3))
        halo = np.maximum(halo, soft(spot, 2.0) * rng.uniform(0.6, 1.0))
    brain.paint("hyperintensity", halo * white)
