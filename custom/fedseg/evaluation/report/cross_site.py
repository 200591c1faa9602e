"""Models by sites as a heat map, as tables and as a file: cross-site evaluations, and sites' own models compared."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from fedseg.evaluation.cross_site import (
    CROSS_SITE,
    LAST,
    LOCAL,
    PERSONAL,
    WITHOUT,
    Cell,
    CrossSiteMatrix,
    MatrixModel,
    matrix_of,
)
from fedseg.evaluation.report.heat_map import heat_map
from fedseg.evaluation.report.tables import cross_site_frame
from fedseg.evaluation.report.text_tables import NOT_AVAILABLE, TextTable, counted, shown
from fedseg.evaluation.summary import Summary, objective_of_run, part
from fedseg.files.documents import write_whole
from fedseg.tasks.objective import MEAN, Score

TABLE_FILE = "cross_site.csv"
_COLUMNS = (
    *("model", "kind", "of", "same_as", "evaluated_at", "cases", "region", "metric", "value", "low", "high", "note"),
)


def run_matrix(summary: Summary) -> CrossSiteMatrix | None:
    """The matrix of a run; None where it has none."""
    content = part(summary, CROSS_SITE)
    return matrix_of(objective_of_run(summary), content) if content else None


def write_matrix_table(matrix: CrossSiteMatrix | None, report: Path) -> None:
    """Write the long form into ``cross_site.csv`` of a report folder; without a matrix a former file goes away."""
    path = report / TABLE_FILE
    if matrix is None:
        path.unlink(missing_ok=True)
        return
    write_whole(path, pd.DataFrame.from_records(list(matrix.rows()), columns=list(_COLUMNS)).to_csv(index=False))


def matrix_frame(matrix: CrossSiteMatrix, score: str = "", output: str = MEAN) -> pd.DataFrame:
    """A score as numbers: a row for each model by its name, a column for each site, the worst site first.

    Args:
        matrix: of a run.
        score: its name; empty for the primary one.
        output: of the task, or ``mean``.
    """
    name, columns, models = score or matrix.objective.primary.name, matrix.worst_first(), matrix.ordered()
    values = [[matrix.cells[m.name][site].score(name, output) for site in columns] for m in models]
    return pd.DataFrame(values, index=[m.name for m in models], columns=columns, dtype=float)


# ------------------------------------------------------------------ figures


def matrix_figure(matrix: CrossSiteMatrix | None) -> Figure | None:
    """Heat map: each model at each site, the worst site first; None without any score."""
    frame = pd.DataFrame() if matrix is None else matrix_frame(matrix)
    if matrix is None or not frame.notna().any().any():
        return None
    models, score = matrix.ordered(), matrix.objective.primary
    counts, kinds = matrix.counts(), [model.kind for model in models]
    words = [[_in_cell(matrix.cells[model.name][site], score) for site in frame.columns] for model in models]
    home = {(row, column) for row, m in enumerate(models) for column, site in enumerate(frame.columns) if m.of == site}
    return heat_map(
        frame.to_numpy(),
        [model.title for model in models],
        [f"{site}\n{_count_words(counts[site], site in matrix.withheld())}" for site in frame.columns],
        score,
        words=words,
        home={place for place in home if kinds[place[0]] in (LOCAL, PERSONAL, WITHOUT)},
        breaks=[row for row in range(1, len(kinds)) if kinds[row] != kinds[row - 1]],
        titles=("Model", "Scored at, the worst site first"),
    )


def compared_figure(summary: Summary) -> Figure | None:
    """Heat map: the score of each site's own model at each site, and the federated model's below."""
    frame, score = cross_site_frame(summary), objective_of_run(summary).primary
    if frame.empty or not frame.notna().any().any():
        return None
    breaks = [len(frame) - 1] if "federated" in frame.index and len(frame) > 1 else []
    rows, columns = [str(name) for name in frame.index], [str(name) for name in frame.columns]
    return heat_map(frame.to_numpy(), rows, columns, score, breaks=breaks, titles=("Trained at", "Scored at"))


def _in_cell(cell: Cell, score: Score) -> str:
    value = cell.score(score.name)
    if value is not None:
        return format(value, score.short_form)
    return "withheld" if cell.withheld else "missing" if cell.missing else NOT_AVAILABLE


def _count_words(count: int | None, withheld: bool) -> str:
    if count is None:
        return "withheld" if withheld else NOT_AVAILABLE
    return counted(count, "case")


# ------------------------------------------------------------------ tables


def matrix_table(matrix: CrossSiteMatrix | None) -> TextTable:
    """Each model at each site, with the site's own interval where it made one, and how evenly it serves the sites."""
    if matrix is None:
        return TextTable(())
    primary, sites = matrix.objective.primary, matrix.worst_first()
    body = []
    for model in matrix.ordered():
        fair = matrix.fairness(model)
        cells = [_cell_words(matrix.cells[model.name][site], primary) for site in sites]
        totals = [shown(fair.macro, primary.form), shown(fair.pooled, primary.form)]
        worst = f"{fair.worst} ({shown(fair.worst_value, primary.form)})" if fair.worst else NOT_AVAILABLE
        body.append([model.title, *cells, *totals, worst, shown(fair.spread, primary.form)])
    header = ("Model", *sites, "Mean over sites", "Mean over cases", "Worst site", "Spread")
    return TextTable(header, body, notes=_notes(matrix))


