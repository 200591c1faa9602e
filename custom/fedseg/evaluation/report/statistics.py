"""The statistics of a federation for people: tables, a figure, one page, and a CSV with every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fedseg.evaluation.report.drawing import grid, legend_below, line_style, new_figure, save, style
from fedseg.evaluation.report.page import embed, render
from fedseg.evaluation.report.text_tables import NOT_AVAILABLE, TextTable, shown
from fedseg.files.documents import write_whole
from fedseg.statistics import quantities as q
from fedseg.statistics.document import FILE, FederationStatistics, write_statistics
from fedseg.statistics.drawn import cases_drawn
from fedseg.statistics.histogram import Estimate, Histogram
from fedseg.statistics.quantities import named
from fedseg.statistics.rows import ALL_SITES, COLUMNS, statistic_rows
from fedseg.statistics.site_statistics import Statistics
from fedseg.statistics.tally import OTHER

_TELLING = 0.95
"""Of a number: a larger error says that it could be almost anything from 0 up."""
PAGE, TABLE, FIGURE = "statistics.html", "statistics.csv", "statistics.png"
CERTAINTY = (
    "A median or percentile is the middle of its bin. Where bins with too few patients were joined, or noise was "
    f"added, it is certain up to the number after +-; {NOT_AVAILABLE} stands where so many bins were joined that this "
    "would be as large as the number itself: more patients at the site, or a lower minimum, tell it."
)


def write_statistics_report(statistics: FederationStatistics, folder: Path) -> dict[str, Path]:
    """Write ``statistics.json``, the CSV, the figure and the page into a folder; their paths by what they are."""
    frame = pd.DataFrame(statistic_rows(statistics), columns=list(COLUMNS))
    paths = {
        "statistics": write_statistics(statistics, folder / FILE),
        "table": write_whole(folder / TABLE, frame.to_csv(index=False)),
    }
    with style():
        figure = intensities_figure(statistics)
        picture = None if figure is None else save(figure, folder / FIGURE)
    paths["page"] = render("statistics.html.j2", folder / PAGE, _context(statistics, picture))
    return paths


def report_files(folder: Path) -> tuple[Path, ...]:
    """Every file that ``write_statistics_report`` may write."""
    return tuple(folder / name for name in (FILE, TABLE, FIGURE, PAGE))


def statistics_tables(statistics: FederationStatistics) -> dict[str, TextTable]:
    """The tables of the page, by their captions; those without rows are left out."""
    parts = {site: statistics.sites[site] for site in sorted(statistics.sites)}
    parts = {**parts, ALL_SITES: statistics.pooled} if len(parts) > 1 else parts
    task = statistics.task
    regions: Sequence[str] = task.region_names if task.classes else ()
    tables = {
        "Cases and their geometry: medians over the cases; sizes along right-left, front-back, foot-head.": _geometry,
        "Intensities as they stand in the files, of the voxels that the normalisation counts: median (0.5 to 99.5 "
        "percentile).": lambda p: _intensity_table(p, task.channels),
        "Share of cases that have a channel, of those that a case may lack.": lambda p: _acquired_table(
            p, task.optional_channels
        ),
        "Labelled regions: mean volume in ml (standard deviation), median number of connected parts, share of cases "
        "that have the region.": lambda p: _region_table(p, regions),
        "Cases in which a region is drawn, where not all have all.": lambda p: _drawn_table(p, statistics),
        "Shares of the classes in all that is labelled.": lambda p: _class_table(p, task.classes),
        "Orientation of the stored axes, maker and field strength, where they are known.": _scanner_table,
    }
    found = {caption: make(parts) for caption, make in tables.items()}
    caption = (
        "Each pair of sites: Wasserstein-1 distance of normalised intensities, of volumes in ml, and label shift "
        "(total variation). A distance is certain up to the number after +-."
    )
    found[caption] = _pair_table(statistics)
    return {caption: table for caption, table in found.items() if table.rows}


def _geometry(parts: Mapping[str, Statistics]) -> TextTable:
    rows = [
        [site, str(p.cases), str(p.patients), *(_three(p, what) for what in (q.SHAPE, q.SPACING, q.EXTENT))]
        for site, p in parts.items()
    ]
    header = ("Site", "Cases", "Patients", "Voxels", "Voxel size (mm)", "Size (mm)")
    return TextTable(header, rows, int(ALL_SITES in parts))


def _three(part: Statistics, what: str) -> str:
    found = [part.histograms.get(named(what, axis)) for axis in q.AXES]
    return " x ".join(_level(part, histogram, 0.5, ".4g") for histogram in found)


def _middle(part: Statistics, name: str, form: str) -> str:
    return _level(part, part.histograms.get(name), 0.5, form)


def _level(part: Statistics, histogram: Histogram | None, level: float, form: str) -> str:
    """A quantile: with its error where that is more than a fine bin's, and none where it tells nothing."""
    found = None if histogram is None else histogram.quantile(level)
    if histogram is None or found is None:
        return NOT_AVAILABLE
    joined = _joined(histogram, found)
    if joined and found.error > _TELLING * abs(found.value):
        return NOT_AVAILABLE
    value = shown(found.value, form)
    return f"{value} +- {found.error:.3g}" if joined or part.noise is not None else value


