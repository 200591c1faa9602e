"""How far two sites are apart: in intensities, in what is labelled, and in how large it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from fedseg.errors import DataError
from fedseg.statistics import quantities as q
from fedseg.statistics.histogram import Estimate
from fedseg.statistics.quantities import named
from fedseg.statistics.site_statistics import Statistics
from fedseg.statistics.tally import OTHER
from fedseg.tasks.task import Task

WINDOW = "window"


@dataclass(frozen=True)
class LabelShift:
    """How much two sites differ in the shares that classes have of all that is labelled.

    Attributes:
        total_variation: half of the sum of the differences, 0 to 1: the part of the labelled volume that would have to
            be of another class.
        jensen_shannon: Jensen-Shannon divergence in bits, 0 to 1 (Lin, 1991).
    """

    total_variation: float
    jensen_shannon: float


@dataclass(frozen=True)
class SitePair:
    """Two sites beside each other.

    Attributes:
        sites: their names.
        intensities: by channel, the Wasserstein-1 distance of normalised intensities: in standard deviations, or in
            parts of the window.
        volumes: by region, the Wasserstein-1 distance of its volumes in ml.
        present: by region, by how much the shares of cases that have it differ, 0 to 1.
        labels: of the classes; None where a task or a site has none.
    """

    sites: tuple[str, str]
    intensities: Mapping[str, Estimate]
    volumes: Mapping[str, Estimate]
    present: Mapping[str, float]
    labels: LabelShift | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {**asdict(self), "sites": list(self.sites)}


def pairs(task: Task, sites: Mapping[str, Statistics]) -> list[SitePair]:
    """Every pair of sites, in the order of their names.

    Raises:
        DataError: they were counted in different bins.
    """
    return [compare(task, (a, b), sites[a], sites[b]) for a, b in combinations(sorted(sites), 2)]


def compare(task: Task, names: tuple[str, str], one: Statistics, other: Statistics) -> SitePair:
    """Two sites beside each other; see ``SitePair``."""
    regions: Sequence[str] = task.region_names if task.classes else ()
    shares = {region: (_share(one, region), _share(other, region)) for region in regions}
    return SitePair(
        names,
        _distances(one, other, q.NORMALISED, task.channels),
        _distances(one, other, q.VOLUME, regions),
        {region: abs(a - b) for region, (a, b) in shares.items() if a is not None and b is not None},
        label_shift(one.categories.get(q.CLASSES, {}), other.categories.get(q.CLASSES, {})),
    )


def label_shift(one: Mapping[str, float], other: Mapping[str, float]) -> LabelShift | None:
    """The shift between two weightings of classes.

    A class that one of them does not name has no weight there, unless it joined rare classes under ``other``: then it
    counts under ``other`` in both.

    >>> label_shift({"a": 1, "b": 0}, {"a": 0, "b": 3})
    LabelShift(total_variation=1.0, jensen_shannon=1.0)
    >>> label_shift({"a": 1, "b": 1}, {"a": 1, "c": 1})
    LabelShift(total_variation=0.5, jensen_shannon=0.5)
    """
    named_ones = [name for name in dict.fromkeys((*one, *other)) if name != OTHER]
    common = [name for name in named_ones if all(name in known or OTHER not in known for known in (one, other))]
    both = []
    for weights in (one, other):
        kept = [max(0.0, weights.get(name, 0.0)) for name in common]
        rest = sum(max(0.0, weight) for name, weight in weights.items() if name not in common)
        total = sum(kept) + rest
        if not total:
            return None
        both.append([weight / total for weight in (*kept, rest)])
    middle = [(a + b) / 2 for a, b in zip(*both, strict=True)]
    apart = math.fsum(abs(a - b) for a, b in zip(*both, strict=True)) / 2
    return LabelShift(apart, max(0.0, (_divergence(both[0], middle) + _divergence(both[1], middle)) / 2))


def _divergence(shares: Sequence[float], of: Sequence[float]) -> float:
    return math.fsum(a * math.log2(a / b) for a, b in zip(shares, of, strict=True) if a > 0)


def _distances(one: Statistics, other: Statistics, what: str, names: Sequence[str]) -> dict[str, Estimate]:
    found = {}
    for name in names:
        mine, others = (part.histograms.get(named(what, name)) for part in (one, other))
        if mine is not None and others is not None and (distance := mine.distance(others)) is not None:
            found[name] = distance
    return found


def _share(statistics: Statistics, region: str) -> float | None:
    """The share of cases that have a region; None where too few patients are behind that, or nobody told."""
    found = {name: max(0.0, weight) for name, weight in statistics.categories.get(named(q.PRESENT, region), {}).items()}
    if OTHER in found or not (total := sum(found.values())):
        return None
    return found.get(q.YES, 0.0) / total


# Rules of thumb, told as such where they are shown: from here on a difference is worth a method against it. Two random
# halves of one hospital with 26 or 34 patients are 0.06 standard deviations apart (at most 0.13 in 20 draws of each).
INTENSITY_STEP = {True: 0.05, False: 0.15}  # parts of the window; standard deviations
LABEL_STEP, PRESENT_STEP, SIZE_STEP, CASES_STEP = 0.1, 0.2, 0.5, 4.0
GUIDE = "docs/how-to/choose-a-method.md"


def advice(task: Task, sites: Mapping[str, Statistics]) -> list[str]:
    """What to think of, by the largest differences; sentences for people, an empty list where none is large.

    A difference counts as far as it is certain: its error is taken off.

    Raises:
        DataError: the sites were counted in different bins.
    """
    if len({part.fine for part in sites.values()}) > 1:
        raise DataError("Some sites counted in coarse bins and some in fine ones, so they cannot be compared.")
    found = pairs(task, sites)
    candidates = (
        (intensity_difference(task, found), _AGAINST_INTENSITIES),
        (label_difference(found), _AGAINST_LABELS),
        (volume_difference(found, sites), _AGAINST_VOLUMES),
        (size_difference(sites), _AGAINST_SIZES),
    )
    return [fact + against for fact, against in candidates if fact]


_AGAINST_INTENSITIES = f". Scanners differ: {GUIDE} has cyclic weight transfer, FedProx, FedBN and HarmoFL for that."
_AGAINST_LABELS = (
    ". Look whether both draw by one convention; if they do, "
    f"class weights or loss-focused weighting may help, if not, private layers (FedBN, FLOP) or Ditto: {GUIDE}."
)
_AGAINST_VOLUMES = (
    f": other patients, or another way to draw. Look at cases of both before you choose a method against it: {GUIDE}."
)
_AGAINST_SIZES = (
    f": weights between equal and by size (aggregator.uniform_share, FedCostWAvg) give small sites a say: {GUIDE}."
)


def intensity_difference(task: Task, found: Sequence[SitePair]) -> str:
    """The largest difference of intensities, where it is worth a method, as a sentence without its full stop; else
    empty. So are those below."""
    far = [(d.value - d.error, d.value, c, pair.sites) for pair in found for c, d in pair.intensities.items()]
    windowed = task.normalisation == WINDOW
    if not far or max(far)[0] < INTENSITY_STEP[windowed]:
        return ""
    _, value, channel, (a, b) = max(far)
    unit = "of the window" if windowed else "standard deviations"
    return f"After normalisation, the intensities of {channel} differ most between {a} and {b}: {value:.2g} {unit}"


def label_difference(found: Sequence[SitePair]) -> str:
    """The largest difference of classes, or of how often a region is there."""
    shifts = [(pair.labels.total_variation, pair.sites) for pair in found if pair.labels is not None]
    absent = [(share, region, pair.sites) for pair in found for region, share in pair.present.items()]
    if shifts and max(shifts)[0] >= LABEL_STEP:
        value, (a, b) = max(shifts)
        what = f"{value:.0%} of the labelled volume is of another class at {a} than at {b}"
    elif absent and max(absent)[0] >= PRESENT_STEP:
        share, region, (a, b) = max(absent)
        what = f"the share of cases with {region} differs by {share:.0%} between {a} and {b}"
    else:
        return ""
    return f"Labels are distributed differently: {what}"


def volume_difference(found: Sequence[SitePair], sites: Mapping[str, Statistics]) -> str:
    """The largest difference of volumes, as a part of the mean volume."""
    far = []
    for pair in found:
        for region, distance in pair.volumes.items():
            means = [sites[site].histograms[named(q.VOLUME, region)].mean() for site in pair.sites]
            typical = sum(mean.value for mean in means if mean is not None) / 2
            if typical > 0:
                far.append(((distance.value - distance.error) / typical, distance.value, region, pair.sites))
    if not far or max(far)[0] < SIZE_STEP:
        return ""
    _, value, region, (a, b) = max(far)
    return f"Volumes of {region} differ by {value:.3g} ml on average between {a} and {b}"


def size_difference(sites: Mapping[str, Statistics]) -> str:
    """The largest and the smallest site, where they are far apart."""
    sizes = sorted((part.cases, site) for site, part in sites.items())
    if len(sizes) < 2 or sizes[-1][0] < CASES_STEP * sizes[0][0]:
        return ""
    (least, small), (most, large) = sizes[0], sizes[-1]
    return f"{large} has {most} cases and {small} has {least}"
