"""Figures over the rounds: learning curves, the sites' weights, and what the rounds cost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedseg.evaluation.report.drawing import (
    FAINT,
    INK,
    QUIET,
    REGIONS,
    grid,
    legend_below,
    line_style,
    new_figure,
    round_axis,
)
from fedseg.evaluation.report.tables import history_frame
from fedseg.evaluation.summary import Summary, number, objective_of_run, part, rows, site_names
from fedseg.tasks.objective import Objective


def learning_curves(summary: Summary) -> Figure | None:
    """Losses and the primary score on the sites' validation cases over the rounds."""
    history, kind = history_frame(summary), objective_of_run(summary)
    score = kind.primary.title
    titles = {
        "train_loss": "Training loss",
        "val_loss": "Validation loss",
        score: f"Validation {score}, mean of {kind.output}s",
    }
    panels = [key for key in titles if not history.empty and history[key].notna().any()]
    if not panels:
        return None
    outputs = [c for c in history.columns if c.startswith(f"{score} ")] if len(panels) == 3 else []
    columns = 2 if outputs else len(panels)
    figure = new_figure(4.2 * max(columns, 2), 5.6 if outputs else 3.1)
    grids = figure.subplots(2 if outputs else 1, columns, squeeze=False, sharex=True).ravel()
    for axes, key in zip(grids, panels, strict=False):
        _site_lines(axes, history, key, site_names(summary))
        axes.set_title(titles[key])
    if outputs:
        _output_lines(grids[3], history, outputs, kind)
    for axes in (grids[panels.index(score)] if score in panels else None, grids[3] if outputs else None):
        if axes is not None and math.isfinite(kind.primary.highest):
            axes.set_ylim(0, kind.primary.highest)
    _rounds(grids, panels, history, number(part(summary, "best").get("round")))
    for axes in grids[:-columns]:
        axes.set_xlabel("")
    legend_below(figure, grids[0])
    return figure


def _rounds(grids: np.ndarray, panels: list[str], history: pd.DataFrame, best: float | None) -> None:
    """The axis of rounds, and a mark at the best model."""
    received = [key != "train_loss" for key in panels] + [True] * (len(grids) - len(panels))
    for axes, late in zip(grids, received, strict=True):
        round_axis(axes, history["round"].tolist())
        if best is not None:
            # Sites score what they receive, so the best model's own score stands one round later than its training.
            axes.axvline(best + late, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0, label="best model")


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


def _output_lines(axes: Axes, history: pd.DataFrame, columns: list[str], kind: Objective) -> None:
    table = history.groupby("round")[columns].mean()
    for index, column in enumerate(columns):
        style = {**line_style(index), "color": REGIONS[index % len(REGIONS)]}
        axes.plot(table.index, table[column], label=column.removeprefix(f"{kind.primary.title} "), **style)
    axes.set_title(f"Validation {kind.primary.title} by {kind.output}, mean over sites")
    axes.margins(x=0.03)
    grid(axes)
    axes.legend(loc="lower right", ncols=len(columns), frameon=True, framealpha=1, edgecolor="none")


def weights(summary: Summary) -> Figure | None:
    """The weight of every site in the aggregation over the rounds; below, the factors of updates if any is not 1."""
    history = history_frame(summary)
    if history.empty or not history["weight"].notna().any():
        return None
    table = history.pivot_table(index="round", columns="site", values="weight", sort=False).sort_index()
    if len(table) == 1:
        return _weights_of_one_round(table.iloc[0])
    taken = history[history["weight"].notna()]
    scaled = bool((taken["scale"] != 1).any())
    figure = new_figure(6.6, 5.4 if scaled else 3.2)
    panels = figure.subplots(2 if scaled else 1, squeeze=False, sharex=True)[:, 0]
    _shares(panels[0], table, site_names(summary))
    if scaled:
        _scales(panels[1], taken, site_names(summary))
    for axes in panels:
        round_axis(axes, table.index.tolist())
        grid(axes)
    panels[0].set_xlabel("" if scaled else panels[0].get_xlabel())
    legend_below(figure, panels[0])
    return figure


def _shares(axes: Axes, table: pd.DataFrame, sites: list[str]) -> None:
    for index, site in enumerate(sites):
        if site in table:
            axes.plot(table.index, table[site], label=site, **line_style(index))
    equal = 1 / table.notna().sum(axis=1)
    style: dict[str, Any] = {"color": QUIET, "linewidth": 0.9, "linestyle": (0, (4, 3)), "zorder": 0}
    axes.step(equal.index, equal, where="mid", label="equal weights", **style)
    axes.set_ylim(0, max(1.15 * float(table.max().max()), 1.3 * float(equal.max())))
    axes.set_ylabel("Weight in the aggregation")


def _scales(axes: Axes, taken: pd.DataFrame, sites: list[str]) -> None:
    table = taken.pivot_table(index="round", columns="site", values="scale", sort=False).sort_index()
    for index, site in enumerate(sites):
        if site in table:
            axes.plot(table.index, table[site], **line_style(index))
    axes.axhline(1, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    axes.set_ylim(0, 1.1 * max(1.0, float(table.max().max())))
    axes.set_ylabel("Factor of the update")


def _weights_of_one_round(shares: pd.Series) -> Figure:
    figure = new_figure(6.6, 0.9 + 0.34 * len(shares))
    axes = figure.subplots()
    bars = axes.barh(range(len(shares)), shares.to_numpy(), 0.62, color=QUIET)
    axes.bar_label(bars, fmt="%.3f", padding=3)
    axes.set_yticks(range(len(shares)), [str(site) for site in shares.index])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(f"Weight in the aggregation of round {shares.name}")
    grid(axes, "x")
    return figure


def cost(summary: Summary) -> Figure | None:
    """Bytes per site and round, and where the seconds of a round go."""
    history = history_frame(summary)
    if history.empty or not history[["bytes_up", "bytes_down", "seconds"]].notna().any().any():
        return None
    sites = [s for s in site_names(summary) if s in set(history["site"])]
    figure = new_figure(9.2, max(3.4, 1.2 + 0.34 * len(sites)))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    _megabytes(left, history, sites)
    _seconds(right, history, summary, sites)
    legend_below(figure, right)
    return figure


def _megabytes(axes: Axes, history: pd.DataFrame, sites: list[str]) -> None:
    mean = history.groupby("site")[["bytes_up", "bytes_down"]].mean().reindex(sites) / 1e6
    for offset, key, label, colour in ((-0.19, "bytes_up", "up", QUIET), (0.19, "bytes_down", "down", FAINT)):
        axes.barh(np.arange(len(sites)) + offset, mean[key].fillna(0), 0.36, color=colour, label=label)
    axes.set_yticks(range(len(sites)), sites)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_title("Megabytes per round")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1, ncols=2, columnspacing=1)
    grid(axes, "x")


def _seconds(axes: Axes, history: pd.DataFrame, summary: Summary, sites: list[str]) -> None:
    whole = {entry.get("round", -1): number(entry.get("seconds")) for entry in rows(summary, "rounds")}
    known = {int(r): s for r, s in whole.items() if s is not None and number(r) is not None}
    axes.bar(np.array(list(known)), np.array(list(known.values())), 0.86, color=FAINT, label="whole round", zorder=0)
    table = history.pivot_table(index="round", columns="site", values="seconds", sort=False).sort_index()
    for index, site in enumerate(sites):
        if site in table:
            axes.plot(table.index, table[site], label=site, **line_style(index))
    round_axis(axes, history["round"].tolist())
    axes.set_title("Seconds per round")
    axes.set_ylim(bottom=0)
    grid(axes)
