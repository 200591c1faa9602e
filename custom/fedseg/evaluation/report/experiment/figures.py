"""The figures of an experiment: arms, sites, regions, pairs, across sites, sites left out, curves and costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedseg.evaluation.experiment_folder import OWN, Experiment
from fedseg.evaluation.report.drawing import (
    ACCENT,
    DASHED,
    FAINT,
    INK,
    QUIET,
    grid,
    legend_below,
    line_style,
    new_figure,
    save,
    style,
)
from fedseg.evaluation.report.experiment import numbers
from fedseg.evaluation.report.experiment.subject import regions_of
from fedseg.evaluation.report.heat_map import heat_map
from fedseg.evaluation.report.statistics import intensities_figure
from fedseg.tasks.objective import Score

_RANGE = ["name", "arm", "mean", "low", "high"]


def draw_figures(
    experiment: Experiment, score: Score, arms: pd.DataFrame, pairs: pd.DataFrame, left_out: pd.DataFrame, folder: Path
) -> dict[str, Path]:
    """Draw every figure for which the experiment has data into ``folder``.

    Args:
        experiment: what was read.
        score: the primary one.
        arms, pairs, left_out: ``arm_frame``, ``pair_frame`` and ``left_out_frame``.
        folder: for the PNG files; figures of a former page are removed.

    Returns:
        Path of each figure by name; a figure without data is absent.
    """
    makers: dict[str, Callable[[], Figure | None]] = {
        "arms": partial(draw_arms, experiment, arms, score),
        "pairs": partial(draw_pairs, pairs, score),
        "sites": partial(draw_ranges, _site_ranges(experiment, score), experiment.arms, score),
        "regions": partial(draw_ranges, _region_ranges(experiment, score), experiment.arms, score),
        "left_out": partial(draw_left_out, left_out, score),
        "intensities": partial(_draw_intensities, experiment),
        "curves": partial(draw_curves, experiment, score),
        "costs": partial(draw_costs, experiment),
        **{
            f"matrix_{arm}": partial(draw_matrix, experiment, arm, score) for arm in numbers.travelling_arms(experiment)
        },
    }
    for old in folder.glob("*.png"):
        old.unlink()
    drawn = {}
    with style():
        for name, make in makers.items():
            if (figure := make()) is not None:
                drawn[name] = save(figure, folder / f"{name.replace(OWN, '_own')}.png")
    return drawn


def draw_arms(experiment: Experiment, arms: pd.DataFrame, score: Score) -> Figure | None:
    """Each arm's mean over cases with its interval, its mean over sites, and every site as a dot."""
    if arms.empty:
        return None
    figure = new_figure(7.4, 1.2 + 0.46 * len(arms))
    axes = figure.subplots()
    sites = numbers.comparable(experiment, score.name).groupby(["arm", "site"])["value"].mean()
    for place, (arm, row) in enumerate(arms.iterrows()):
        dots = sites.loc[str(arm)].to_numpy()
        axes.plot(dots, [place] * len(dots), "o", color=QUIET, markersize=4, markerfacecolor="white",
                  label="single sites" if place == 0 else None)  # fmt: skip
        axes.plot([row["macro"]], [place], "|", color=INK, markersize=15, markeredgewidth=2,
                  label="mean over sites" if place == 0 else None)  # fmt: skip
        _draw_range(axes, place, row["pooled"], row["low"], row["high"], ACCENT, "o",
                    "mean over cases, 95% interval" if place == 0 else None)  # fmt: skip
        text = format(row["macro"], score.form)
        axes.text(1.01, place, text, va="center", transform=axes.get_yaxis_transform())
    _name_rows(axes, [str(arm) for arm in arms.index])
    axes.set_xlabel(score.axis)
    legend_below(figure, axes)
    return figure


def draw_pairs(pairs: pd.DataFrame, score: Score) -> Figure | None:
    """Differences to the reference with their intervals; what crosses the dashed line may be chance."""
    known = pairs.dropna(subset=["difference"]) if not pairs.empty else pairs
    if known.empty:
        return None
    figure = new_figure(7.4, 0.9 + 0.4 * len(known))
    axes = figure.subplots()
    axes.axvline(0, **DASHED)
    for place, row in enumerate(known.itertuples()):
        _draw_range(axes, place, row.difference, row.low, row.high, ACCENT, "o", None)
    _name_rows(axes, known["arm"].tolist())
    axes.set_xlabel(f"Difference in {score.title}" + (f" in {score.unit}" if score.unit else ""))
    return figure


def _site_ranges(experiment: Experiment, score: Score) -> pd.DataFrame:
    """``name`` is the site."""
    return numbers.site_frame(experiment, score).rename(columns={"site": "name"})[_RANGE]


def _region_ranges(experiment: Experiment, score: Score) -> pd.DataFrame:
    """``name`` is the region; empty where there is one only, which the figure of arms shows."""
    records, regions = [], regions_of(experiment)
    for region in regions if len(regions) > 1 else ():
        for arm, group in numbers.comparable(experiment, score.name, region).groupby("arm", sort=False):
            own = numbers.interval(group)
            records.append([region, arm, own.mean, own.low, own.high])
    return pd.DataFrame(records, columns=_RANGE)