def _joined(histogram: Histogram, found: Estimate) -> bool:
    """Whether a quantile comes from bins that were joined: its error is larger than that of one bin."""
    number = int(histogram.scale.index(np.array(found.value)))
    return found.error > 1.001 * histogram.scale.half_width(number, number)


def _mean(part: Statistics, name: str) -> str:
    """Mean and deviation of the values themselves; the mean of the bins where nothing else is told."""
    if (moments := part.moments.get(name)) is not None:
        return f"{shown(moments.mean, '.3g')} ({shown(moments.deviation, '.3g')})"
    found = part.histograms[name].mean() if name in part.histograms else None
    return NOT_AVAILABLE if found is None else f"{shown(found.value, '.3g')} +- {found.error:.2g}"


def _span(part: Statistics, name: str, low: float, high: float) -> str:
    histogram = part.histograms.get(name)
    middle, *ends = (_level(part, histogram, level, ".3g") for level in (0.5, low, high))
    return NOT_AVAILABLE if {middle, *ends} == {NOT_AVAILABLE} else f"{middle} ({' to '.join(ends)})"


def _intensity_table(parts: Mapping[str, Statistics], channels: Sequence[str]) -> TextTable:
    rows = [
        [site, *(_span(p, named(q.INTENSITY, channel), 0.005, 0.995) for channel in channels)]
        for site, p in parts.items()
    ]
    return TextTable(("Site", *channels), rows, int(ALL_SITES in parts))


def _acquired_table(parts: Mapping[str, Statistics], channels: Sequence[str]) -> TextTable:
    rows = [
        [site, *(_share(p, named(q.ACQUIRED, channel), q.YES) for channel in channels)] for site, p in parts.items()
    ]
    return TextTable(("Site", *channels), rows if channels else [], int(ALL_SITES in parts))


def _region_table(parts: Mapping[str, Statistics], regions: Sequence[str]) -> TextTable:
    rows = []
    for site, p in parts.items():
        cells = [site]
        for region in regions:
            count = _middle(p, named(q.COMPONENTS, region), ".3g")
            cells += [_mean(p, named(q.VOLUME, region)), count, _share(p, named(q.PRESENT, region), q.YES)]
        rows.append(cells)
    header = [cell for region in regions for cell in (f"{region} (ml)", "Parts", "Cases with it")]
    return TextTable(("Site", *header), rows if regions else [], int(ALL_SITES in parts))


def _drawn_table(parts: Mapping[str, Statistics], statistics: FederationStatistics) -> TextTable:
    """Of how many cases each region is drawn; no rows where every case has all, and nothing is hidden by noise."""
    counts = {site: cases_drawn(part, statistics.task) for site, part in parts.items()}
    regions = list(next(iter(counts.values()), {}))
    exact = [site for site, part in parts.items() if part.noise is None]
    whole = all(
        count is not None and round(count) >= parts[site].cases for site in exact for count in counts[site].values()
    )
    if whole or not regions:
        return TextTable(())
    rows = [
        [site, str(parts[site].cases), *(_drawn_cell(parts[site], c) for c in counts[site].values())] for site in parts
    ]
    return TextTable(("Site", "Cases", *regions), rows, int(ALL_SITES in parts))


def _drawn_cell(part: Statistics, count: float | None) -> str:
    if count is not None:
        return f"{count:.0f}" if part.noise is None else f"about {count:.0f}"
    return f"below {part.minimum}" if part.minimum else NOT_AVAILABLE


def _class_table(parts: Mapping[str, Statistics], classes: Sequence[str]) -> TextTable:
    rows = [[site, *(_share(p, q.CLASSES, name) for name in classes)] for site, p in parts.items()]
    return TextTable(("Site", *classes), rows if len(classes) > 1 else [], int(ALL_SITES in parts))


def _share(part: Statistics, name: str, category: str) -> str:
    weights = {key: max(0.0, weight) for key, weight in part.categories.get(name, {}).items()}
    total = sum(weights.values())
    # A category that is missing beside rare ones may be among these.
    known = bool(total) and (category in weights or OTHER not in weights)
    return shown(weights.get(category, 0.0) / total if known else None, ".1%")


