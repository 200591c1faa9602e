"""Figures over the rounds: learning curves, the sites' weights, what the rounds cost, and privacy spent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedseg.contract.round_numbers import nth
from fedseg.evaluation.report.drawing import (
    DASHED,
    FAINT,
    INK,
    QUIET,
    REGIONS,
    grid,
    legend_below,
    line_style,
    new_figure,
    round_axis,
    site_lines,
)
from fedseg.evaluation.report.tables import history_frame
from fedseg.evaluation.summary import Summary, number, objective_of_run, part, rows, site_names


def learning_curves(summary: Summary) -> Figure | None:
    """Losses and the primary score on the sites' validation cases, each at the round after which the model was made."""
    history, kind = history_frame(summary), objective_of_run(summary)
    score, sites = kind.primary.title, site_names(summary)
    titles = {
        "train_loss": "Training loss",
        "val_loss": "Validation loss",
        score: f"Validation {score}" + (f", mean of {kind.output}s" if len(kind.outputs) > 1 else ""),
    }
    keys = [key for key in titles if not history.empty and history[key].notna().any()]
    if not keys:
        return None
    outputs = [c for c in history.columns if c.startswith(f"{score} ")] if len(keys) == 3 else []
    wide = 2 if len(outputs) > 1 else len(keys)
    figure = new_figure(4.2 * max(wide, 2), 5.6 if len(outputs) > 1 else 3.1)
    panels = figure.subplots(2 if len(outputs) > 1 else 1, wide, squeeze=False, sharex=True).ravel()
    for axes, key in zip(panels, keys, strict=False):
        _mean_and_sites(axes, _over_rounds(history, key), sites)
        axes.set_title(titles[key])
    if len(outputs) > 1:
        means = pd.DataFrame({c.removeprefix(f"{score} "): _over_rounds(history, c).mean(axis=1) for c in outputs})
        _draw_outputs(panels[3], means, f"Validation {score} by {kind.output}, mean over sites")
    for axes in [*(panels[i] for i, key in enumerate(keys) if key == score), *panels[3:]]:
        if math.isfinite(kind.primary.highest):
            axes.set_ylim(0, kind.primary.highest)
    best = number(part(summary, "best").get("round"))
    for axes in panels:
        grid(axes)
        round_axis(axes, [*history["round"].dropna(), *history["made"]])
        if best is not None:
            axes.axvline(nth(int(best)), label="best model", **DASHED)
    for axes in panels[:-wide]:
        axes.set_xlabel("")
    legend_below(figure, panels[0])
    return figure


def _draw_outputs(axes: Axes, means: pd.DataFrame, title: str) -> None:
    for index, name in enumerate(means):
        style = {**line_style(index), "color": REGIONS[index % len(REGIONS)]}
        axes.plot(means.index, means[name], label=str(name), **style)
    axes.set_title(title)
    axes.legend(loc="lower right", ncols=len(means.columns), frameon=True, framealpha=1, edgecolor="none")


def _over_rounds(history: pd.DataFrame, key: str) -> pd.DataFrame:
    """A column of ``history_frame`` as one line per round and one column per site.

    What was measured on the model that a site received belongs to the round before.
    """
    taken = history if key in ("train_loss", "weight", "scale", "seconds") else history.assign(round=history["made"])
    return taken.pivot_table(index="round", columns="site", values=key, sort=False).sort_index()


def _mean_and_sites(axes: Axes, table: pd.DataFrame, sites: list[str]) -> None:
    if len(sites) > 12:
        axes.plot(table.index, table, color=FAINT)
    else:
        site_lines(axes, table, sites)
    if len(sites) > 1:
        mark = "o" if len(table) == 1 else None
        axes.plot(table.index, table.mean(axis=1), color=INK, linewidth=2.2, marker=mark, label="mean over sites")


