"""The look that all figures share: colours, type, and the creation and saving of figures without global state."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from fedseg.files.documents import whole_file

# Okabe & Ito (2008): told apart with every common form of colour blindness. Black is kept for means.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
# Tol's "muted" scheme, for regions: never mistaken for the colours of the sites.
REGIONS = ("#332288", "#88CCEE", "#AA4499", "#DDCC77", "#117733", "#CC6677")
# For regions on grey images: bright, told apart with every common form of colour blindness.
ON_GREY = ("#F0E442", "#56B4E9", "#E69F00", "#CC79A7", "#009E73", "#D55E00")
INK, QUIET, FAINT, ACCENT = "#1a1a1a", "#767676", "#d9d9d9", PALETTE[0]
DPI = 170
DASHED: dict[str, Any] = {"color": QUIET, "linewidth": 0.9, "linestyle": (0, (4, 3)), "zorder": 0}

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9.0,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.0,
}


def new_figure(width: float, height: float) -> Figure:
    """A figure of ``width`` x ``height`` inches with its own Agg canvas; pyplot's list of figures is left alone."""
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(width, height), layout=layout, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def picture_grid(tops: Sequence[float], lefts: Sequence[float], side: float, below: float) -> tuple[Figure, np.ndarray]:
    """A figure of square panels for pictures, and the axes [rows, columns], without ticks and frames.

    Args:
        tops: distance of each row from the upper edge, in inches.
        lefts: distance of each column from the left edge, in inches.
        side: width and height of a panel in inches.
        below: room for a legend below the last row, in inches.
    """
    width, height = lefts[-1] + side, tops[-1] + side + below
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    grid = np.empty((len(tops), len(lefts)), object)
    for (row, column), _ in np.ndenumerate(grid):
        place = (lefts[column] / width, 1 - (tops[row] + side) / height, side / width, side / height)
        grid[row, column] = axes = figure.add_axes(place)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    return figure, grid


def style() -> AbstractContextManager[None]:
    """The settings under which figures are made and saved; the caller's own come back afterwards."""
    return matplotlib.rc_context(STYLE)  # type: ignore[arg-type]


def legend_below(figure: Figure, axes: Axes) -> None:
    """One legend for the whole figure, below it, with what ``axes`` shows."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        across = figure.get_figwidth() / (0.06 * max(len(label) for label in labels) + 0.55)
        figure.legend(handles, labels, loc="outside lower center", ncols=max(1, min(len(handles), int(across))))


def round_axis(axes: Axes, rounds: Sequence[float]) -> None:
    """Whole rounds along the x axis, also where there is one only."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("Round")
    axes.margins(x=0.03)
    if len(set(rounds)) == 1:
        axes.set_xlim(rounds[0] - 1, rounds[0] + 1)
        axes.set_xticks([rounds[0]])


def save(figure: Figure, path: Path) -> Path:
    """Write ``figure`` as PNG and return the path."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=figure.dpi)
    return path


def line_style(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the ``index``-th line: told apart without colour, too."""
    cycle = index // len(PALETTE)
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[(index + cycle) % len(MARKERS)],
        "linestyle": ("-", "--", ":", "-.")[cycle % 4],
    }


def site_lines(axes: Axes, table: pd.DataFrame, sites: Sequence[str], **changes: Any) -> None:
    """One line for each site.

    Args:
        axes: where.
        table: one line per round, one column per site.
        sites: all of the run, so that a site looks the same in every figure.
        changes: to the style of the lines.
    """
    for index, site in enumerate(sites):
        if site in table:
            axes.plot(table.index, table[site], **{**line_style(index), "label": site, **changes})


def grid(axes: Axes, axis: str = "y") -> None:
    """Faint lines behind the data along one axis."""
    axes.grid(axis=axis)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def name_ticks(axes: Axes, names: Sequence[str]) -> None:
    """Names below the x axis, turned where they would run into each other."""
    crowded = len(names) * max((len(name) for name in names), default=0) > 90
    axes.set_xticks(range(len(names)), list(names), rotation=35 if crowded else 0, ha="right" if crowded else "center")
    axes.tick_params(axis="x", length=0)
