"""From what images are like, a plan to begin with: voxel size, patch, strides and kernels.

The rules are those of nnU-Net (Isensee et al., Nature Methods 2021, supplementary note 2), with a number of voxels in
the place of its model of a graphics card's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np

_THICK = 3.0  # how much longer than the others one axis of a voxel is, before images count as thick slices
_COARSEST = 4  # voxels of a patch along an axis, below which it is not halved
_MOST_LEVELS = 6
_MOST_FEATURES = 256
VOXELS = 96**3


@dataclass(frozen=True)
class Fingerprint:
    """What a proposal depends on of the images of a data set, each along x, y, z.

    Attributes:
        spacing: median size of a voxel in mm.
        thin: its tenth percentile in mm.
        shape: median number of voxels.
        extent: median size of an image in mm.
    """

    spacing: tuple[float, ...]
    thin: tuple[float, ...]
    shape: tuple[float, ...]
    extent: tuple[float, ...]

    @classmethod
    def of(cls, shapes: Sequence[Sequence[int]], spacings: Sequence[Sequence[float]]) -> Fingerprint:
        """That of images of which every shape and every voxel size is known, at least one; see ``propose``."""
        counts, sizes = np.asarray(shapes, float), np.asarray(spacings, float)
        of_all = np.median(sizes, axis=0), np.percentile(sizes, 10, axis=0)
        found = (*of_all, np.median(counts, axis=0), np.median(counts * sizes, axis=0))
        return cls(*(tuple(float(value) for value in values) for values in found))


def propose(
    shapes: Sequence[Sequence[int]], spacings: Sequence[Sequence[float]], voxels: int = VOXELS
) -> dict[str, dict[str, Any]]:
    """What a plan may say under ``task`` and ``network`` for images like these.

    >>> propose([(40, 56, 40)] * 3, [(1.0, 1.0, 1.0)] * 3)["task"]
    {'spacing': [1.0, 1.0, 1.0], 'patch_size': [40, 56, 40]}
    >>> propose([(256, 256, 20)], [(1.0, 1.0, 6.0)])["network"]["strides"]
    [1, [2, 2, 1], [2, 2, 1], 2, 2, [2, 2, 1]]

    Args:
        shapes: voxels of each image along x, y, z, at least one image.
        spacings: sizes in mm of its voxels along the same axes.
        voxels: the most that a patch may have; memory and time of a step grow with it.
    """
    return propose_for(Fingerprint.of(shapes, spacings), voxels)


def propose_for(fingerprint: Fingerprint, voxels: int = VOXELS) -> dict[str, dict[str, Any]]:
    """The same from the fingerprint of a data set, whose images may lie at several sites."""
    target = _spacing(fingerprint)
    sizes = np.asarray(fingerprint.extent) / target
    patch = [max(2, round(size)) for size in sizes]  # a single voxel could not be normalised
    while True:
        strides, kernels = _levels(patch, target)
        factors = [prod(step[axis] for step in strides) for axis in range(3)]
        rounded = [ceil(size / factor) * factor for size, factor in zip(patch, factors, strict=True)]
        if prod(rounded) <= voxels:
            break
        longer = [axis for axis in range(3) if rounded[axis] > max(2, factors[axis])]
        largest = max(longer, key=lambda axis: (patch[axis] / sizes[axis], patch[axis]))
        patch[largest] = rounded[largest] - factors[largest]
    network = {
        "name": "dynunet",
        "filters": [min(16 * 2**level, _MOST_FEATURES) for level in range(len(strides))],
        "strides": [_short(step) for step in strides],
        "kernels": [_short(kernel) for kernel in kernels],
    }
    return {"task": {"spacing": [round(float(size), 3) for size in target], "patch_size": rounded}, "network": network}


def _spacing(fingerprint: Fingerprint) -> np.ndarray:
    """Medians; along thick slices the tenth percentile, so that the thinner ones do not lose theirs."""
    target, sizes = np.array(fingerprint.spacing), np.array(fingerprint.shape)
    longest = int(target.argmax())
    others = np.delete(np.arange(3), longest)
    if target[longest] > _THICK * target[others].max() and _THICK * sizes[longest] < sizes[others].min():
        target[longest] = max(fingerprint.thin[longest], target[others].max())
    return target


def _levels(patch: Sequence[int], spacing: np.ndarray) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Strides and kernels of each level, finest first.

    An axis is halved where its voxels are less than twice as long as the shortest that can still be halved, and
    convolutions look along an axis from the level on where its voxels are less than twice as long as the shortest.
    """
    size, length = np.array(patch, float), np.array(spacing)
    strides: list[tuple[int, ...]] = [(1, 1, 1)]
    kernels = [_kernel(length, (1, 1, 1))]
    while len(strides) < _MOST_LEVELS:
        large = size >= 2 * _COARSEST
        if not large.any():
            break
        halved = large & (length < 2 * length[large].min())
        if halved.sum() == 1 and size[halved][0] < 3 * _COARSEST:
            break
        size, length = np.where(halved, np.ceil(size / 2), size), np.where(halved, 2 * length, length)
        strides.append(tuple(2 if half else 1 for half in halved))
        kernels.append(_kernel(length, kernels[-1]))
    return _at_least_three(strides, kernels)


def _kernel(length: np.ndarray, before: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(3 if near or past == 3 else 1 for near, past in zip(length < 2 * length.min(), before, strict=True))


def _at_least_three(strides: list[Any], kernels: list[Any]) -> tuple[list[Any], list[Any]]:
    """The network has at least three levels; those that images are too small for do not shrink them."""
    missing = max(0, 3 - len(strides))
    return strides + [(1, 1, 1)] * missing, kernels + [kernels[-1]] * missing


def _short(triple: tuple[int, ...]) -> int | list[int]:
    return triple[0] if len(set(triple)) == 1 else list(triple)
