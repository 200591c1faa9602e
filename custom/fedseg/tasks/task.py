"""The description of a task: everything that training, checks and metrics need to know, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from fedseg import allowed
from fedseg.errors import ConfigurationError
from fedseg.tasks.lesion_rule import LesionRule

LANDMARKS = "landmarks"
NORMALISATIONS = ("zscore_nonzero", "zscore", "window", LANDMARKS)
MODALITIES = ("MR", "CT")
SEGMENTATION = "segmentation"
FOREGROUND, LARGEST = "foreground", "largest"
# Far beyond any image: what is declared beyond them is a slip, or made to exhaust whoever reads it.
MOST_CHANNELS, MOST_REGIONS, LARGEST_PATCH = 64, 255, 1024
SMALLEST_SPACING, LARGEST_SPACING, LARGEST_INTENSITY = 0.01, 1000, 1e9
TOLERANCE = 1.0  # mm: a voxel of the images of BraTS and of the hippocampus, whose borders are not known better


@dataclass(frozen=True)
class Region:
    """A named part of the image that is segmented and scored: the union of some label classes."""

    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class LabelConvention:
    """How one family of data sets writes the classes of a task into label files: class name -> integer value."""

    name: str
    values: Mapping[str, int]

    @property
    def allowed(self) -> frozenset[int]:
        """Every value that may occur in a file of this convention, background (0) included."""
        return frozenset(self.values.values()) | {0}


@dataclass(frozen=True)
class Task:
    """What is learned from which images. Classes, conventions and regions are those of segmentation, which must have
    them; other kinds of tasks may.

    Attributes:
        name: one word, used in jobs, reports and file names.
        modality: ``MR`` or ``CT``; CT images are checked against plausible Hounsfield units.
        channels: names of the images of one case, in the order in which the network sees them.
        classes: label classes, without the background; class ``i`` has the internal value ``i + 1``.
        conventions: ways in which label files write the classes; a data set follows one.
        regions: what is segmented and scored. Either one region per class (exclusive, softmax over background and
            regions), or nested unions of classes (overlapping, one sigmoid channel per region).
        normalisation: ``zscore_nonzero`` (per channel over non-zero voxels, the rest stays 0), ``zscore`` (per
            channel over all voxels), ``window`` (clip to ``window`` and scale to [0, 1]) or ``landmarks`` (landmarks of
            the histogram of the non-zero voxels to those of a normal distribution, the rest stays 0).
        window: lower and upper intensity for ``window``, e.g. Hounsfield units.
        clip: by channel the lower and upper intensity to which its values are clipped before they are normalised, for
            ``zscore`` and ``zscore_nonzero``; e.g. Hounsfield units of a CT beside MR.
        spacing: voxel size in mm (R, A, S) to which images are resampled; None keeps the image's own.
        spacing_range: voxel sizes in mm that are plausible for this task, for the data check.
        crop_to_foreground: cut away the empty (zero) border before training; for skull-stripped images.
        patch_size: voxels of a training patch and of the sliding window.
        sampling: relative frequency with which a patch is centred on each class, ``background`` included; empty:
            patches are cut at random anywhere.
        flip_axes: axes along which training images may be mirrored (0: left-right).
        optional_channels: channels that a case may lack; the network sees 0 in their place, the mean of a normalised
            image. Where they are all channels, a case has at least one of them.
        objective: what kind of task it is, see ``fedseg.tasks.objective``.
        components: which connected parts of a predicted region (or of the ``foreground``: all classes together) are
            kept: the ``largest``, or those of at least so many ml.
        mirrored: whether a prediction is the mean over the image and its mirror images along ``flip_axes``.
        display: channels on which reports draw references and predictions, those that a reader looks at; empty: in
            each case the channel in which its regions stand out most.
        tolerance: distance in mm between two surfaces that does not matter, for the normalised surface distance.
        lesions: which lesions count in lesion-wise scores.
    """

    name: str
    modality: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    conventions: tuple[LabelConvention, ...]
    regions: tuple[Region, ...]
    normalisation: str
    patch_size: tuple[int, int, int]
    window: tuple[float, float] | None = None
    spacing: tuple[float, float, float] | None = None
    spacing_range: tuple[float, float] = (0.2, 10.0)
    crop_to_foreground: bool = False
    sampling: Mapping[str, float] = field(default_factory=dict)
    flip_axes: tuple[int, ...] = ()
    optional_channels: tuple[str, ...] = ()
    clip: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    description: str = ""
    objective: str = SEGMENTATION
    components: Mapping[str, str | float] = field(default_factory=dict)
    mirrored: bool = False
    display: tuple[str, ...] = ()
    tolerance: float = TOLERANCE
    lesions: LesionRule = field(default_factory=LesionRule)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def region_names(self) -> tuple[str, ...]:
        """Names of the regions, in the order of the network's output."""
        return tuple(region.name for region in self.regions)

    @property
    def zero_is_nothing(self) -> bool:
        """Whether a voxel of 0 shows nothing of the body, before the normalisation and after it."""
        return self.normalisation in ("zscore_nonzero", LANDMARKS)

    @property
    def exclusive(self) -> bool:
        """Whether every region is exactly one class: softmax over background and regions instead of sigmoids."""
        return all(len(region.classes) == 1 for region in self.regions)

    @property
    def output_channels(self) -> int:
        """Channels of the network's output: one per region, and one for the background where regions exclude."""
        return len(self.regions) + int(self.exclusive)

    def region_values(self, region: Region) -> tuple[int, ...]:
        """Internal label values that make up ``region``."""
        return tuple(self.classes.index(name) + 1 for name in region.classes)

    @cached_property
    def painting_order(self) -> tuple[tuple[int, int], ...]:
        """How overlapping regions become one label map: (region index, internal label value), largest region first.

        Each region paints the one class that no region inside it contains (whole tumour paints oedema, then the core
        paints necrosis over it, then the enhancing part).
        """
        order = sorted(range(len(self.regions)), key=lambda i: -len(self.regions[i].classes))
        return tuple((i, self.classes.index(_own_class(self, i)) + 1) for i in order)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form, as a job declares it; ``parse_task`` reads it back to an equal task."""
        result = asdict(self)
        result["conventions"] = {c.name: dict(c.values) for c in self.conventions}
        result["regions"] = {r.name: list(r.classes) for r in self.regions}
        result["sampling"] = dict(self.sampling)
        result["components"] = dict(self.components)
        result["clip"] = {name: list(bounds) for name, bounds in self.clip.items()}
        # Not said by declarations of the time when there was nothing to say, which must keep their digests.
        if self.objective == SEGMENTATION:
            del result["objective"]
        for name in ("components", "mirrored", "optional_channels", "display", "clip"):
            if not result[name]:
                del result[name]
        for name, usual in (("tolerance", TOLERANCE), ("lesions", asdict(LesionRule()))):
            if result[name] == usual:
                del result[name]
        return result


def parse_task(declaration: Mapping[str, Any], where: str = "task") -> Task:
    """Build a task from its declaration in a job.

    Args:
        declaration: the fields of ``Task``; ``conventions`` as ``{name: {class: value}}`` (or ``labels`` as
            ``{class: value}`` for a single one), ``regions`` as ``{name: [classes]}`` (default: one per class).
        where: how the user calls this place, for messages.

    Raises:
        ConfigurationError: a field is unknown, missing or has a value that is not allowed.
    """
    values = dict(declaration)
    if "labels" in values:
        if "conventions" in values or "classes" in values:
            raise ConfigurationError(f"{where}.labels", values["labels"], "given without classes and conventions")
        labels = _mapping(values.pop("labels"), f"{where}.labels")
        values["classes"] = [name for name in labels if name != "background"]
        values["conventions"] = {"labels": {k: v for k, v in labels.items() if k != "background"}}
    known = {f.name for f in fields(Task)}
    allowed.known_names(where, values, known, "the fields are")
    if values.get("objective", SEGMENTATION) != SEGMENTATION:
        values = {"classes": (), "conventions": {}, **values}
    for key in ("name", "modality", "channels", "classes", "conventions", "normalisation", "patch_size"):
        if key not in values:
            raise ConfigurationError(f"{where}.{key}", None, "given")
    values.setdefault("regions", {name: [name] for name in _sequence(values["classes"], f"{where}.classes")})
    values["conventions"] = tuple(
        LabelConvention(str(n), _mapping(v, f"{where}.conventions.{n}"))
        for n, v in _mapping(values["conventions"], f"{where}.conventions").items()
    )
    values["regions"] = tuple(
        Region(str(n), _sequence(v, f"{where}.regions.{n}"))
        for n, v in _mapping(values["regions"], f"{where}.regions").items()
    )
    for key in (
        "channels",
        "classes",
        "optional_channels",
        "patch_size",
        "window",
        "spacing",
        "spacing_range",
        "flip_axes",
        "display",
    ):
        if values.get(key) is not None:
            values[key] = _sequence(values[key], f"{where}.{key}")
    for key in ("sampling", "components"):
        values[key] = _mapping(values.get(key, {}), f"{where}.{key}")
    values["clip"] = {
        name: _sequence(bounds, f"{where}.clip.{name}")
        for name, bounds in _mapping(values.get("clip", {}), f"{where}.clip").items()
    }
    if "lesions" in values:
        values["lesions"] = allowed.settings(LesionRule, values["lesions"], f"{where}.lesions")
    return Task(**values)


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(name, value, "an object of names and values")
    return dict(value)


def _sequence(value: Any, name: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigurationError(name, value, "a list")
    return tuple(value)


def _check(task: Task) -> None:
    """Refuse a description that could not be trained or scored."""

    def require(condition: bool, name: str, allowed: str) -> None:
        if not condition:
            raise ConfigurationError(f"task.{name}", getattr(task, name.split(".")[0]), allowed)

    require(isinstance(task.name, str) and task.name.isidentifier(), "name", "one word of letters, digits and _")
    allowed.one_of("task.modality", task.modality, MODALITIES)
    require(isinstance(task.objective, str) and task.objective.isidentifier(), "objective", "one word")
    labels = ("classes", "conventions", "regions") if task.objective == SEGMENTATION else ()
    for name in ("channels", *labels):
        require(len(getattr(task, name)) > 0, name, "a list with at least one entry")
    for name, most in (("channels", MOST_CHANNELS), ("classes", MOST_REGIONS), ("regions", MOST_REGIONS)):
        require(len(getattr(task, name)) <= most, name, f"{most} at most")
    for name in ("channels", "classes", "optional_channels"):
        items = getattr(task, name)
        require(all(isinstance(i, str) and i for i in items), name, "a list of names")
        require(len(set(items)) == len(items), name, "a list without repetitions")
    known = set(task.optional_channels) <= set(task.channels) and len(task.channels) > bool(task.optional_channels)
    require(known, "optional_channels", f"some of the channels {list(task.channels)}, of which there are two at least")
    shown = all(name in task.channels for name in task.display) and len(set(task.display)) == len(task.display)
    require(shown, "display", f"a list of some of the channels {list(task.channels)}")
    require(len(set(task.region_names)) == len(task.regions), "regions", "a list without repetitions")
    allowed.one_of("task.normalisation", task.normalisation, NORMALISATIONS)
    _check_labels(task)
    _check_numbers(task)
    _check_components(task)


def _check_labels(task: Task) -> None:
    for convention in task.conventions:
        values = list(convention.values.values())
        fits = set(convention.values) == set(task.classes) and all(type(v) is int and 0 < v < 256 for v in values)
        if not fits or len(set(values)) != len(values):
            raise ConfigurationError(
                f"task.conventions.{convention.name}",
                dict(convention.values),
                f"a different integer from 1 to 255 for each of the classes {list(task.classes)}",
            )
    for region in task.regions:
        if not region.classes or not all(name in task.classes for name in region.classes):
            raise ConfigurationError(
                f"task.regions.{region.name}", list(region.classes), f"a list of classes out of {list(task.classes)}"
            )
    for index, region in enumerate(task.regions):
        for other in task.regions[index + 1 :]:
            a, b = set(region.classes), set(other.classes)
            if a & b and not (a < b or b < a):
                raise ConfigurationError(
                    f"task.regions.{region.name}", sorted(a), f"nested with, or apart from, {other.name} {sorted(b)}"
                )
    for index in range(len(task.regions)):
        _own_class(task, index)


def _own_class(task: Task, index: int) -> str:
    """The one class of a region that lies in no smaller region."""
    region = set(task.regions[index].classes)
    inner = {c for r in task.regions if set(r.classes) < region for c in r.classes}
    own = sorted(region - inner)
    if len(own) != 1:
        raise ConfigurationError(
            f"task.regions.{task.regions[index].name}",
            list(task.regions[index].classes),
            f"a region with exactly one class outside the regions inside it (found {own})",
            "Without that a predicted mask could not be written as one label map.",
        )
    return own[0]


def _check_numbers(task: Task) -> None:
    def between(values: Any, count: int, kinds: tuple[type, ...], least: float, most: float) -> bool:
        return len(values) == count and all(type(v) in kinds and least <= v <= most for v in values)

    def require(condition: bool, name: str, allowed: str) -> None:
        if not condition:
            raise ConfigurationError(f"task.{name}", getattr(task, name), allowed)

    number, millimetres = (int, float), f"from {SMALLEST_SPACING} to {LARGEST_SPACING} mm"
    patch = between(task.patch_size, 3, (int,), 1, LARGEST_PATCH)
    require(patch, "patch_size", f"three positive whole numbers of voxels, none above {LARGEST_PATCH}")
    sizes = number, SMALLEST_SPACING, LARGEST_SPACING
    require(task.spacing is None or between(task.spacing, 3, *sizes), "spacing", f"three numbers {millimetres}")
    low_high = task.spacing_range
    plausible = between(low_high, 2, *sizes) and low_high[0] < low_high[1]
    require(plausible, "spacing_range", f"two increasing numbers {millimetres}")
    if task.normalisation == "window":
        window: Sequence[float] = task.window or ()
        ok = between(window, 2, number, -LARGEST_INTENSITY, LARGEST_INTENSITY) and window[0] < window[1]
        require(ok, "window", "two increasing intensities")
    clipped = [between(c, 2, number, -LARGEST_INTENSITY, LARGEST_INTENSITY) and c[0] < c[1] for c in task.clip.values()]
    fits = set(task.clip) <= set(task.channels) and (
        task.normalisation in ("zscore", "zscore_nonzero") or not task.clip
    )
    require(fits and all(clipped), "clip", "two increasing intensities for some of the channels, and only for z-scores")
    classes = {"background", *task.classes}
    shares = list(task.sampling.values())
    fine = set(task.sampling) <= classes and between(shares, len(shares), number, 0, LARGEST_INTENSITY)
    require(fine, "sampling", f"non-negative frequencies for some of {sorted(classes)}")
    require(not task.sampling or sum(task.sampling.values()) > 0, "sampling", "frequencies that are not all zero")
    require(all(a in (0, 1, 2) for a in task.flip_axes), "flip_axes", "a list of axes out of 0, 1, 2")
    allowed.number("task.tolerance", task.tolerance, least=0, most=LARGEST_SPACING)
    allowed.switch("task.crop_to_foreground", task.crop_to_foreground)
    allowed.switch("task.mirrored", task.mirrored)


def _check_components(task: Task) -> None:
    names = (FOREGROUND, *task.region_names)
    for name, rule in task.components.items():
        allowed.one_of("task.components", name, names)
        if rule != LARGEST:
            allowed.number(f"task.components.{name}", rule, above=0, allowed=f"{LARGEST!r} or a volume in ml above 0")
