"""Weak labels for experiments: in the place of masks, the boxes around them, which regions are there, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from fedseg.data.datalist import Case, Datalist
from fedseg.data.label_convention import with_convention
from fedseg.data.reading import read_label
from fedseg.data.supervision import BOXES, IMAGE, KINDS, VOXELS, Box, Supervision, Voxel
from fedseg.errors import UsageError
from fedseg.tasks.segmentation.labels import to_classes, to_regions
from fedseg.tasks.task import Task

EVERYWHERE = ""


@dataclass(frozen=True)
class WeakLabels:
    """Which cases lose their masks, and what they keep. Test cases keep all: they are to tell how good a model is.

    Attributes:
        kinds: what cases have instead of voxels, by the name of the site, or at every site under ``EVERYWHERE``.
        share: of the patients with training or validation cases of these sites, above 0 to 1, drawn at random.
    """

    kinds: Mapping[str, str]
    share: float = 1.0

    def __post_init__(self) -> None:
        for kind in self.kinds.values():
            if kind not in KINDS[1:]:
                raise UsageError(f"--supervision names {kind!r}, but takes {', '.join(KINDS[1:])}, or SITE={KINDS[1]}.")
        if EVERYWHERE in self.kinds and len(self.kinds) > 1:
            raise UsageError("--supervision names one kind for every site and others for some. Name it for each site.")
        if not 0 < self.share <= 1:
            raise UsageError(f"--supervision-share is {self.share}, but must be a number above 0, up to 1.")

    def of(self, site: str) -> str:
        """What chosen cases of a site have."""
        return self.kinds.get(site, self.kinds.get(EVERYWHERE, VOXELS))


def weakened(weak: WeakLabels, task: Task, datalists: Mapping[str, Datalist], seed: int) -> dict[str, Datalist]:
    """The datalists of all sites, in which chosen cases have weak labels; no file is written.

    Args:
        weak: what is asked for.
        task: names the regions.
        datalists: of all sites.
        seed: of the draw of patients.

    Raises:
        UsageError: a site is none of them.
        DataError: a label cannot be read.
    """
    if unknown := [site for site in weak.kinds if site and site not in datalists]:
        raise UsageError(f"--supervision names {unknown[0]}, but the sites are {', '.join(datalists)}.")
    lists = [datalist for site, datalist in datalists.items() if weak.of(site) != VOXELS]
    patients = sorted({case.patient for each in lists for case in (*each.training, *each.validation)})
    count = max(1, round(weak.share * len(patients)))
    chosen = {patients[i] for i in np.random.default_rng([seed, 5]).permutation(len(patients))[:count]}
    return {site: _weakened(weak.of(site), task, datalist, chosen) for site, datalist in datalists.items()}


def _weakened(kind: str, task: Task, datalist: Datalist, patients: set[str]) -> Datalist:
    task = with_convention(task, datalist.convention)

    def without(case: Case) -> Case:
        if kind == VOXELS or case.patient not in patients or case.label is None:
            return case
        masks = to_regions(task, to_classes(task, read_label(case.label)[0]))
        return replace(case, label=None, drawn=None, supervision=supervision_of(kind, task.region_names, masks))

    training, validation = (tuple(map(without, part)) for part in (datalist.training, datalist.validation))
    return replace(datalist, training=training, validation=validation)


def supervision_of(kind: str, regions: Sequence[str], masks: np.ndarray) -> Supervision:
    """What a kind of supervision says of masks; boxes are around each of a region's connected parts.

    Args:
        kind: one of ``KINDS``.
        regions: names of the task's.
        masks: of the regions, bool [R, X, Y, Z].
    """
    named = list(zip(regions, masks, strict=True))
    boxes = tuple((name, boxes_around(mask)) for name, mask in named) if kind == BOXES else ()
    present = tuple((name, bool(mask.any())) for name, mask in named) if kind == IMAGE else ()
    return Supervision(kind, boxes, present)


def boxes_around(mask: np.ndarray) -> tuple[Box, ...]:
    """The boxes around the parts of a mask [X, Y, Z] that touch at faces, edges or corners."""
    parts, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    return tuple(_box(found) for found in ndimage.find_objects(parts))


def _box(place: tuple[slice, slice, slice]) -> Box:
    x, y, z = place
    first: Voxel = (int(x.start), int(y.start), int(z.start))
    return Box(first, (int(x.stop) - 1, int(y.stop) - 1, int(z.stop) - 1))