def draw_ranges(ranges: pd.DataFrame, arms: Sequence[str], score: Score) -> Figure | None:
    """Means with intervals, a block of lines for each name and in it one line an arm."""
    if ranges.empty:
        return None
    names = list(dict.fromkeys(ranges["name"]))
    step = max(0.7, 0.17 * len(arms) + 0.15)
    figure = new_figure(7.4, 1.3 + step * len(names))
    axes = figure.subplots()
    for index, arm in enumerate(arms):
        look, offset = line_style(index), (index - (len(arms) - 1) / 2) * 0.8 / len(arms)
        for row in ranges[ranges["arm"] == arm].itertuples():
            place = names.index(row.name) + offset
            _draw_range(axes, place, row.mean, row.low, row.high, look["color"], look["marker"], None)
        axes.plot([], [], color=look["color"], marker=look["marker"], linestyle="none", label=arm)
    for place in range(1, len(names)):
        axes.axhline(place - 0.5, color=FAINT, linewidth=0.6)
    _name_rows(axes, names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(score.axis)
    legend_below(figure, axes)
    return figure


def _draw_range(
    axes: Axes,
    place: float,
    mean: float,
    low: float | None,
    high: float | None,
    colour: str,
    marker: str,
    label: str | None,
) -> None:
    """A mean as a mark and its interval as a line; no line where the interval is not known."""
    if low is not None and high is not None and not math.isnan(low):
        axes.plot([low, high], [place, place], color=colour, linewidth=1.8, solid_capstyle="butt")
    axes.plot([mean], [place], marker, color=colour, markersize=6, linestyle="none", label=label)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)
    grid(axes, "x")


def draw_matrix(experiment: Experiment, arm: str, score: Score) -> Figure | None:
    """Heat map of the model of each site at each site, the worst first, with the number of cases of each column."""
    means, counts = numbers.matrix(experiment, arm, score)
    if means.empty:
        return None
    names = [f"{site}\n({int(count)})" for site, count in counts.items()]
    titles = "Model of", "On the cases of (how many)"
    return heat_map(means.to_numpy(), [str(name) for name in means.index], names, score, titles=titles)


def draw_left_out(left_out: pd.DataFrame, score: Score) -> Figure | None:
    """For each arm and site: with the site in the training (open) and without it (filled), joined by a line."""
    if left_out.empty:
        return None
    figure = new_figure(7.4, 1.2 + 0.36 * len(left_out))
    axes = figure.subplots()
    for place, row in enumerate(left_out.to_dict("records")):
        known = not np.isnan(row["with"])
        if known:
            axes.plot([row["with"], row["without"]], [place, place], color=FAINT, linewidth=3, solid_capstyle="butt")
            axes.plot([row["with"]], [place], "o", color=ACCENT, markerfacecolor="white", markersize=6,
                      label="trained with the site" if place == 0 else None)  # fmt: skip
        axes.plot([row["without"]], [place], "s", color=ACCENT, markersize=6,
                  label="trained without it" if place == 0 else None)  # fmt: skip
    several = left_out["arm"].nunique() > 1
    _name_rows(axes, [f"{r['arm']}: {r['site']}" if several else str(r["site"]) for r in left_out.to_dict("records")])
    axes.set_xlabel(score.axis)
    legend_below(figure, axes)
    return figure


def _draw_intensities(experiment: Experiment) -> Figure | None:
    return None if experiment.statistics is None else intensities_figure(experiment.statistics)


def draw_curves(experiment: Experiment, score: Score) -> Figure | None:
    """The primary score on validation cases over the samples seen: the mean over seeds, and their range as a band."""
    curves = numbers.curve_frame(experiment, score.name)
    if curves.empty:
        return None
    figure = new_figure(7.4, 3.8)
    axes = figure.subplots()
    for index, (arm, group) in enumerate(curves.groupby("arm", sort=False)):
        look = line_style(index)
        seeds = group.groupby("round")[["samples", "value"]].agg({"samples": "mean", "value": ["mean", "min", "max"]})
        x, y = seeds["samples", "mean"].to_numpy(float), seeds["value"]
        axes.fill_between(x, y["min"].to_numpy(float), y["max"].to_numpy(float), color=look["color"], alpha=0.15)
        axes.plot(x, y["mean"].to_numpy(float), **look, markevery=max(1, len(x) // 8), label=str(arm))
    axes.set_xlabel("Samples seen")
    axes.set_ylabel(f"Validation {score.title}")
    grid(axes)
    legend_below(figure, axes)
    return figure


def draw_costs(experiment: Experiment) -> Figure | None:
    """Processor time and sent megabytes of one training of each arm."""
    costs = numbers.cost_frame(experiment)
    panels = [
        (name, title, scale)
        for name, title, scale in (
            ("cpu_seconds", "CPU minutes", 60.0),
            ("bytes_sent", "Megabytes sent", 1e6),
            ("kwh", "Watt hours", 1e-3),
        )
        if name in costs
    ]
    if not panels:
        return None
    figure = new_figure(9.2, 1.0 + 0.36 * len(costs))
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for panel, (name, title, scale) in zip(axes, panels, strict=True):
        panel.barh(range(len(costs)), (costs[name] / scale).fillna(0), 0.62, color=ACCENT)
        panel.set_title(title)
        grid(panel, "x")
    _name_rows(axes[0], [str(arm) for arm in costs.index])
    return figure
