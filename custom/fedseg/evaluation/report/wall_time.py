"""Where no site waits: what was reached after how many minutes, and which version of the model each site trained."""

from __future__ import annotations

import math
from itertools import accumulate

import pandas as pd
from matplotlib.figure import Figure

from fedseg.contract.round_numbers import nth
from fedseg.evaluation.report.drawing import INK, grid, legend_below, new_figure, site_lines
from fedseg.evaluation.report.tables import history_frame
from fedseg.evaluation.report.text_tables import TextTable, shown
from fedseg.evaluation.summary import Summary, number, objective_of_run, part, rows, site_names

# Whether a run is one whose updates may be late, and how late each was.
_STALENESS = "staleness"


def has_versions(summary: Summary) -> bool:
    """Whether updates were counted as they came, each of a version of its own."""
    return any(_STALENESS in part(entry, "notes") for entry in rows(summary, "rounds"))


def minutes_after(summary: Summary) -> list[float]:
    """Minutes from the start of the first round to the end of each round, 0 for the start itself."""
    seconds = (number(entry.get("seconds")) or 0.0 for entry in rows(summary, "rounds"))
    return [0.0, *(total / 60 for total in accumulate(seconds))]


def trained_versions(summary: Summary) -> pd.DataFrame:
    """The version that each update started from (0 for the start), by the minute at which it was counted.

    Columns: ``minutes``, ``site``, ``version``, ``staleness``.
    """
    after, found = minutes_after(summary), []
    for place, entry in enumerate(rows(summary, "rounds")):
        for site, staleness in part(entry, "notes", _STALENESS).items():
            late = int(number(staleness) or 0)
            found.append({"minutes": after[place + 1], "site": site, "version": place - late, "staleness": late})
    return pd.DataFrame.from_records(found, columns=["minutes", "site", "version", "staleness"])


def version_table(summary: Summary) -> TextTable:
    """How many updates each site gave, and how late they were; empty where all sites train at once."""
    taken = trained_versions(summary) if has_versions(summary) else pd.DataFrame()
    if taken.empty:
        return TextTable(())
    body = []
    for site in [site for site in site_names(summary) if site in set(taken["site"])]:
        own = taken[taken["site"] == site]
        latest = str(int(own["version"].max()))
        mean, most = shown(own["staleness"].mean(), ".1f"), str(int(own["staleness"].max()))
        body.append([site, str(len(own)), latest, mean, most])
    header = ("Site", "Updates", "Newest version trained", "Mean staleness", "Largest staleness")
    return TextTable(header, body)


def progress_over_time(summary: Summary) -> Figure | None:
    """The primary score over minutes, and the versions that sites trained; None where all sites train at once."""
    if not has_versions(summary):
        return None
    history, score, after = history_frame(summary), objective_of_run(summary).primary, minutes_after(summary)
    figure = new_figure(9.2, 3.3)
    left, right = figure.subplots(1, 2)
    scored = history.assign(minutes=[after[min(int(made), len(after) - 1)] for made in history["made"]])
    if scored[score.title].notna().any():
        table = scored.pivot_table(index="minutes", columns="site", values=score.title, sort=False).sort_index()
        means = table.mean(axis=1)
        left.plot(means.index, means, color=INK, linewidth=2.0, marker="o", markersize=3, label="mean of who scored it")
    left.set_title(f"Validation {score.title} of the newest model")
    if math.isfinite(score.highest):
        left.set_ylim(0, score.highest)
    versions = trained_versions(summary).pivot_table(index="minutes", columns="site", values="version", sort=False)
    site_lines(right, versions.sort_index(), site_names(summary), linestyle="none")
    right.step(after, range(len(after)), where="post", color=INK, linewidth=1.2, label="newest version")
    right.set_title(f"Version that an update started from, of {nth(len(after) - 2)}")
    for axes in (left, right):
        axes.set_xlabel("Minutes since the first round began")
        grid(axes)
    legend_below(figure, right)
    return figure