def weights(summary: Summary) -> Figure | None:
    """The weight of every site in the aggregation over the rounds; below, the factors of updates if any is not 1."""
    history, sites = history_frame(summary), site_names(summary)
    if history.empty or not history["weight"].notna().any():
        return None
    taken = history[history["weight"].notna()]
    scaled = bool((taken["scale"] != 1).any())
    figure = new_figure(6.6, 5.4 if scaled else 3.2)
    panels = figure.subplots(2 if scaled else 1, squeeze=False, sharex=True)[:, 0]
    table = _over_rounds(taken, "weight")
    site_lines(panels[0], table, sites)
    equal = 1 / table.notna().sum(axis=1)
    panels[0].step(equal.index, equal, where="mid", label="equal weights", **DASHED)
    panels[0].set_ylim(0, max(1.15 * float(table.max().max()), 1.3 * float(equal.max())))
    panels[0].set_ylabel("Weight in the aggregation")
    if scaled:
        factors = _over_rounds(taken, "scale")
        site_lines(panels[1], factors, sites)
        panels[1].axhline(1, **DASHED)
        panels[1].set_ylim(0, 1.1 * max(1.0, float(factors.max().max())))
        panels[1].set_ylabel("Factor of the update")
    for axes in panels:
        round_axis(axes, table.index.tolist())
        grid(axes)
    panels[0].set_xlabel("" if scaled else panels[0].get_xlabel())
    legend_below(figure, panels[0])
    return figure


def cost(summary: Summary) -> Figure | None:
    """Bytes per site and round, and where the seconds of a round go."""
    history = history_frame(summary)
    if history.empty or not history[["bytes_up", "bytes_down", "seconds"]].notna().any().any():
        return None
    sites = [s for s in site_names(summary) if s in set(history["site"])]
    figure = new_figure(9.2, max(3.4, 1.2 + 0.34 * len(sites)))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    mean = history.groupby("site")[["bytes_up", "bytes_down"]].mean().reindex(sites) / 1e6
    for offset, key, label, colour in ((-0.19, "bytes_up", "up", QUIET), (0.19, "bytes_down", "down", FAINT)):
        left.barh(np.arange(len(sites)) + offset, mean[key].fillna(0), 0.36, color=colour, label=label)
    left.set_yticks(range(len(sites)), sites)
    left.tick_params(axis="y", length=0)
    left.invert_yaxis()
    left.set_title("Megabytes per round")
    left.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1, ncols=2, columnspacing=1)
    grid(left, "x")
    known = {nth(int(r)): s for e in rows(summary, "rounds") if (r := number(e.get("round"))) is not None
             and (s := number(e.get("seconds"))) is not None}  # fmt: skip
    right.bar(list(known), list(known.values()), 0.86, color=FAINT, label="whole round", zorder=0)
    site_lines(right, _over_rounds(history, "seconds"), sites)
    round_axis(right, history["round"].dropna().tolist())
    right.set_title("Seconds per round")
    right.set_ylim(bottom=0)
    grid(right)
    legend_below(figure, right)
    return figure


def epsilon(summary: Summary) -> Figure | None:
    """Epsilon of each site over the rounds."""
    table = epsilon_course(summary)
    if table.empty:
        return None
    figure = new_figure(6.2, 3.1)
    axes = figure.subplots()
    site_lines(axes, table, site_names(summary), **({} if len(table) < 3 else {"marker": None}))
    axes.set_ylim(0, None)
    axes.set_ylabel("epsilon spent so far")
    round_axis(axes, table.index.tolist())
    grid(axes)
    legend_below(figure, axes)
    return figure


def epsilon_course(summary: Summary) -> pd.DataFrame:
    """Epsilon of each site (columns) after each round (index, from 1); empty where no mechanism gives one."""
    values: dict[tuple[int, str], Any] = {
        (nth(entry["round"]), site): number(told.get("epsilon"))
        for entry in rows(summary, "rounds")
        for site, told in part(entry, "sites").items()
        if number(told.get("epsilon")) is not None
    }
    return pd.Series(values).unstack().sort_index() if values else pd.DataFrame()
