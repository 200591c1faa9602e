"""Numbers by rows and columns as a heat map."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fedseg.evaluation.report.drawing import FAINT, INK, QUIET, new_figure
from fedseg.tasks.objective import Score


def heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    score: Score,
    *,
    words: Sequence[Sequence[str]] | None = None,
    home: Collection[tuple[int, int]] = (),
    breaks: Sequence[int] = (),
    titles: tuple[str, str] = ("", ""),
) -> Figure:
    """Blue squares, the darker the better, with a text in each.

    Args:
        values: [rows, columns]; NaN is a hatched square.
        rows, columns: their names.
        score: of which the values are.
        words: what stands in each square; None for the value, or that there is none.
        home: squares with a frame, by row and column.
        breaks: rows before which there is a gap.
        titles: of the two axes.
    """
    if words is None:
        words = [["n/a" if np.isnan(v) else format(v, score.short_form) for v in row] for row in values]
    longest = max(len(name) for name in rows)
    figure = new_figure(
        0.075 * longest + 0.9 + min(0.98 * len(columns), 8.2), 1.25 + 0.36 * len(rows) + 0.14 * len(breaks)
    )
    axes = figure.subplots()
    _draw_squares(axes, values, words, score, home)
    for row in breaks:
        axes.axhline(row - 0.5, color="white", linewidth=5)
    crowded = max(len(line) for name in columns for line in name.split("\n")) > 12
    axes.set_xticks(range(len(columns)), columns, rotation=35 if crowded else 0, ha="left" if crowded else "center")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_ylabel(titles[0], labelpad=9, fontweight="bold")
    axes.set_xlabel(titles[1], labelpad=9, fontweight="bold")
    axes.xaxis.set_label_position("top")
    return figure


def _draw_squares(
    axes: Axes, values: np.ndarray, words: Sequence[Sequence[str]], score: Score, home: Collection[tuple[int, int]]
) -> None:
    goods = np.vectorize(score.goodness, otypes=[float])(values)
    low, high = float(np.nanmin(goods)), float(np.nanmax(goods))
    least = (high - low) * 0.35 or 0.1 * (abs(high) or 1.0)
    limits = (low - least, high + least * 0.1)
    axes.imshow(np.ma.masked_invalid(goods), cmap="Blues", vmin=limits[0], vmax=limits[1], aspect="auto")
    for (row, column), good in np.ndenumerate(goods):
        known = not np.isnan(good)
        dark = known and (good - limits[0]) / (limits[1] - limits[0]) > 0.6
        if not known:
            place = (column - 0.5, row - 0.5)
            axes.add_patch(Rectangle(place, 1, 1, facecolor="white", edgecolor=FAINT, hatch="///", linewidth=0))
        if (row, column) in home:
            place = (column - 0.44, row - 0.38)
            axes.add_patch(Rectangle(place, 0.88, 0.76, fill=False, edgecolor="white" if dark else INK, linewidth=1.1))
        size = 9.0 if known else 7.0
        box = None if known else {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        colour = "white" if dark else INK if known else QUIET
        axes.text(column, row, words[row][column], ha="center", va="center", color=colour, fontsize=size, bbox=box)
