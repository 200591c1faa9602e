"""Counting at a site: every case is read once, and what it says goes into the tallies; nothing leaves from here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch

from fedseg.data.case_reading import read_case
from fedseg.data.datalist import Case
from fedseg.data.grid import Grid
from fedseg.data.progress import Progress, silent
from fedseg.data.scanner_facts import read_scanner_facts
from fedseg.statistics import quantities as q
from fedseg.statistics.moments import Moments
from fedseg.statistics.quantities import Quantities, named, quantities
from fedseg.statistics.tally import BinTally, NameTally
from fedseg.tasks.drawn import drawn_outputs
from fedseg.tasks.normalisation import counted_voxels, normalise
from fedseg.tasks.objective import objective_of
from fedseg.tasks.segmentation.components import count_components
from fedseg.tasks.segmentation.labels import to_classes, to_regions
from fedseg.tasks.task import Task


@dataclass
class Tallies:
    """All that a site has counted.

    Attributes:
        what: the quantities.
        cases: how many were counted.
        patients: whose they are.
        bins, names: tallies by the name of their quantity.
        moments: by the name of their quantity.
    """

    what: Quantities
    cases: int = 0
    patients: set[str] = field(default_factory=set)
    bins: dict[str, BinTally] = field(default_factory=dict)
    names: dict[str, NameTally] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bins = {name: BinTally(scale) for name, scale in self.what.scales.items()}
        self.names = {name: NameTally(names) for name, names in self.what.categories.items()}


def measure(
    task: Task, cases: Sequence[Case], fine: bool = True, per_patient: bool = False, progress: Progress = silent
) -> Tallies:
    """Count the cases of a site.

    Args:
        task: with the one label convention of these cases, see ``data.label_convention``.
        cases: each is read once, one after the other.
        fine: see ``quantities``.
        per_patient: let the cases of one patient weigh 1 together, and not each; what noise is measured against.
        progress: shows how far the reading is.

    Raises:
        DataError: a case cannot be read, or does not fit the task; the text names files.
    """
    tallies = Tallies(quantities(task, fine))
    count = Counter(case.patient for case in cases)
    for case in progress(cases, "Counting cases", len(cases)):
        _measure_case(tallies, task, case, 1.0 / count[case.patient] if per_patient else 1.0)
    return tallies


def _measure_case(tallies: Tallies, task: Task, case: Case, weight: float) -> None:
    image, grid, label = read_case(task, case)
    tallies.cases += 1
    tallies.patients.add(case.patient)
    add = _Adding(tallies, case.patient, weight)
    _add_geometry(add, image, grid)
    _add_scanner(add, case)
    classes = None if label is None or not task.classes else to_classes(task, label)
    drawn = drawn_outputs(objective_of(task), case.drawn)
    whole = classes if drawn is None else None
    _add_intensities(add, task, image, case.missing, whole)
    if classes is not None:
        _add_labels(add, task, classes, prod(grid.spacing) / 1000, drawn)


@dataclass(frozen=True)
class _Adding:
    """Adds what one case says."""

    tallies: Tallies
    patient: str
    weight: float

    def values(self, name: str, values: Iterable[float] | np.ndarray) -> None:
        found = np.asarray(values, float)
        if not found.size:
            return
        self.tallies.bins[name].count(found, self.patient, self.weight)
        if name in self.tallies.what.moments:
            so_far = self.tallies.moments.get(name, Moments())
            self.tallies.moments[name] = so_far.merge(Moments.of(found, self.weight))

    def shares(self, name: str, shares: dict[str, float]) -> None:
        self.tallies.names[name].count(shares, self.patient, self.weight)


def _add_geometry(add: _Adding, image: np.ndarray, grid: Grid) -> None:
    """Sizes along the axes of the body, of what is left once an empty border is cut away."""
    shape = _box(image)
    counts, sizes = Grid(shape, grid.affine).in_body
    add.values(q.KEPT, [prod(shape) / prod(grid.shape)])
    for axis, count, size in zip(q.AXES, counts, sizes, strict=True):
        add.values(named(q.SHAPE, axis), [count])
        add.values(named(q.SPACING, axis), [size])
        add.values(named(q.EXTENT, axis), [count * size])
    add.shares(q.ORIENTATION, {grid.orientation: 1.0})


def _box(image: np.ndarray) -> tuple[int, int, int]:
    """How large the part of [C, X, Y, Z] is in which a channel is not 0; all of it where there is none."""
    filled = (image != 0).any(axis=0)
    ends = [np.flatnonzero(filled.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    x, y, z = (int(found[-1] - found[0] + 1) if found.size else n for found, n in zip(ends, filled.shape, strict=True))
    return x, y, z


def _add_scanner(add: _Adding, case: Case) -> None:
    facts = read_scanner_facts(case.images[0])
    if facts.maker is not None:
        add.shares(q.MAKER, {facts.maker: 1.0})
    if facts.field_strength is not None:
        add.values(q.FIELD_STRENGTH, [facts.field_strength])


def _add_intensities(
    add: _Adding, task: Task, image: np.ndarray, missing: Sequence[int], classes: np.ndarray | None
) -> None:
    values = torch.from_numpy(image)
    normalised = normalise(task, values, missing)
    for position, channel in enumerate(task.channels):
        if channel in task.optional_channels:
            add.shares(named(q.ACQUIRED, channel), {q.NO if position in missing else q.YES: 1.0})
        if position in missing:
            continue
        counted = counted_voxels(task, values[position])
        add.values(named(q.INTENSITY, channel), values[position][counted].numpy())
        add.values(named(q.NORMALISED, channel), normalised[position][counted].numpy())
        if classes is not None:
            add.values(named(q.STRUCTURE, channel), image[position][classes > 0])


def _add_labels(
    add: _Adding, task: Task, classes: np.ndarray, voxel: float, drawn: Sequence[bool] | None = None
) -> None:
    """Volumes in ml and connected parts of the regions, and the shares of the classes in all that is labelled.

    Of a case in which regions are not drawn only the drawn ones: what is labelled is not all that there is.
    """
    for index, (region, mask) in enumerate(zip(task.region_names, to_regions(task, classes), strict=True)):
        if drawn is not None and not drawn[index]:
            continue
        count = int(mask.sum())
        add.values(named(q.VOLUME, region), [count * voxel])
        add.values(named(q.COMPONENTS, region), [count_components(mask)])
        add.shares(named(q.PRESENT, region), {q.YES if count else q.NO: 1.0})
    if drawn is not None:
        return
    counts = np.bincount(classes.ravel(), minlength=len(task.classes) + 1)[1:]
    if counts.sum():
        shares = (counts / counts.sum()).tolist()
        add.shares(q.CLASSES, dict(zip(task.classes, shares, strict=True)))