def short_matrix_table(matrix: CrossSiteMatrix, most: int = 8) -> TextTable:
    """The mean score of each model at the worst sites, the worst one first, narrow enough for a terminal.

    Args:
        matrix: of a run.
        most: sites that are shown.
    """
    sites, primary = matrix.worst_first()[:most], matrix.objective.primary
    body = [[m.title, *(_in_cell(matrix.cells[m.name][site], primary) for site in sites)] for m in matrix.ordered()]
    return TextTable(("model", *sites), body)


def _cell_words(cell: Cell, score: Score) -> str:
    if cell.withheld:
        return "withheld"
    value, interval = cell.score(score.name), cell.interval(score.name)
    if interval is None:
        return shown(value, score.form)
    return f"{shown(value, score.form)} [{shown(interval[0], score.form)}, {shown(interval[1], score.form)}]"


def _notes(matrix: CrossSiteMatrix) -> list[str]:
    """What is not a number, by name, and who only scores."""
    cases = [f"{site} {count}" for site, count in matrix.counts().items() if count is not None]
    notes = [f"Cases: {', '.join(cases)}."] if cases else []
    if matrix.evaluators:
        notes.append(f"Scored models only, and never trained: {', '.join(sorted(matrix.evaluators))}.")
    notes += [f"{site}: withheld: {why}." for site, why in matrix.withheld().items()]
    notes += [f"{m.title}: {m.missing}." for m in matrix.ordered() if m.missing]
    titles = {model.name: model.title for model in matrix.models}
    notes += [
        f"{m.title}: the very same model as {titles[m.same_as]}; it was scored once."
        for m in matrix.ordered()
        if m.same_as
    ]
    gone: dict[tuple[str, str], list[str]] = {}
    for model in matrix.ordered():
        for site, cell in matrix.cells[model.name].items():
            if cell.missing and not model.missing:
                gone.setdefault((site, cell.missing), []).append(model.title)
    return notes + [f"{site} is missing for {', '.join(titles)}: {why}." for (site, why), titles in gone.items()]


def left_out_table(matrix: CrossSiteMatrix | None) -> TextTable:
    """At each site the model that was trained without it beside the one that was trained with it; empty without any."""
    if matrix is None:
        return TextTable(())
    score = matrix.objective.primary
    without = {model.of: model for model in matrix.models if model.kind == WITHOUT}
    body = [_left_out_row(matrix, without[site], site, score) for site in matrix.worst_first() if site in without]
    title = score.title
    header = ("Site", "Cases", f"{title}, trained without it", f"{title}, trained with it", "Difference")
    return TextTable(header, body)


def _left_out_row(matrix: CrossSiteMatrix, model: MatrixModel, site: str, score: Score) -> list[str]:
    cell, whole = matrix.cells[model.name][site], matrix.cells.get(LAST, {}).get(site, Cell())
    one, other = cell.score(score.name), whole.score(score.name)
    difference = None if one is None or other is None else one - other
    forms = (score.form, score.form, f"+{score.form}")
    return [site, shown(cell.cases, ".0f"), *map(shown, (one, other, difference), forms)]
