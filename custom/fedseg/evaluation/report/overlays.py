"""Pictures of cases: references and predictions over the images, and what the images of each site look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from fedseg.errors import DataError
from fedseg.evaluation.report.drawing import ON_GREY, QUIET, picture_grid
from fedseg.evaluation.report.views import View, make_view, shown_channels
from fedseg.evaluation.summary import number
from fedseg.files.documents import load_json
from fedseg.tasks.objective import objective_of
from fedseg.tasks.task import Task

RANKS = ("best", "median", "worst")
PANEL, GAP = 1.7, 0.03  # inches
TINT = 0.35
_EDGE = [withStroke(linewidth=2.4, foreground="black")]


def read_list(path: Path) -> list[Mapping[str, Any]]:
    """The entries of ``overlays.json``; none where the file is absent or not a list of objects."""
    found = _read_json(path)
    return [e for e in found if isinstance(e, Mapping)] if isinstance(found, list) else []


def read_gallery(path: Path) -> dict[str, Mapping[str, Any]]:
    """The first case of each site in ``gallery.json``; none where the file is absent or not an object."""
    found = _read_json(path)
    entries = found if isinstance(found, Mapping) else {}
    return {str(s): c[0] for s, c in entries.items() if isinstance(c, list) and c and isinstance(c[0], Mapping)}


def files_of(entry: Mapping[str, Any]) -> list[Path]:
    """Every file that a picture of this entry needs."""
    masks = [entry[key] for key in ("label", "prediction") if isinstance(entry.get(key), str)]
    return [Path(p) for p in [*_images(entry), *masks] if p is not None]


def draw_overlays(entries: Sequence[Mapping[str, Any]], task: Task) -> Figure | None:
    """Best, median and worst case of each site: the reference on the left, the prediction on the right of each pair.

    The white line in the prediction's panel is the outline of the whole reference. Entries whose files are gone are
    left out.
    """
    readable = [e for e in entries if any(_images(e)) and all(path.is_file() for path in files_of(e))]
    sites = list(dict.fromkeys(str(e.get("site", "")) for e in readable))
    ranks = [r for r in RANKS if any(e.get("rank") == r for e in readable)]
    if not sites or not ranks:
        return None
    depth = max(1, len(task.display))
    figure, grid = _pair_grid(len(sites), depth, len(ranks))
    used = np.zeros(grid.shape, bool)
    for entry in readable:
        if entry.get("rank") in ranks:
            line, column = depth * sites.index(str(entry.get("site", ""))), 2 * ranks.index(entry["rank"])
            block = slice(line, line + depth), slice(column, column + 2)
            used[block] = True
            _draw_pair(grid[block], entry, task)
    for axes in grid[~used]:
        axes.remove()
    reference = Line2D([], [], color="white", linewidth=1.2, label="outline of the reference", path_effects=_EDGE)
    handles = [*_legend(task), reference]
    figure.legend(handles=handles, loc="lower center", ncols=_columns(figure, len(handles)))
    return figure


def _pair_grid(sites: int, depth: int, ranks: int) -> tuple[Figure, np.ndarray]:
    """Panels for each site (``depth`` lines of them) and rank (a pair of columns)."""
    step = PANEL + GAP
    tops = [0.42 + site * (depth * step + 0.55) + line * step for site in range(sites) for line in range(depth)]
    lefts = [rank * (2 * step + 0.16) + side * step for rank in range(ranks) for side in (0, 1)]
    return picture_grid(tops, lefts, PANEL, 0.42)


def _draw_pair(block: np.ndarray, entry: Mapping[str, Any], task: Task) -> None:
    primary = objective_of(task).primary
    score = number(entry.get(primary.name))
    value = "n/a" if score is None else format(score, primary.short_form)
    text = f"{entry.get('site', '')}, {entry.get('rank')}: {primary.title} {value}"
    block[0, 0].annotate(
        text, (0, 1), (0, 16), xycoords="axes fraction", textcoords="offset points", fontweight="bold", fontsize=9
    )
    for axes, kind in zip(block[0], ("reference", "prediction"), strict=True):
        axes.set_title(kind, fontsize=8, fontweight="normal", color=QUIET, pad=3)
    try:
        masks = {"reference": Path(entry["label"]), "prediction": Path(entry["prediction"])}
        view = make_view(task, _images(entry), masks, zoom=True)
    except (DataError, KeyError, TypeError) as error:
        _not_readable(block[0, 0], error)
        return
    channels = shown_channels(task, view)
    for row in block[len(channels) :]:
        for axes in row:
            axes.set_visible(False)
    for row, channel in zip(block, channels, strict=False):
        for axes, kind in zip(row, ("reference", "prediction"), strict=True):
            _show(axes, view, channel)
            _paint(axes, view.masks[kind], task)
            if kind == "prediction":
                _outline(axes, view.masks["reference"].max(0), "white", 1.0)
        _corner(row[0], 0.03, 0.03, channel.upper())
        _scale_bar(row[1], view)
    _sides(block[0, 0])


def draw_gallery(entries: Mapping[str, Mapping[str, Any]], task: Task) -> Figure | None:
    """One case of each site: every channel, and the one that shows its regions best again with the label."""
    readable = {s: e for s, e in entries.items() if any(_images(e)) and all(path.is_file() for path in files_of(e))}
    if not readable:
        return None
    tops = [0.3 + row * (PANEL + GAP) for row in range(len(readable))]
    lefts = [0.3 + column * (PANEL + GAP) for column in range(len(task.channels) + 1)]
    figure, grid = picture_grid(tops, lefts, PANEL, 0.42)
    for row, (site, entry) in zip(grid, readable.items(), strict=True):
        row[0].set_ylabel(site, fontsize=9.5, fontweight="bold")
        _draw_row(row, entry, task)
    for axes, name in zip(grid[0], [*(c.upper() for c in task.channels), "Label"], strict=True):
        axes.set_title(name, loc="center", pad=4)
    figure.legend(handles=_legend(task), loc="lower right", ncols=_columns(figure, len(task.regions)))
    return figure


def _draw_row(row: np.ndarray, entry: Mapping[str, Any], task: Task) -> None:
    masks = {"reference": Path(entry["label"])} if isinstance(entry.get("label"), str) else {}
    try:
        view = make_view(task, _images(entry), masks, zoom=False)
    except DataError as error:
        _not_readable(row[0], error)
        return
    last = shown_channels(task, view)[-1] if masks else task.channels[-1]
    for axes, channel in zip(row, [*task.channels, last], strict=True):
        _show(axes, view, channel)
        if not np.ptp(view.channels[channel]):
            axes.text(0.5, 0.5, "empty", transform=axes.transAxes, ha="center", fontsize=8, color=QUIET)
    if masks:
        _paint(row[-1], view.masks["reference"], task)
    _corner(row[-1], 0.03, 0.03, last.upper())
    _sides(row[0])


def _show(axes: Axes, view: View, channel: str) -> None:
    axes.set_facecolor("black")
    axes.imshow(view.channels[channel], cmap="gray", vmin=0, vmax=1, aspect=view.aspect, interpolation="bilinear")
    axes.set_autoscale_on(False)


def _paint(axes: Axes, masks: np.ndarray, task: Task) -> None:
    """Regions [R, rows, columns] as a tint with an outline, large ones first so that those inside stay visible."""
    tint = np.zeros((*masks.shape[1:], 4))
    for region, _ in task.painting_order:
        tint[masks[region]] = to_rgba(ON_GREY[region % len(ON_GREY)], TINT)
    axes.imshow(tint, aspect=axes.get_aspect(), interpolation="nearest")
    for region, _ in task.painting_order:
        _outline(axes, masks[region], ON_GREY[region % len(ON_GREY)], 1.0)


def _outline(axes: Axes, mask: np.ndarray, colour: str, width: float) -> None:
    """The border of a mask; the frame of the picture does not cut it open."""
    if mask.any():
        padded = np.pad(mask, 1).astype(float)
        rows, columns = (np.arange(-1, size + 1) for size in mask.shape)
        drawn = axes.contour(columns, rows, padded, levels=[0.5], colors=[colour], linewidths=[width])
        if colour == "white":
            drawn.set_path_effects([withStroke(linewidth=width + 1.2, foreground="black")])


def _scale_bar(axes: Axes, view: View) -> None:
    """A line of a round number of millimetres: pairs are enlarged differently."""
    rows, columns = next(iter(view.channels.values())).shape
    length = max(mm for mm in (1, 2, 5, 10, 20, 50) if mm <= max(1.0, 0.3 * columns * view.width))
    end, level = 0.96 * columns, 0.95 * rows
    axes.plot([end - length / view.width, end], [level, level], color="white", linewidth=2, path_effects=_EDGE)
    axes.text(end, level - 0.02 * rows, f"{length} mm", fontsize=7, color="white", ha="right", va="bottom")


def _not_readable(axes: Axes, error: Exception) -> None:
    text = f"not readable ({type(error).__name__})"
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", fontsize=8, color=QUIET)


def _sides(axes: Axes) -> None:
    """Letters for the patient's right and left."""
    _corner(axes, 0.03, 0.97, "R")
    _corner(axes, 0.97, 0.97, "L")


