"""The figures of a report, and those of the results: by site, beside other ways, and across sites."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedseg.evaluation.report import curves, overlays, peers
from fedseg.evaluation.report.cross_site import compared_figure, matrix_figure, run_matrix
from fedseg.evaluation.report.drawing import (
    ACCENT,
    INK,
    REGIONS,
    grid,
    legend_below,
    name_ticks,
    new_figure,
    save,
    style,
)
from fedseg.evaluation.report.spread import draw_spread
from fedseg.evaluation.report.tables import (
    MEAN_OF_CASES,
    MEAN_OF_SITES,
    comparison_frame,
    score_frame,
)
from fedseg.evaluation.report.text_tables import counted
from fedseg.evaluation.report.wall_time import progress_over_time
from fedseg.evaluation.summary import Summary, mean_score, number, objective_of_run, part, rows
from fedseg.tasks.objective import Score
from fedseg.tasks.task import Task


def draw_figures(summary: Summary, report_dir: Path, task: Task, cases: pd.DataFrame) -> dict[str, Path]:
    """Draw every figure for which the run has data into ``report_dir/figures``.

    Args:
        summary: content of ``summary.json``.
        report_dir: the run's report folder; ``overlays.json`` and ``gallery.json`` are read from it if they are there.
        task: names regions and channels.
        cases: scores of single cases, see ``final_case_facts``; empty where nobody knows them.

    Returns:
        Path of each drawn figure by name; a figure without data is absent, and an older file of it is removed.
    """
    makers: dict[str, Callable[[], Figure | None]] = {
        "learning_curves": lambda: curves.learning_curves(summary),
        **{
            f"{score.name}_by_site": partial(scores_by_site, summary, score, cases)
            for score in objective_of_run(summary).main_scores
        },
        "progress_over_time": lambda: progress_over_time(summary),
        "weights": lambda: curves.weights(summary),
        "cost": lambda: curves.cost(summary),
        "pairs": lambda: peers.pair_figure(summary),
        "epsilon": lambda: curves.epsilon(summary),
        "comparison": lambda: comparison(summary),
        "cross_site": lambda: compared_figure(summary),
        "cross_site_evaluation": lambda: matrix_figure(run_matrix(summary)),
        "overlays": lambda: overlays.draw_overlays(overlays.read_list(report_dir / "overlays.json"), task),
        "gallery": lambda: overlays.draw_gallery(overlays.read_gallery(report_dir / "gallery.json"), task),
    }
    drawn = {}
    with style():
        for name, make in makers.items():
            path = report_dir / "figures" / f"{name}.png"
            figure = make()
            if figure is None:
                path.unlink(missing_ok=True)
            else:
                drawn[name] = save(figure, path)
    return drawn


def scores_by_site(summary: Summary, score: Score, cases: pd.DataFrame) -> Figure | None:
    """A score of the final model per site and output: every case where cases are known, else bars of the means."""
    if not cases.empty:
        return draw_spread(cases, objective_of_run(summary), score)
    outputs = objective_of_run(summary).outputs
    frame = score_frame(summary).drop(index=[MEAN_OF_SITES, MEAN_OF_CASES], errors="ignore")
    columns = [f"{score.title} {output}" for output in outputs]
    if frame.empty or not frame[columns].notna().any().any():
        return None
    figure = new_figure(min(max(5.5, 0.62 * len(frame) * len(columns) + 1.8), 9.6), 3.3)
    axes = figure.subplots()
    width = 0.8 / len(columns)
    bounded = math.isfinite(score.highest)
    top = score.highest if bounded else float(np.nanmax(frame[columns].to_numpy())) * 1.08 or 1.0
    for index, (column, output) in enumerate(zip(columns, outputs, strict=True)):
        places = np.arange(len(frame)) + (index - (len(columns) - 1) / 2) * width
        axes.bar(places, frame[column].fillna(0), width * 0.9, color=REGIONS[index % len(REGIONS)], label=output)
        for place, value in zip(places, frame[column], strict=True):
            text, height = ("n/a", 0) if np.isnan(value) else (format(value, score.short_form), value)
            axes.text(place, height + 0.015 * top, text, ha="center", va="bottom", fontsize=8)
    counts = {s: number(frame["Cases"][s]) for s in frame.index}
    name_ticks(axes, [str(s) if n is None else f"{s}\n{counted(int(n), 'case')}" for s, n in counts.items()])
    axes.set_ylim(0, top * (1.04 if bounded else 1.0))
    axes.set_ylabel(score.axis)
    grid(axes)
    figure.legend(loc="outside upper left", ncols=len(columns))
    return figure


def comparison(summary: Summary) -> Figure | None:
    """The federated model beside other ways to do the same: the mean of the primary score, and each site as a dot."""
    frame, final = comparison_frame(summary), part(summary, "final")
    score = objective_of_run(summary).primary
    if frame.empty or not frame["score"].notna().any():
        return None
    sites = [part(final, "sites"), *(part(entry, "sites") for entry in rows(summary, "comparison"))]
    bars = [(number(final.get(f"mean_{score.name}")), scored) for scored in sites[:1]]
    bars += list(zip(map(number, frame["score"]), sites[1:], strict=True))
    figure = new_figure(7.4, 1.0 + 0.42 * len(bars))
    axes = figure.subplots()
    draw_means(axes, ["Federated model", *frame["name"]], bars, score)
    for place, value in enumerate(frame["federated"], start=1):
        if number(value) is not None:
            label = "federated model at the same sites and regions" if place == 1 else None
            axes.plot([value], [place], "|", color=ACCENT, markersize=17, markeredgewidth=2, label=label)
    axes.set_xlabel(f"Mean {score.title} (dots: single sites)")
    legend_below(figure, axes)
    return figure


def draw_means(
    axes: Axes,
    names: Sequence[str],
    bars: Sequence[tuple[float | None, Mapping[str, Any]]],
    score: Score,
    first_stands_out: bool = True,
) -> None:
    """Lying bars of a mean score, one below the other, with a dot for each site.

    Args:
        axes: where.
        names: of the bars.
        bars: the mean, and what each site scored.
        score: which one.
        first_stands_out: whether the others are paler than the first.
    """
    for place, (value, scored) in enumerate(bars):
        strong = first_stands_out and place == 0
        axes.barh(place, value or 0, 0.62, color=ACCENT if strong or not first_stands_out else "#b8c4cc")
        dots = [d for d in (mean_score(part(scored, s).get(score.name)) for s in scored) if d is not None]
        axes.plot(dots, [place] * len(dots), "o", color=INK, markersize=3.5, markerfacecolor="white", linestyle="none")
        text = "n/a" if value is None else format(value, score.form)
        beside: dict[str, Any] = {"va": "center", "transform": axes.get_yaxis_transform()}
        axes.text(1.01, place, text, fontweight="bold" if strong else "normal", **beside)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, score.highest if math.isfinite(score.highest) else None)
    grid(axes, "x")
