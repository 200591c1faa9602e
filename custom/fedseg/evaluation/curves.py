"""Figures over the rounds: learning curves, the sites' weights, and what the rounds cost."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedseg.evaluation.drawing import FAINT, INK, QUIET, REGIONS, grid, legend_below, line_style, name_ticks, new_figure
from fedseg.evaluation.tables import Summary, history_frame, number, part, rows, site_names

ROUND_LABEL = "Round (counted from 0)"


def learning_curves(summary: Summary) -> Figure | None:
    """Losses and Dice on the sites' validation cases over the rounds."""
    history = history_frame(summary)
    panels = [
        (key, title)
        for key, title in (
            ("train_loss", "Training loss"),
            ("val_loss", "Validation loss"),
            ("Dice", "Validation Dice, mean of regions"),
        )
        if not history.empty and history[key].notna().any()
    ]
    if not panels:
        return None
    regions = [c for c in history.columns if c.startswith("Dice ")] if len(panels) == 3 else []
    columns = 2 if regions else len(panels)
    figure = new_figure(4.2 * max(columns, 2), 5.6 if regions else 3.1)
    grids = figure.subplots(2 if regions else 1, columns, squeeze=False, sharex=True).ravel()
    for axes, (key, title) in zip(grids, panels, strict=False):
        _site_lines(axes, history, key, site_names(summary))
        axes.set_title(title)
    if regions:
        _region_lines(grids[3], history, regions)
    best = number(part(summary, "best").get("round"))
    for axes in grids:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if best is not None:
            axes.axvline(best, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0, label="best model")
    for axes in grids[-columns:]:
        axes.set_xlabel(ROUND_LABEL)
    legend_below(figure, grids[0])
    return figure


def _site_lines(axes: Axes, history: pd.DataFrame, key: str, sites: list[str]) -> None:
    table = history.pivot_table(index="round", columns="site", values=key, sort=False).sort_index()
    many = len(sites) > 12
    for index, site in enumerate(sites):
        if site in table:
            style = {"color": FAINT} if many else {**line_style(index), "label": site}
            axes.plot(table.index, table[site], **style)
    if len(sites) > 1:
        mark = "o" if len(table) == 1 else None
        axes.plot(table.index, table.mean(axis=1), color=INK, linewidth=2.2, marker=mark, label="mean over sites")
    grid(axes)
    axes.margins(x=0.03)
    if key == "Dice":
        axes.set_ylim(0, 1)


def _region_lines(axes: Axes, history: pd.DataFrame, columns: list[str]) -> None:
    table = history.groupby("round")[columns].mean()
    for index, column in enumerate(columns):
        style = {**line_style(index), "color": REGIONS[index % len(REGIONS)]}
        axes.plot(table.index, table[column], label=column.removeprefix("Dice "), **style)
    axes.set_title("Validation Dice by region, mean over sites")
    axes.set_ylim(0, 1)
    axes.margins(x=0.03)
    grid(axes)
    axes.legend(loc="lower right", ncols=len(columns), frameon=True, framealpha=1, edgecolor="none")


def weights(summary: Summary) -> Figure | None:
    """The weight of every site in the aggregation, over the rounds."""
    history = history_frame(summary)
    if history.empty or not history["weight"].notna().any():
        return None
    figure = new_figure(6.6, 3.2)
    axes = figure.subplots()
    table = history.pivot_table(index="round", columns="site", values="weight", sort=False).sort_index()
    for index, site in enumerate(site_names(summary)):
        if site in table:
            axes.plot(table.index, table[site], label=site, **line_style(index))
    axes.axhline(1 / table.shape[1], color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0, label="equal weights")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, max(1.15 * float(table.max().max()), 1.3 / table.shape[1]))
    axes.set_xlabel(ROUND_LABEL)
    axes.set_ylabel("Weight in the aggregation")
    grid(axes)
    legend_below(figure, axes)
    return figure


def cost(summary: Summary) -> Figure | None:
    """Bytes per site and round, and where the seconds of a round go."""
    history = history_frame(summary)
    if history.empty or not history[["bytes_up", "bytes_down", "seconds"]].notna().any().any():
        return None
    figure = new_figure(8.6, 3.3)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    sites = [s for s in site_names(summary) if s in set(history["site"])]
    megabytes = history.groupby("site")[["bytes_up", "bytes_down"]].mean().reindex(sites) / 1e6
    for offset, key, label, colour in ((-0.2, "bytes_up", "up", QUIET), (0.2, "bytes_down", "down", FAINT)):
        left.bar(np.arange(len(sites)) + offset, megabytes[key].fillna(0), 0.36, color=colour, label=label)
    name_ticks(left, sites)
    left.set_title("Megabytes per round")
    left.set_ylim(0, 1.25 * max(float(np.nanmax([*megabytes.to_numpy().ravel(), 0.0])), 1e-6))
    left.legend(loc="upper right", ncols=2)
    _seconds(right, history, summary, sites)
    grid(left)
    return figure


def _seconds(axes: Axes, history: pd.DataFrame, summary: Summary, sites: list[str]) -> None:
    whole = {entry.get("round", -1): number(entry.get("seconds")) for entry in rows(summary, "rounds")}
    known = {int(r): s for r, s in whole.items() if s is not None and number(r) is not None}
    axes.bar(np.array(list(known)), np.array(list(known.values())), 0.86, color=FAINT, label="whole round", zorder=0)
    table = history.pivot_table(index="round", columns="site", values="seconds", sort=False).sort_index()
    for index, site in enumerate(sites):
        if site in table:
            axes.plot(table.index, table[site], label=site, **line_style(index))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Seconds per round: sites at work, whole round behind them")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(ROUND_LABEL)
    grid(axes)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4)