def _corner(axes: Axes, x: float, y: float, text: str) -> None:
    across, up = ("left" if x < 0.5 else "right"), ("bottom" if y < 0.5 else "top")
    axes.text(x, y, text, transform=axes.transAxes, fontsize=7, color="white", ha=across, va=up)


def _columns(figure: Figure, entries: int) -> int:
    """Legend entries that fit side by side, at some 2.2 inches each."""
    return max(1, min(entries, int(figure.get_figwidth() // 2.2)))


def _legend(task: Task) -> list[Patch]:
    """A colour patch for each region; a region with others inside it is told by the class that it adds to them."""
    own = {region: task.classes[value - 1] for region, value in task.painting_order}
    handles = []
    for index, region in enumerate(task.regions):
        extra = "" if region.classes == (region.name,) else f" ({own[index]})"
        if len(region.classes) > 1:
            extra = f" (adds {own[index]})"
        handles.append(Patch(facecolor=ON_GREY[index % len(ON_GREY)], edgecolor=QUIET, label=f"{region.name}{extra}"))
    return handles


def _images(entry: Mapping[str, Any]) -> list[Path | None]:
    images = entry.get("images")
    images = [images] if isinstance(images, str) else images
    return [Path(i) if isinstance(i, str) else None for i in images] if isinstance(images, list) else []


def _read_json(path: Path) -> Any:
    try:
        return load_json(path)
    except (OSError, ValueError):
        return None
