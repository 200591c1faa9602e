"""Statistics as rows of a table: one number a row, with the error that its histogram allows."""

from __future__ import annotations

from collections.abc import Iterator

from fedseg.statistics.document import FederationStatistics
from fedseg.statistics.quantities import kind, of
from fedseg.statistics.site_statistics import Statistics

COLUMNS = ("site", "quantity", "of", "statistic", "value", "error")
ALL_SITES = "all sites"
LEVELS = {"p0.5": 0.005, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99.5": 0.995}
Row = tuple[str, str, str, str, float, float]


def statistic_rows(statistics: FederationStatistics) -> list[Row]:
    """All numbers: of each site, of all sites, and of each pair of sites (``A - B`` under ``site``).

    A value and its error have the unit of the quantity; ``error`` is 0 where the value is exact, up to rounding. The
    error is that of the bins; where noise was added, it comes on top.
    """
    parts = {**{site: statistics.sites[site] for site in sorted(statistics.sites)}, ALL_SITES: statistics.pooled}
    rows = [row for site, part in parts.items() for row in _of_site(site, part)]
    for pair in statistics.pairs:
        name = " - ".join(pair.sites)
        for what, found in (("normalised", pair.intensities), ("volume", pair.volumes)):
            rows += [(name, what, key, "wasserstein", d.value, d.error) for key, d in found.items()]
        rows += [(name, "present", key, "difference of shares", value, 0.0) for key, value in pair.present.items()]
        if pair.labels is not None:
            rows.append((name, "classes", "", "total variation", pair.labels.total_variation, 0.0))
            rows.append((name, "classes", "", "jensen-shannon", pair.labels.jensen_shannon, 0.0))
    return rows


def _of_site(site: str, part: Statistics) -> Iterator[Row]:
    yield site, "cases", "", "count", float(part.cases), 0.0
    yield site, "patients", "", "count", float(part.patients), 0.0
    for name, histogram in part.histograms.items():
        place = site, kind(name), of(name)
        moments, mean = part.moments.get(name), histogram.mean()
        if moments is not None:
            yield *place, "mean", moments.mean, 0.0
            yield *place, "deviation", moments.deviation, 0.0
        elif mean is not None:
            yield *place, "mean", mean.value, mean.error
        for label, level in LEVELS.items():
            if (found := histogram.quantile(level)) is not None:
                yield *place, label, found.value, found.error
    for name, weights in part.categories.items():
        total = sum(max(0.0, weight) for weight in weights.values())
        for category, weight in weights.items():
            if total:
                yield site, kind(name), of(name) or category, _share_name(name, category), max(0.0, weight) / total, 0.0


def _share_name(name: str, category: str) -> str:
    return f"share of {category}" if of(name) else "share"
