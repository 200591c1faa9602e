"""What somebody has said of a case instead of outlining its regions: boxes, which regions are there, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedseg.errors import DataError

VOXELS, BOXES, IMAGE, NONE = "voxels", "boxes", "image", "none"
KINDS = (VOXELS, BOXES, IMAGE, NONE)
SUPERVISION, PRESENT = "supervision", "present"

Voxel = tuple[int, int, int]


@dataclass(frozen=True)
class Box:
    """A box along the axes of the image file.

    Attributes:
        first, last: opposite corners, both inside, as voxel indices from 0.
    """

    first: Voxel
    last: Voxel


@dataclass(frozen=True)
class Supervision:
    """What is known of the regions of a case.

    >>> said = Supervision("boxes", boxes=(("tumour", (Box((0, 0, 0), (1, 2, 0)),)),))
    >>> said.possible(["organ", "tumour"], (2, 3, 2))[:, :, :, 0].sum(axis=(1, 2)).tolist()
    [6, 6]
    >>> said.possible(["organ", "tumour"], (2, 3, 2))[:, :, :, 1].sum(axis=(1, 2)).tolist()
    [6, 0]

    Attributes:
        kind: one of ``KINDS``; with ``voxels`` the label file says it all.
        boxes: for each region of which somebody says where it is, boxes that hold all of it together; none: it is not
            there.
        present: for each region of which somebody says it, whether it is there.
    """

    kind: str = VOXELS
    boxes: tuple[tuple[str, tuple[Box, ...]], ...] = ()
    present: tuple[tuple[str, bool], ...] = ()

    @property
    def weak(self) -> bool:
        """Whether it says less than a label file would."""
        return self.kind != VOXELS

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of the regions of which it says something."""
        return tuple(name for name, _ in (*self.boxes, *self.present))

    def there(self, regions: Sequence[str]) -> tuple[bool | None, ...]:
        """For each region whether it is there; None where nobody says it."""
        said = {**{name: bool(boxes) for name, boxes in self.boxes}, **dict(self.present)}
        return tuple(said.get(name) for name in regions)

    def possible(self, regions: Sequence[str], shape: Voxel) -> np.ndarray:
        """In which voxels each region may be, bool [R, X, Y, Z]; [R, 1, 1, 1] where the place makes no difference.

        Args:
            regions: names of all regions of the task.
            shape: of the image file.
        """
        anywhere = np.array([found is not False for found in self.there(regions)]).reshape(-1, 1, 1, 1)
        if not any(boxes for _, boxes in self.boxes):
            return anywhere
        possible = np.array(np.broadcast_to(anywhere, (len(regions), *shape)))
        for name, boxes in self.boxes:
            mask = np.zeros(shape, bool)
            for box in boxes:
                mask[tuple(slice(a, b + 1) for a, b in zip(box.first, box.last, strict=True))] = True
            possible[list(regions).index(name)] = mask
        return possible

    def to_entry(self) -> dict[str, Any]:
        """The keys of a case in a datalist; none for ``voxels``."""
        if not self.weak:
            return {}
        boxes = {name: [[list(box.first), list(box.last)] for box in found] for name, found in self.boxes}
        said = {BOXES: boxes} if self.kind == BOXES else {PRESENT: dict(self.present)} if self.kind == IMAGE else {}
        return {SUPERVISION: self.kind, **said}


ALL_VOXELS = Supervision()


def parse_supervision(entry: Mapping[str, Any], where: str) -> Supervision:
    """What the entry of a case says of its supervision.

    Args:
        entry: of a datalist.
        where: how messages call it.

    Raises:
        DataError: it contradicts itself, or is none.
    """
    kind = entry.get(SUPERVISION, VOXELS)
    if kind not in KINDS:
        raise DataError(f"{where}.{SUPERVISION} is {kind!r}, but must be one of {', '.join(KINDS)}.")
    for key, owner in ((BOXES, BOXES), (PRESENT, IMAGE)):
        if (key in entry) != (kind == owner):
            have = f"has {key!r}, which is" if key in entry else f"lacks {key!r}, which it must have"
            raise DataError(f"{where} {have} for {SUPERVISION} {owner!r} alone. It says {kind!r}; name the right one.")
    if kind != VOXELS:
        for key in ("label", "drawn"):
            if entry.get(key):
                raise DataError(
                    f"{where} has {key!r} beside {SUPERVISION} {kind!r}. Take {key!r} out, or the supervision if all "
                    "voxels are labelled."
                )
    return Supervision(kind, _boxes(entry.get(BOXES, {}), where), _present(entry.get(PRESENT, {}), where))


def _boxes(value: Any, where: str) -> tuple[tuple[str, tuple[Box, ...]], ...]:
    if not isinstance(value, Mapping) or not all(isinstance(each, list) for each in value.values()):
        raise DataError(f"{where}.{BOXES} must be an object with a list of boxes for each region.")
    return tuple(
        (name, tuple(_box(each, f"{where}.{BOXES}.{name}") for each in found)) for name, found in value.items()
    )


def _box(value: Any, where: str) -> Box:
    corners: list[Any] = value if isinstance(value, list) and len(value) == 2 else [None]
    sound = all(isinstance(c, list) and len(c) == 3 and all(type(n) is int and n >= 0 for n in c) for c in corners)
    if not sound or any(a > b for a, b in zip(*corners, strict=True)):
        raise DataError(
            f"{where} holds {value!r}, but a box is [[x, y, z], [x, y, z]]: its first and its last voxel, counted "
            "from 0."
        )
    first, last = corners
    return Box((first[0], first[1], first[2]), (last[0], last[1], last[2]))


def _present(value: Any, where: str) -> tuple[tuple[str, bool], ...]:
    if not isinstance(value, Mapping) or not all(isinstance(each, bool) for each in value.values()):
        raise DataError(f"{where}.{PRESENT} must be an object with true or false for each region.")
    return tuple(value.items())


def check_supervision(said: Supervision, regions: Sequence[str], shape: Voxel | None = None) -> None:
    """Refuse what does not belong to a task, or to an image.

    Args:
        said: of a case.
        regions: names of the task's.
        shape: of the image file; None where it is not known.

    Raises:
        DataError: a region is unknown, or a box reaches beyond the image.
    """
    if unknown := sorted(set(said.regions) - set(regions)):
        raise DataError(
            f"The case's {SUPERVISION} names {', '.join(map(repr, unknown))}, but the regions of the task are "
            f"{', '.join(regions)}. Name only these."
        )
    for name, boxes in said.boxes if shape is not None else ():
        for box in boxes:
            if any(end >= size for end, size in zip(box.last, shape or (), strict=True)):
                raise DataError(
                    f"A box of {name} reaches to voxel {list(box.last)}, but the image has {list(shape or ())} voxels. "
                    "Count voxels from 0, along the axes of the file."
                )
