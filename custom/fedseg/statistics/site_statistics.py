"""The statistics of one site, or of several together, in the form in which they leave a site and lie in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedseg.allowed import is_count, is_number
from fedseg.errors import DataError
from fedseg.statistics.histogram import Group, Histogram, added
from fedseg.statistics.moments import Moments
from fedseg.statistics.quantities import Quantities, quantities
from fedseg.statistics.tally import OTHER
from fedseg.tasks.task import Task

if TYPE_CHECKING:
    from fedseg.statistics.measuring import Tallies  # needs torch, which readers of statistics need not wait for

_KEYS = ("cases", "patients", "minimum", "fine", "noise", "histograms", "moments", "categories")
_NOISE_KEYS = ("mechanism", "epsilon", "delta", "sensitivity", "scale", "variance")
_MOST = 1e12
"""Of a weight and of a mean; of a variance its square. Sums over sites and squares of differences stay finite."""


@dataclass(frozen=True)
class Statistics:
    """What is known of the cases of a site, or of several sites together.

    Attributes:
        cases, patients: how many were counted; with noise both are the number of patients.
        minimum: fewest patients behind any group of bins and any category; 0 with noise, which protects instead.
        fine: whether bins are the fine ones, see ``quantities``.
        histograms: by the names of ``quantities``; of what no case told there is none.
        moments: of the values themselves, by the same names; none with noise.
        categories: weights by name, ``other`` for rare ones together.
        noise: what was added before anything left, see ``noise.NoiseSetting``; None without noise. Of several sites
            only ``variance`` is left, that of the noise in one bin.
    """

    cases: int
    patients: int
    minimum: int
    fine: bool = True
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    moments: Mapping[str, Moments] = field(default_factory=dict)
    categories: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    noise: Mapping[str, Any] | None = None

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of the cases of both, whose patients are taken for different people.

        Raises:
            DataError: they were counted in different bins.
        """
        return Statistics(
            self.cases + other.cases,
            self.patients + other.patients,
            min(self.minimum, other.minimum),
            self.fine and other.fine,
            _merged(self.histograms, other.histograms),
            _merged(self.moments, other.moments),
            {
                name: added(self.categories.get(name, {}), other.categories.get(name, {}))
                for name in _union(self.categories, other.categories)
            },
            _both_noises(self.noise, other.noise),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form; ``parse_statistics`` reads it back."""
        return {
            "cases": self.cases,
            "patients": self.patients,
            "minimum": self.minimum,
            "fine": self.fine,
            "noise": None if self.noise is None else dict(self.noise),
            "histograms": {
                name: [[*group, weight] for group, weight in sorted(histogram.bins.items())]
                for name, histogram in self.histograms.items()
            },
            "moments": {name: [m.weight, m.mean, m.m2] for name, m in self.moments.items()},
            "categories": {name: dict(found) for name, found in self.categories.items()},
        }


def pooled(parts: Mapping[str, Statistics]) -> Statistics:
    """The statistics of all sites together, in the order of their names.

    Raises:
        DataError: there is no site, or as of ``Statistics.merge``.
    """
    if not parts:
        raise DataError("No site has told its statistics. Ask for a smaller minimum of patients.")
    first, *rest = (parts[site] for site in sorted(parts))
    total = replace(first, noise=None if first.noise is None else {"variance": first.noise["variance"]})
    for part in rest:
        total = total.merge(part)
    return total


def released(tallies: Tallies, minimum: int) -> Statistics:
    """What may leave of a site's counts without noise: nothing with fewer than ``minimum`` patients behind it."""
    histograms = {name: tally.histogram(minimum) for name, tally in tallies.bins.items()}
    categories = {name: tally.released(minimum) for name, tally in tallies.names.items()}
    kept = {name: histogram for name, histogram in histograms.items() if histogram.bins}
    return Statistics(
        tallies.cases,
        len(tallies.patients),
        minimum,
        True,
        kept,
        {name: moments for name, moments in tallies.moments.items() if name in kept},
        {name: found for name, found in categories.items() if found},
    )


def parse_statistics(content: Any, task: Task) -> Statistics:
    """Read statistics of a task from their plain form, whoever wrote it: unknown names and values are refused.

    Raises:
        DataError: says what is wrong, and names no file.
    """
    if not isinstance(content, Mapping) or set(content) != set(_KEYS):
        raise _wrong(f"they are no object with exactly {list(_KEYS)}")
    counts = [content[name] for name in ("cases", "patients", "minimum")]
    if not all(map(is_count, counts)) or not isinstance(content["fine"], bool) or counts[1] > counts[0]:
        raise _wrong("their counts are no whole numbers, or there are more patients than cases")
    what, fine = quantities(task, content["fine"]), content["fine"]
    return Statistics(
        content["cases"],
        content["patients"],
        content["minimum"],
        fine,
        {name: _histogram(name, value, what) for name, value in _part(content, "histograms", what.scales).items()},
        {name: _moments(value) for name, value in _part(content, "moments", what.moments).items()},
        {name: _names(name, value, what) for name, value in _part(content, "categories", what.categories).items()},
        _noise(content["noise"]),
    )


def _part(content: Mapping[str, Any], key: str, known: Any) -> Mapping[str, Any]:
    part = content[key]
    if not isinstance(part, Mapping) or not set(part) <= set(known):
        raise _wrong(f"their {key} are of something that this task does not have")
    return part


def _histogram(name: str, value: Any, what: Quantities) -> Histogram:
    scale, bins = what.scales[name], dict[Group, float]()
    if not isinstance(value, list) or not all(isinstance(entry, list) and len(entry) == 3 for entry in value):
        raise _wrong("a histogram is no list of [first bin, last bin, weight]")
    for entry in value:
        sound = all(type(n) is int for n in entry[:2])
        if not sound or not scale.holds(entry[0], entry[1]) or not _is_weight(entry[2]):
            raise _wrong("a histogram holds something else than [first bin, last bin, weight]")
        if (entry[0], entry[1]) in bins:
            raise _wrong("a histogram holds a group of bins twice")
        bins[entry[0], entry[1]] = float(entry[2])
    return Histogram(scale, bins)


def _moments(value: Any) -> Moments:
    sound = isinstance(value, list) and len(value) == 3 and all(map(is_number, value))
    if not sound or not 0 < value[0] <= _MOST or abs(value[1]) > _MOST or not 0 <= value[2] <= value[0] * _MOST**2:
        raise _wrong("moments are something else than [weight, mean, squared deviations]")
    return Moments(*map(float, value))


def _names(name: str, value: Any, what: Quantities) -> dict[str, float]:
    known = {*what.categories[name], OTHER}
    if not isinstance(value, Mapping) or not set(value) <= known or not all(map(_is_weight, value.values())):
        raise _wrong("categories have unknown names, or weights that are no numbers")
    return {key: float(weight) for key, weight in value.items()}


def _noise(value: Any) -> Mapping[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not set(value) <= set(_NOISE_KEYS) or "variance" not in value:
        raise _wrong("what they say of noise is not known")
    numbers = [v for name, v in value.items() if name != "mechanism"]
    if value.get("mechanism", "laplace") not in ("laplace", "gaussian") or not all(
        is_number(number) and 0 <= number <= _MOST**2 for number in numbers
    ):
        raise _wrong("what they say of noise is no mechanism with numbers")
    return dict(value)


def _is_weight(value: object) -> bool:
    return is_number(value) and abs(value) <= _MOST


def _wrong(what: str) -> DataError:
    return DataError(f"The statistics cannot be used: {what}.")


def _union(mine: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    return [*mine, *(name for name in others if name not in mine)]


def _merged(mine: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of the same name merged; those that only one has as they are."""
    both = {name: mine[name].merge(others[name]) for name in mine if name in others}
    return {name: both.get(name, mine.get(name, others.get(name))) for name in _union(mine, others)}


def _both_noises(mine: Mapping[str, Any] | None, others: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    variances = [float(noise["variance"]) for noise in (mine, others) if noise is not None]
    return {"variance": sum(variances)} if variances else None