def _scanner_table(parts: Mapping[str, Statistics]) -> TextTable:
    rows = []
    for site, p in parts.items():
        named_ones = [_most_frequent(p.categories.get(name, {})) for name in (q.ORIENTATION, q.MAKER)]
        rows.append([site, *named_ones, _middle(p, q.FIELD_STRENGTH, ".3g")])
    return TextTable(("Site", "Orientation", "Maker", "Field strength (T)"), rows, int(ALL_SITES in parts), 3)


def _most_frequent(weights: Mapping[str, float]) -> str:
    kept = sorted(((w, name) for name, w in weights.items() if w > 0), reverse=True)
    total = sum(weight for weight, _ in kept)
    return ", ".join(f"{name} {weight / total:.0%}" for weight, name in kept[:4]) or NOT_AVAILABLE


def _pair_table(statistics: FederationStatistics) -> TextTable:
    task = statistics.task
    regions: Sequence[str] = task.region_names if task.classes else ()
    rows = []
    for pair in statistics.pairs:
        distances = [pair.intensities.get(c) for c in task.channels] + [pair.volumes.get(r) for r in regions]
        cells = [NOT_AVAILABLE if d is None else f"{shown(d.value, '.3g')} +- {d.error:.2g}" for d in distances]
        shift = [] if len(task.classes) < 2 else [shown(pair.labels and pair.labels.total_variation, ".3f")]
        rows.append([" and ".join(pair.sites), *cells, *shift])
    header = (
        "Sites",
        *task.channels,
        *(f"{region} (ml)" for region in regions),
        *(["Labels"] if len(task.classes) > 1 else []),
    )
    return TextTable(header, rows)


def intensities_figure(statistics: FederationStatistics) -> Figure | None:
    """How much of the normalised intensities of each channel lies below a value, a line for each site."""
    channels = [c for c in statistics.task.channels if _any(statistics, named(q.NORMALISED, c))]
    if not channels:
        return None
    figure = new_figure(7.4, 0.6 + 1.9 * len(channels))
    panels = figure.subplots(len(channels), 1, squeeze=False)[:, 0]
    windowed = statistics.task.normalisation == "window"
    for axes, channel in zip(panels, channels, strict=True):
        for index, site in enumerate(sorted(statistics.sites)):
            found = statistics.sites[site].histograms.get(named(q.NORMALISED, channel))
            if found is not None and (line := _share_below(found)):
                axes.plot(*zip(*line, strict=True), **{**line_style(index), "marker": "", "label": site})
        axes.set_title(channel)
        axes.set_ylim(0, 1)
        axes.set_ylabel("Share below")
        axes.set_xlim((0, 1) if windowed else (-3, 4))
        grid(axes, "both")
    panels[-1].set_xlabel("Part of the window" if windowed else "Normalised intensity (standard deviations)")
    legend_below(figure, panels[0])
    return figure


def _any(statistics: FederationStatistics, name: str) -> bool:
    return any(name in part.histograms for part in statistics.sites.values())


def _share_below(histogram: Histogram) -> list[tuple[float, float]]:
    """Upper bounds of the groups of bins, and the share of the weight up to each."""
    kept = {group: weight for group, weight in sorted(histogram.bins.items()) if weight > 0}
    total, below, line = sum(kept.values()), 0.0, list[tuple[float, float]]()
    for (first, last), weight in kept.items():
        low, high = histogram.scale.bounds(first, last)
        line += [(low, below / total), (high, (below + weight) / total)]
        below += weight
    return line


def _context(statistics: FederationStatistics, picture: Path | None) -> dict[str, Any]:
    pooled = statistics.pooled
    return {
        "task": statistics.task.description or statistics.task.name,
        "sites": len(statistics.sites),
        "cases": pooled.cases,
        "patients": pooled.patients,
        "tables": statistics_tables(statistics),
        "advice": statistics.advice,
        "left_out": dict(statistics.left_out),
        "figure": None if picture is None else embed(picture),
        "protection": protection_words(statistics),
        "certainty": CERTAINTY,
    }


def protection_words(statistics: FederationStatistics) -> str:
    """What protects the patients behind these numbers, as sentences."""
    noises = {site: part.noise for site, part in sorted(statistics.sites.items()) if part.noise is not None}
    minima = {part.minimum for part in statistics.sites.values() if part.noise is None}
    sentences = []
    if minima:
        sentences.append(
            f"Behind every number of a site without noise are at least {min(minima)} patients; bins and categories "
            "with fewer are joined."
        )
    if noises:
        epsilon = max(float(noise.get("epsilon", 0)) for noise in noises.values())
        sentences.append(f"{', '.join(noises)} added noise: epsilon {epsilon:g} for each patient at most.")
    return " ".join(sentences)
