"""What is counted of the cases of a task, and in which bins: the same at every site, and a closed list.

Bins come in two kinds. Fine ones leave with their counts once bins with too few patients are joined, to cells and
more (``joining``). Coarse ones are
for counts with noise: every bin of the scale leaves, full or empty, since the choice of bins would tell something too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import permutations, product

from fedseg.data.scanner_facts import makers
from fedseg.errors import DataError
from fedseg.statistics.scales import Linear, Relative, Scale
from fedseg.statistics.tally import OTHER
from fedseg.tasks.task import Task

AXES = ("right-left", "front-back", "foot-head")
SPACING, SHAPE, EXTENT, KEPT = "spacing", "shape", "extent", "kept"
INTENSITY, NORMALISED, STRUCTURE = "intensity", "normalised", "structure"
VOLUME, COMPONENTS, FIELD_STRENGTH = "volume", "components", "field strength"
ORIENTATION, CLASSES, PRESENT, MAKER, ACQUIRED = "orientation", "classes", "present", "maker", "acquired"
YES, NO = "yes", "no"

UNITS = {SPACING: "mm", SHAPE: "voxels", EXTENT: "mm", VOLUME: "ml", FIELD_STRENGTH: "T", NORMALISED: "", INTENSITY: ""}
_FINE: dict[str, Scale] = {
    SPACING: Linear(0.001, 0, 50, cell=64),
    SHAPE: Linear(1, 1, 4096, cell=8),
    EXTENT: Linear(0.1, 0, 5000, cell=64),
    INTENSITY: Relative(0.005, 1e-3, 1e9, cell=16),
    VOLUME: Relative(0.005, 1e-3, 1e5, cell=16),
    COMPONENTS: Linear(1, 0, 1000, cell=4),
    KEPT: Linear(0.01, 0, 1, cell=4),
    FIELD_STRENGTH: Linear(0.1, 0, 21, cell=4),
}
_COARSE: dict[str, Scale] = {
    SPACING: Linear(0.25, 0, 10),
    SHAPE: Linear(16, 0, 512),
    EXTENT: Linear(16, 0, 512),
    INTENSITY: Relative(0.25, 1, 1e5),
    VOLUME: Relative(0.25, 0.1, 1e4),
    COMPONENTS: Linear(1, 0, 20),
    KEPT: Linear(0.1, 0, 1),
    FIELD_STRENGTH: Linear(0.5, 0, 8),
}
# In standard deviations; fine and coarse.
_DEVIATIONS = (Linear(0.02, -10, 10, cell=4), Linear(0.5, -5, 5))
# In parts of the window.
_PARTS = (Linear(0.002, 0, 1, cell=16), Linear(0.05, 0, 1))


@dataclass(frozen=True)
class Quantities:
    """The names of what is counted, in a fixed order.

    Attributes:
        scales: of each histogram, by its name.
        categories: the names that each count of categories may have, by its name.
        moments: names of histograms that have moments beside them, in fine bins.
    """

    scales: dict[str, Scale]
    categories: dict[str, tuple[str, ...]]
    moments: tuple[str, ...] = field(default=())


def quantities(task: Task, fine: bool) -> Quantities:
    """What is counted of the cases of a task.

    ``shape`` and ``extent`` are those of the smallest box with everything that is not 0 in some channel, and ``kept``
    is its share of the image. Intensities are those of the voxels that the normalisation counts
    (``tasks.normalisation``): as they stand in the files (``intensity``), once more inside the labelled structures
    (``structure``), and after the normalisation (``normalised``). Of a channel that cases may lack also whether they
    have it is counted (``acquired``).

    Args:
        task: with its channels, classes and regions.
        fine: the bins, see the module.
    """
    bins = _FINE if fine else _COARSE
    scales = {named(what, axis): bins[what] for what in (SPACING, SHAPE, EXTENT) for axis in AXES}
    scales[KEPT] = bins[KEPT]
    scales |= {named(INTENSITY, channel): bins[INTENSITY] for channel in task.channels}
    normalised = (_PARTS if task.normalisation == "window" else _DEVIATIONS)[not fine]
    scales |= {named(NORMALISED, channel): normalised for channel in task.channels}
    if task.classes:
        scales |= {named(STRUCTURE, channel): bins[INTENSITY] for channel in task.channels}
    for region in task.region_names if task.classes else ():
        scales |= {named(what, region): bins[what] for what in (VOLUME, COMPONENTS)}
    scales[FIELD_STRENGTH] = bins[FIELD_STRENGTH]
    categories = {ORIENTATION: _orientations(), MAKER: makers()}
    if task.classes:
        categories[CLASSES] = task.classes
        categories |= {named(PRESENT, region): (YES, NO) for region in task.region_names}
    categories |= {named(ACQUIRED, channel): (YES, NO) for channel in task.optional_channels}
    measured = tuple(name for name in scales if kind(name) in (SPACING, EXTENT, INTENSITY, STRUCTURE, VOLUME))
    return Quantities(scales, categories, measured if fine else ())


def named(what: str, of: str) -> str:
    """The name of a quantity of one axis, channel or region."""
    return f"{what}: {of}"


def kind(name: str) -> str:
    """The quantity that a name is of; the reverse of ``named``."""
    return name.partition(": ")[0]


def of(name: str) -> str:
    """The axis, channel or region that a name is of; empty where it is of none."""
    return name.partition(": ")[2]


def check_names(task: Task) -> None:
    """Refuse a task with a class that would be taken for the sum of the rare ones.

    Raises:
        DataError: names the class.
    """
    if OTHER in task.classes:
        raise DataError(f"The task has a class named {OTHER!r}, which statistics need for rare ones. Rename the class.")


def _orientations() -> tuple[str, ...]:
    """The 48 ways in which axes of an image can lie in the body."""
    return tuple(sorted("".join(way) for order in permutations(("RL", "AP", "SI")) for way in product(*order)))
