"""Axial views of a case, turned the way radiologists read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from fedseg.data.grid import Grid
from fedseg.data.reading import read_image, read_label
from fedseg.errors import DataError
from fedseg.tasks.segmentation.labels import to_classes, to_regions
from fedseg.tasks.task import Task

ZOOM_BELOW = 1 / 3  # of the body's extent: a smaller structure is shown enlarged
RING = 5  # voxels around the regions with which these are compared


@dataclass(frozen=True)
class View:
    """One axial slice, ready for ``imshow`` (origin at the top): anterior up, the patient's left on the right.

    Attributes:
        channels: grey values in [0, 1] by channel name, each of shape [rows, columns].
        masks: boolean regions by kind (``reference``, ``prediction``), each of shape [R, rows, columns].
        aspect: height of a pixel over its width, in mm.
        width: of a pixel in mm.
        slice_index: counted from the feet, from 0.
    """

    channels: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    aspect: float
    width: float
    slice_index: int


def make_view(task: Task, images: Sequence[Path | None], masks: dict[str, Path], zoom: bool) -> View:
    """Read the slice with the largest reference region.

    Args:
        task: names channels and regions.
        images: the case's image files, as in a datalist; None for a channel that was not acquired.
        masks: label files by kind; the slice is chosen by the first that is not empty.
        zoom: enlarge around the regions where they are small.

    Raises:
        DataError: a file cannot be read, or the files do not fit together.
    """
    volumes, labels = _read_channels(task, images), {}
    for kind, path in masks.items():
        array, grid = read_label(path)
        labels[kind] = to_regions(task, to_classes(task, _to_ras(array, grid)[0]))
    shapes = {array.shape for array, _ in volumes.values()} | {array.shape[1:] for array in labels.values()}
    if len(shapes) > 1:
        raise DataError(f"{images[0]} and its masks differ in shape: {sorted(shapes)}.")
    spacing = next(iter(volumes.values()))[1]
    index = largest_slice(list(labels.values()), shapes.pop()[2])
    grey = {name: _windowed(task, array[:, :, index]) for name, (array, _) in volumes.items()}
    flat = {kind: array[:, :, :, index] for kind, array in labels.items()}
    box = _frame(np.max(list(grey.values()), axis=0), flat, spacing, zoom)
    return View(
        {name: radiological(array[box]) for name, array in grey.items()},
        {kind: np.stack([radiological(region[box]) for region in array]) for kind, array in flat.items()},
        spacing[1] / spacing[0],
        spacing[0],
        index,
    )


def shown_channels(task: Task, view: View) -> list[str]:
    """The channels on which a case is drawn: those that the task displays, else the one that shows its regions best.

    A channel without contrast in the slice, such as a sequence that is missing, gives way to the best of the others.
    """
    inside = next(iter(view.masks.values())).any(0)
    around = ndimage.binary_dilation(inside, iterations=RING) & ~inside
    filled = [name for name, grey in view.channels.items() if np.ptp(grey) > 0] or list(view.channels)[-1:]

    def contrast(name: str) -> float:
        grey = view.channels[name]
        ring = grey[around & (grey > 0)]
        return abs(float(np.median(grey[inside]) - np.median(ring))) if inside.any() and ring.size else 0.0

    best = sorted(filled, key=contrast, reverse=True)
    chosen = [name for name in task.display if name in filled]
    others = [name for name in best if name not in chosen]
    return (chosen + others)[: max(1, len(task.display))]


def radiological(axial: np.ndarray) -> np.ndarray:
    """From [R, A] of a RAS image to [rows, columns]: anterior on top, the patient's left on the right."""
    return axial[::-1, ::-1].T


def largest_slice(masks: Sequence[np.ndarray], depth: int) -> int:
    """Axial index where the union of the regions, [R, X, Y, Z], is largest; the middle where every mask is empty."""
    for mask in masks:
        areas = mask.any(0).sum((0, 1))
        if areas.any():
            return int(areas.argmax())
    return depth // 2


def _read_channels(
    task: Task, images: Sequence[Path | None]
) -> dict[str, tuple[np.ndarray, tuple[float, float, float]]]:
    """RAS array and spacing by channel; 0 for one that was not acquired. A picture also shows what a check refuses."""
    array, grid = read_image([path for path in images if path is not None])
    for position in (place for place, path in enumerate(images) if path is None):
        array = np.insert(array, position, 0, axis=0)
    if len(array) != len(task.channels):
        raise DataError(f"{images[0]} has {len(array)} channels, but {task.name} has {list(task.channels)}.")
    return {name: _to_ras(values, grid) for name, values in zip(task.channels, array, strict=True)}


def _to_ras(array: np.ndarray, grid: Grid) -> tuple[np.ndarray, tuple[float, float, float]]:
    image = nib.as_closest_canonical(nib.Nifti1Image(array, grid.affine))
    x, y, z = (float(v) for v in image.header.get_zooms()[:3])
    return np.asarray(image.dataobj), (x, y, z)


def _windowed(task: Task, axial: np.ndarray) -> np.ndarray:
    """Grey values in [0, 1]: the task's window, else between the 1st and 99.5th percentile of what is not zero."""
    axial = np.nan_to_num(axial.astype(np.float32))
    body = axial[axial != 0]
    low, high = task.window or (np.percentile(body, [1, 99.5]) if body.size else (0.0, 1.0))
    if task.window is None and task.zero_is_nothing:
        low = min(low, 0.0) if low < 0 else 0.6 * low
    return np.clip((axial - low) / max(high - low, 1e-6), 0, 1)


def _frame(
    grey: np.ndarray, masks: dict[str, np.ndarray], spacing: tuple[float, float, float], zoom: bool
) -> tuple[slice, slice]:
    """What to show of a slice: the body, or the surroundings of the regions where these are small."""
    body = _box(ndimage.binary_opening(grey > 0.05, iterations=2), grey.shape, margin=4)
    marked = np.zeros(grey.shape, bool)
    for array in masks.values():
        marked |= array.any(0)
    whole = max((b.stop - b.start) * s for b, s in zip(body, spacing, strict=False))
    if zoom and marked.any():
        focus = _box(marked, grey.shape, margin=0)
        extent = max((f.stop - f.start) * s for f, s in zip(focus, spacing, strict=False))
        if extent < ZOOM_BELOW * whole:
            return _square(focus, max(2.2 * extent, ZOOM_BELOW * whole), spacing, grey.shape)
    return _square(body, whole, spacing, grey.shape)


def _square(
    focus: tuple[slice, slice], side: float, spacing: tuple[float, float, float], shape: tuple[int, ...]
) -> tuple[slice, slice]:
    """A square of ``side`` mm around the middle of ``focus``, moved inside the slice where it would stick out."""
    result = []
    for part, size, step in zip(focus, shape, spacing, strict=False):
        length = min(max(round(side / step), 1), size)
        start = min(max((part.start + part.stop - length) // 2, 0), size - length)
        result.append(slice(start, start + length))
    return result[0], result[1]


def _box(mask: np.ndarray, shape: tuple[int, ...], margin: int) -> tuple[slice, slice]:
    places = np.argwhere(mask)
    if not len(places):
        return slice(0, shape[0]), slice(0, shape[1])
    low, high = np.maximum(places.min(0) - margin, 0), np.minimum(places.max(0) + margin + 1, shape)
    return slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))
