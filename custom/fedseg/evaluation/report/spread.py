"""How the scores of single cases spread: tables, sentences and a figure, for simulated runs, whose sites have them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedseg.evaluation.intervals import bootstrap_mean
from fedseg.evaluation.report.drawing import INK, REGIONS, grid, name_ticks, new_figure
from fedseg.evaluation.report.text_tables import NOT_AVAILABLE, TextTable, counted, shown
from fedseg.tasks.objective import Objective, Score

POOR = 0.05  # a Dice below it means that the region was as good as missed
ALL_SITES = "All cases"


def spread_table(cases: pd.DataFrame, kind: Objective) -> TextTable:
    """Mean with its confidence interval (by bootstrap over patients, over sites first where there are several), median,
    quartiles and the weakest case of the primary score, per site and output; the medians of the other main scores."""
    primary, *others = kind.main_scores
    header = [
        "Site",
        kind.output.capitalize(),
        "Cases",
        f"Mean {primary.title} (95% CI)",
        "Median (quartiles)",
        "Weakest",
    ]
    header += [f"Median {score.title}" + (f" ({score.unit})" if score.unit else "") for score in others]
    body = []
    for (site, output), group in _groups(cases):
        known, form = group[group[primary.title].notna()], primary.form
        values = known[primary.title].clip(upper=1e6)
        interval = bootstrap_mean(values.tolist(), known["site"].tolist(), patients=known["patient"].tolist())
        quartiles = [shown(values.quantile(q), form) for q in (0.25, 0.75)]
        cells = [
            f"{shown(values.mean(), form)} ({shown(interval.low, form)} to {shown(interval.high, form)})",
            f"{shown(values.median(), form)} ({' to '.join(quartiles)})",
            shown(primary.worst(values), form),
        ]
        cells += [shown(group[score.title].median(), score.form) for score in others if score.title in group]
        body.append([site, output, str(len(values)), *cells])
    return TextTable(header, body, _totals(cases), 2)


def volume_table(cases: pd.DataFrame, kind: Objective) -> TextTable:
    """Sensitivity, precision and volume error per site and output, medians over cases, and sums of lesions."""
    if "reference" not in cases:
        return TextTable(())
    body = []
    for (site, output), group in _groups(cases):
        present, told = group[group["reference"] > 0], group[group["predicted"] > 0]
        error = present["predicted"] - present["reference"]
        cells = [
            shown((present["common"] / present["reference"]).median()),
            shown((told["common"] / told["predicted"]).median()),
            shown(error.median(), "+.1f"),
            shown((100 * error / present["reference"]).median(), "+.0f"),
        ]
        if "lesions" in group:
            total, found, invented = (str(int(group[name].sum())) for name in ("lesions", "found", "invented"))
            cells += [f"{found} of {total}", invented]
        body.append([site, output, *cells])
    header = ["Site", kind.output.capitalize(), "Sensitivity", "Precision", "Volume error (ml)", "Volume error (%)"]
    header += ["Lesions found", "Lesions invented"] if "lesions" in cases else []
    return TextTable(header, body, _totals(cases), 2)


def spread_words(cases: pd.DataFrame, kind: Objective) -> list[str]:
    """What a mean hides: cases whose region was as good as missed, and what they do to a mean distance."""
    if cases.empty or kind.primary.name != "dice":
        return []
    poor = cases[cases["Dice"] < POOR]
    total = cases.groupby(["site", "case"]).ngroups
    if poor.empty:
        return [f"No {kind.output} of the {counted(total, 'case')} has a Dice below {POOR}."]
    affected = poor.groupby(["site", "case"]).ngroups
    by_output = ", ".join(f"{name} in {count}" for name, count in poor["output"].value_counts(sort=False).items())
    return [f"In {affected} of {counted(total, 'case')} a {kind.output} has a Dice below {POOR} ({by_output})."]


def draw_spread(cases: pd.DataFrame, kind: Objective, score: Score) -> Figure | None:
    """Every case as a dot, with median and quartiles, per site and output."""
    if cases.empty or not cases[score.title].notna().any():
        return None
    sites, outputs = list(dict.fromkeys(cases["site"])), list(kind.outputs)
    figure = new_figure(min(max(5.5, 0.62 * len(sites) * len(outputs) + 1.8), 9.6), 3.5)
    axes = figure.subplots()
    boxes = cases.groupby(["site", "output"])[score.title].quantile(0.75)
    # One region that was missed altogether would press all others to the floor.
    finite = boxes.replace(np.inf, np.nan)
    top = score.highest if math.isfinite(score.highest) else min(1.15 * finite.max(), 4 * finite.median()) or 1.0
    for place, site in enumerate(sites):
        for index, output in enumerate(outputs):
            chosen = cases[(cases["site"] == site) & (cases["output"] == output)][score.title].dropna()
            at = place + (index - (len(outputs) - 1) / 2) * 0.8 / len(outputs)
            _draw_box(axes, at, 0.34 / len(outputs), chosen.to_numpy(), REGIONS[index % len(REGIONS)], top)
    for index, output in enumerate(outputs):
        axes.plot([], [], "s", color=REGIONS[index % len(REGIONS)], label=output)
    names = [f"{site}\n{counted(cases[cases['site'] == site]['case'].nunique(), 'case')}" for site in sites]
    name_ticks(axes, names)
    axes.set_ylim(0, top * 1.04)
    axes.set_ylabel(score.axis)
    grid(axes)
    figure.legend(loc="outside upper left", ncols=len(outputs))
    return figure


def _draw_box(axes: Axes, at: float, width: float, values: np.ndarray, colour: str, top: float) -> None:
    """Quartiles as a box, the median as a line, every case as a dot; what lies above the axis as a triangle at its
    edge."""
    if not len(values):
        axes.text(at, 0.02 * top, NOT_AVAILABLE, ha="center", va="bottom", fontsize=8)
        return
    low, middle, high = (min(float(np.percentile(values, q)), top) for q in (25, 50, 75))
    axes.bar(at, high - low, 2 * width, bottom=low, color=colour, alpha=0.3)
    axes.plot([at - width, at + width], [middle, middle], color=INK, linewidth=1.6)
    places = at + width * 0.6 * np.sin(np.arange(len(values)) * 2.4)
    inside = values <= top
    style: dict[str, Any] = {
        "color": colour,
        "markersize": 3.2,
        "linestyle": "none",
        "markeredgecolor": "white",
        "markeredgewidth": 0.4,
    }
    axes.plot(places[inside], values[inside], "o", **style, clip_on=False)
    axes.plot(places[~inside], np.full((~inside).sum(), top), "^", **{**style, "markersize": 5}, clip_on=False)


def _groups(cases: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """The cases of each site and output, and, with several sites, of each output."""
    groups = [((str(s), str(o)), group) for (s, o), group in cases.groupby(["site", "output"], sort=False)]
    if cases["site"].nunique() > 1:
        groups += [((ALL_SITES, str(o)), group) for o, group in cases.groupby("output", sort=False)]
    return groups


def _totals(cases: pd.DataFrame) -> int:
    return cases["output"].nunique() if cases["site"].nunique() > 1 else 0
