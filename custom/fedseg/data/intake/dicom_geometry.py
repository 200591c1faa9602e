"""The geometry of a DICOM series: whether its slices make up one even stack, and in what order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedseg.data.scanner_facts import UNKNOWN_SCANNER, ScannerFacts
from fedseg.errors import DataError

# Positions may be rounded to a tenth of a millimetre; more than that is a real gap or shift.
TOLERANCE_MM, RELATIVE_TOLERANCE = 0.11, 0.05
TILT_TOLERANCE = 0.002  # mm sideways per mm along the stack, a tenth of a degree


@dataclass(frozen=True)
class Slice:
    """One DICOM file: where its image lies, in mm of the patient system (L, P, S), and how its values are meant.

    ``rescale`` is (slope, intercept) from stored values to the scanner's units, empty where the file states none.
    """

    file: Path
    size: tuple[int, ...]
    frames: int
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    rescale: tuple[float, ...] = ()


@dataclass(frozen=True)
class Series:
    """All files of one series, in no particular order.

    Attributes:
        uid, modality, description: as its first file says.
        slices: the files.
        scanner: what made it, as far as its first file tells.
    """

    uid: str
    modality: str
    description: str
    slices: tuple[Slice, ...]
    scanner: ScannerFacts = UNKNOWN_SCANNER

    @property
    def spacing(self) -> str:
        """Voxel size for people; ``?`` where it cannot be told."""
        try:
            x, y, z = check_geometry(self)[1]
        except DataError:
            return "?"
        return f"{x:.4g} x {y:.4g} x {z:.4g}"


def check_geometry(series: Series) -> tuple[tuple[Slice, ...], tuple[float, float, float]]:
    """The slices in the order of their places, and the voxel size in mm (x, y, between slices).

    Raises:
        DataError: several frames in a file, mixed slices, two slices in one place, missing slices, a tilted gantry.
    """
    first = series.slices[0]
    name = f"Series {series.uid}"
    for s in series.slices:
        if s.frames > 1:
            raise DataError(f"{name}: {s.file} holds {s.frames} frames. Export it as single slices, or use dcm2niix.")
        if len(s.position) != 3 or not _is_plane(s.orientation) or len(s.spacing) != 2 or min(s.spacing) <= 0:
            raise DataError(f"{name}: {s.file} does not say where its slice lies. Choose a series of original slices.")
        _require_alike(name, first, s)
    if len(series.slices) < 2:
        raise DataError(f"{name} has one slice only, which is no volume. Choose another series.")
    axis_x, axis_y = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    normal = np.cross(axis_x, axis_y)
    slices = tuple(sorted(series.slices, key=lambda s: float(np.dot(normal, s.position))))
    positions = np.array([s.position for s in slices])
    gap = _even_gap(name, positions @ normal)
    sideways = np.abs((positions - positions[0]) @ np.stack([axis_x, axis_y], -1)).max()
    if sideways > max(TOLERANCE_MM, TILT_TOLERANCE * gap * len(slices)):
        raise DataError(
            f"{name}: the slices are shifted sideways by up to {sideways:.1f} mm (tilted gantry). "
            "Straighten the series first, e.g. with dcm2niix."
        )
    return slices, (first.spacing[1], first.spacing[0], gap)


def _is_plane(orientation: tuple[float, ...]) -> bool:
    """Whether these are two directions of length 1 at right angles."""
    if len(orientation) != 6:
        return False
    axes = np.reshape(orientation, (2, 3))
    return bool(np.allclose(axes @ axes.T, np.eye(2), atol=1e-3))


def _require_alike(name: str, first: Slice, other: Slice) -> None:
    same = (
        first.size == other.size
        and np.allclose(first.orientation, other.orientation, atol=1e-3)
        and np.allclose(first.spacing, other.spacing, rtol=1e-3)
    )
    if not same:
        raise DataError(
            f"{name} mixes slices: {other.file} differs from {first.file} in size, spacing or orientation. "
            "Put each kind (e.g. localiser and volume) into a folder of its own."
        )


def _even_gap(name: str, places: np.ndarray) -> float:
    """The distance between neighbouring slices, in mm, if it is the same everywhere."""
    gaps = np.diff(places)
    usual = float(np.median(gaps))
    tolerance = max(TOLERANCE_MM, RELATIVE_TOLERANCE * usual)
    if gaps.min() < min(tolerance, 0.01):
        raise DataError(
            f"{name} has {int((gaps < 0.01).sum())} slice(s) in the place of another: several phases or copies. "
            "Keep one of each place."
        )
    wrong = np.flatnonzero(np.abs(gaps - usual) > tolerance)
    if len(wrong):
        first = wrong[0]
        missing = round(float(gaps[first]) / usual) - 1
        what = f"about {missing} slice(s) are missing" if missing > 0 else "the slices are closer than elsewhere"
        raise DataError(
            f"{name} is not evenly spaced: {what} between {places[first]:.2f} and {places[first + 1]:.2f} mm along the "
            f"stack (gap {gaps[first]:.3g} mm, else {usual:.3g} mm). Export the whole series again."
        )
    drift = float(np.abs(places - np.linspace(places[0], places[-1], len(places))).max())
    if drift > tolerance:
        message = f"{name} is not evenly spaced: slices lie up to {drift:.2g} mm from where an even stack has them."
        raise DataError(f"{message} Export the whole series again.")
    return float(places[-1] - places[0]) / len(gaps)
