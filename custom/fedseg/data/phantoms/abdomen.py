"""The abdomen around the pancreas of the CT phantom, painted organ by organ in Hounsfield units.

Directions are those of the patient in mm: x to the right, y to the front, z to the head; the origin lies between the
spine and the pancreas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedseg.data.phantoms.shapes import Coordinates, Grid, ellipsoid, pose, smooth_noise, soft, tube

AIR, FAT, MUSCLE, FLUID, GAS, WALL = -1000.0, -100.0, 55.0, 12.0, -900.0, 75.0
ORAL_CONTRAST = 210.0
AORTA, CAVA, LIVER, SPLEEN, CORTEX, MEDULLA = 155.0, 145.0, 110.0, 120.0, 180.0, 140.0

# centre line of the pancreas: uncinate process and head, neck, body over the spine, tail towards the spleen
PANCREAS_LINE = ((33, -6, -30), (33, 4, -16), (14, 16, -6), (-10, 20, 4), (-34, 10, 14), (-62, -14, 24))
PANCREAS_RADII = (13.0, 17.5, 12.5, 13.5, 13.0, 11.0)
COLON_LINE = ((82, 6, -22), (40, 62, -34), (-34, 64, -34), (-84, 6, -20))
DUODENUM_LINE = ((22, 26, 10), (46, 16, 6), (55, 0, -14), (50, -8, -40), (24, -8, -50), (-6, -4, -52))


@dataclass
class Abdomen:
    """One abdomen on a grid: where each voxel lies in the standard anatomy (mm), and its Hounsfield units."""

    grid: Grid
    at: Coordinates
    hu: np.ndarray
    enhancement: float = 1.0

    def paint(self, distance: np.ndarray, value: float | np.ndarray, edge: float = 2.5) -> None:
        """Fill a shape (distance in mm, positive inside) with Hounsfield units."""
        self.hu += soft(distance, edge) * (value - self.hu)

    def enhanced(self, value: float, native: float = 45.0) -> float:
        """Hounsfield units of a tissue with contrast medium in this patient; ``native`` without it."""
        return native + (value - native) * self.enhancement


def make_abdomen(rng: np.random.Generator, grid: Grid, enhancement: float) -> Abdomen:
    """Everything but the pancreas and the vessels next to it, which are painted after it."""
    at = pose(rng, grid, tilt=1.5, size=0.03, shift=2.0, bend=2.0)
    body = Abdomen(grid, at, np.full(grid.shape, AIR, np.float32), enhancement * np.exp(rng.normal(0, 0.04)))
    cavity = _paint_wall(rng, body)
    _paint_bowel(rng, body, cavity)
    _paint_organs(rng, body, cavity)
    _paint_stomach(rng, body, cavity)
    _paint_duodenum(rng, body)
    _paint_spine(body)
    return body


def _jitter(rng: np.random.Generator, point: tuple[float, float, float], sd: float = 2.5) -> np.ndarray:
    return np.asarray(point) + np.clip(rng.normal(0, sd, 3), -2 * sd, 2 * sd)


def _paint_wall(rng: np.random.Generator, body: Abdomen) -> np.ndarray:
    """Skin, subcutaneous fat, muscles and ribs; returns the distance inside the peritoneal cavity, mm."""
    x, y, z = body.at
    flat = z * 0
    skin = ellipsoid((x, y, flat), (0, 0, 0), (113 + rng.normal(0, 1.5), 91 + rng.normal(0, 1.5), 900))
    fat = rng.uniform(7, 13)
    body.paint(skin, 25.0)
    body.paint(skin - 2.5, FAT + 4 * smooth_noise(rng, body.grid, 8.0))
    wall = skin - fat - 3 * np.exp(-((x / 60) ** 2)) * (y > 0)
    cavity = wall - 7.5
    body.paint(wall, MUSCLE)
    angle = np.arctan2(y, np.abs(x))
    rib = np.abs((z + 40 * np.abs(angle - 0.6) + 8) % 26 - 13) - 8  # ribs run obliquely, one every 26 mm
    rib = np.minimum(np.minimum(rib, 3.2 - np.abs(wall - 4)), np.minimum(70 * (0.75 - angle), z + 10))
    body.paint(rib, 420.0)
    body.paint(cavity, FAT + 6 * smooth_noise(rng, body.grid, 6.0))
    half = (np.abs(x), y, flat)
    for centre, semi in (((32, -66, 0), (26, 15, 900)), ((29, -42, 0), (12, 13, 900)), ((0, -82, 0), (34, 8, 900))):
        body.paint(np.minimum(ellipsoid(half, centre, semi), wall), MUSCLE + 3 * smooth_noise(rng, body.grid, 5.0))
    return cavity


def _paint_spine(body: Abdomen) -> None:
    x, y, z = body.at
    column = ellipsoid((x, y, z * 0), (0, -46, 0), (21, 17, 900))
    disc = 4 - np.abs((z + 17) % 34 - 17)  # a disc of 8 mm every 34 mm
    body.paint(column, 480.0)
    body.paint(np.minimum(column - 3, -disc - 2), 210.0)
    body.paint(np.minimum(column, disc), 85.0)
    arch = np.maximum(
        ellipsoid((np.abs(x), y, z * 0), (11, -64, 0), (6, 9, 900)),
        ellipsoid((x, y, (z % 34) - 17), (0, -79, 0), (4.5, 11, 11)),
    )
    process = ellipsoid((np.abs(x), y, (z % 34) - 17), (23, -62, 0), (14, 4, 6))
    body.paint(np.maximum(arch, process), 400.0)
    body.paint(ellipsoid((x, y, z * 0), (0, -65, 0), (9, 7, 900)), 30.0)


def _paint_organs(rng: np.random.Generator, body: Abdomen, cavity: np.ndarray) -> None:
    """Liver with vessels and gallbladder, spleen, kidneys."""
    room = cavity - 1.5
    liver = np.maximum(
        ellipsoid(body.at, _jitter(rng, (74, 6, 34)), (46, 74, 66)),
        ellipsoid(body.at, _jitter(rng, (26, 54, 44)), (56, 26, 34)),
    )
    liver = np.minimum(liver + 1.5 * smooth_noise(rng, body.grid, 16.0), room)
    body.paint(liver, body.enhanced(LIVER))
    vessel = 1.2 - np.abs(smooth_noise(rng, body.grid, 16.0)) * 16 - np.abs(smooth_noise(rng, body.grid, 16.0)) * 5
    body.paint(np.minimum(vessel, liver - 6), body.enhanced(150.0))
    body.paint(ellipsoid(body.at, _jitter(rng, (48, 34, 2)), (11, 17, 14)), FLUID)
    spleen = np.minimum(ellipsoid(body.at, _jitter(rng, (-84, -26, 34)), (21, 38, 44)), room)
    hilum = ellipsoid(body.at, (-60, -18, 32), (14, 16, 40))
    body.paint(np.minimum(spleen, -hilum), body.enhanced(SPLEEN))
    for side, top in ((1, -34), (-1, -14)):
        centre = _jitter(rng, (58 * side, -42, top))
        kidney = np.minimum(ellipsoid(body.at, centre, (24, 24, 50)), room)
        sinus = ellipsoid(body.at, centre - np.array([11 * side, -4, 0]), (14, 8, 22))
        body.paint(kidney, body.enhanced(CORTEX))
        pyramid = np.minimum(kidney - 6, 4 * smooth_noise(rng, body.grid, 6.0) + 2)
        body.paint(pyramid, body.enhanced(MEDULLA))
        body.paint(sinus, FAT + 20)
        body.paint(ellipsoid(body.at, centre - np.array([15 * side, -3, 6]), (7, 4, 8)), FLUID)


def _paint_stomach(rng: np.random.Generator, body: Abdomen, cavity: np.ndarray) -> None:
    """A stomach with fluid below and gas above: the patient lies on the back, so that gas collects in front."""
    line = [_jitter(rng, p, 2.0) for p in ((-58, 18, 62), (-54, 38, 34), (-30, 52, 14), (4, 46, 8), (24, 30, 10))]
    stomach = np.minimum(tube(body.at, line, (24, 24, 18, 12, 9)), cavity - 2)
    body.paint(stomach, body.enhanced(WALL))
    body.paint(stomach - 4, FLUID + 6)
    level = rng.uniform(42, 56)
    body.paint(np.minimum(stomach - 4, body.at[1] - level), GAS)


def _paint_bowel(rng: np.random.Generator, body: Abdomen, cavity: np.ndarray) -> None:
    """Loops of small bowel in front and below, and a colon with gas in the flanks and across the front."""
    x, y, z = body.at
    room = np.minimum(cavity - 2, np.minimum(-14 - z, y + 22))
    loops = np.minimum(10 - np.abs(smooth_noise(rng, body.grid, 13.0)) * 20, room)
    body.paint(loops, body.enhanced(WALL + 10))
    body.paint(loops - 2.5, ORAL_CONTRAST + rng.normal(0, 15))
    colon = np.maximum(
        tube((np.abs(x), y, z), (_jitter(rng, (88, -8, -80)), _jitter(rng, (86, 4, -22))), (15, 15)),
        tube(body.at, [_jitter(rng, p) for p in COLON_LINE], [13] * len(COLON_LINE)),
    )
    colon = np.minimum(colon + 1.5 * smooth_noise(rng, body.grid, 9.0), cavity - 1)
    body.paint(colon, WALL)
    body.paint(colon - 3, 35 + 25 * smooth_noise(rng, body.grid, 5.0))
    body.paint(np.minimum(colon - 3, 6 * smooth_noise(rng, body.grid, 14.0) + (y - 30) / 4), GAS)


def _paint_duodenum(rng: np.random.Generator, body: Abdomen) -> None:
    duodenum = tube(body.at, [_jitter(rng, p, 1.0) for p in DUODENUM_LINE], [10.5] * len(DUODENUM_LINE))
    body.paint(duodenum, body.enhanced(WALL))
    # contrast medium that was drunk tells the duodenum from a tumour of the head, as it does for the radiologist
    body.paint(duodenum - 2.5, ORAL_CONTRAST + 20 * smooth_noise(rng, body.grid, 7.0))
