"""What a run's filters did and what it cost, from the records that travelled with the updates."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from fedseg.evaluation.report.drawing import grid, legend_below, line_style, new_figure, round_axis
from fedseg.evaluation.summary import Summary, number, rows, site_names


def filter_rows(summary: Summary) -> list[tuple[str, str, str]]:
    """Name, arguments and meaning of each filter of the run."""
    found = []
    for entry in (summary.get("privacy") or {}).get("filters") or ():
        arguments = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in entry.items() if k not in ("filter", "meaning"))
        found.append((str(entry["filter"]), arguments, str(entry.get("meaning", ""))))
    return found


def course(summary: Summary) -> pd.DataFrame:
    """Epsilon of each site (columns) after each round (index); empty where no mechanism gives one."""
    values = {
        (entry["round"], site): number(part.get("epsilon"))
        for entry in rows(summary, "rounds")
        for site, part in (entry.get("sites") or {}).items()
        if number(part.get("epsilon")) is not None
    }
    if not values:
        return pd.DataFrame()
    series = pd.Series(values)
    return series.unstack().sort_index()


def epsilon_figure(summary: Summary) -> Figure | None:
    """Epsilon of each site over the rounds."""
    table = course(summary)
    if table.empty:
        return None
    figure = new_figure(6.2, 3.1)
    axes = figure.subplots()
    sites = [site for site in site_names(summary) if site in table] or list(table.columns)
    for index, site in enumerate(sites):
        axes.plot(
            table.index, table[site], label=site, **{**line_style(index), "marker": "o" if len(table) < 3 else None}
        )
    axes.set_ylim(0, None)
    axes.set_ylabel("epsilon spent so far")
    round_axis(axes, table.index.tolist())
    grid(axes)
    legend_below(figure, axes)
    return figure
