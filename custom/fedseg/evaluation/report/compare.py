"""Several runs side by side: one table as page, CSV and Markdown, and one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from fedseg.errors import UsageError
from fedseg.evaluation.report.decisions import last_rule
from fedseg.evaluation.report.drawing import new_figure, save, style
from fedseg.evaluation.report.figures import draw_means
from fedseg.evaluation.report.page import embed, render
from fedseg.evaluation.report.split_words import own_models
from fedseg.evaluation.report.tables import MEAN_OF_CASES, MEAN_OF_SITES, score_frame
from fedseg.evaluation.report.text_tables import TextTable, plain, shown, shown_bytes, shown_seconds
from fedseg.evaluation.report.verdict import phantom_words
from fedseg.evaluation.summary import Summary, number, objective_of_run, part, rows, site_names, task_of
from fedseg.files.documents import write_whole
from fedseg.tasks.objective import MEAN, Score

_TEXTS = ("Job", "Method", "Rule", "Seed")


def runs_frame(runs: Mapping[str, Summary]) -> pd.DataFrame:
    """One row per run: job, method, rule, seed, sites, rounds, the final model's score, bytes and seconds.

    Args:
        runs: summaries by the name under which a run is shown.

    Returns:
        Index ``Run``; ``<score> <output>`` (``Dice <region>``) are means over sites; ``Bytes`` go both ways. Undefined
        numbers are NaN.
    """
    records = {}
    for name, summary in runs.items():
        cost = part(summary, "cost")
        known = [sent for key in ("bytes_up", "bytes_down") if (sent := number(cost.get(key))) is not None]
        records[name] = {
            "Job": plain(summary.get("job")),
            "Method": plain(part(summary, "method").get("name", summary.get("method"))),
            "Rule": last_rule(summary),
            "Seed": plain(summary.get("seed")),
            "Sites": len(site_names(summary)),
            "Rounds": len(rows(summary, "rounds")),
            **_means(summary),
            "Bytes": sum(known) if known else None,
            "Seconds": number(cost.get("wall_seconds")),
        }
    frame = pd.DataFrame.from_dict(records, orient="index").rename_axis("Run")
    last = ["Bytes", "Seconds"]
    frame = frame[[*(c for c in frame.columns if c not in last), *last]]
    numeric = [c for c in frame.columns if c not in _TEXTS]
    return frame.astype(dict.fromkeys(numeric, float))


def _means(summary: Summary) -> dict[str, Any]:
    """The primary score of the final model: its two means, and that over sites for each output."""
    scores, kind = score_frame(summary), objective_of_run(summary)
    over_sites = scores.loc[MEAN_OF_SITES] if not scores.empty else pd.Series(dtype=float)
    over_cases = scores.loc[MEAN_OF_CASES] if MEAN_OF_CASES in scores.index else over_sites
    title = kind.primary.title
    means = {f"Mean {title}": over_sites.get(f"{title} {MEAN}"), f"Pooled {title}": over_cases.get(f"{title} {MEAN}")}
    return means | {f"{title} {output}": over_sites.get(f"{title} {output}") for output in kind.outputs}


def repeats_frame(frame: pd.DataFrame, column: str = "Mean Dice") -> pd.DataFrame:
    """Mean and standard deviation (n - 1) of a column over runs of one job and rule that ran more than once."""
    groups = frame.groupby(["Job", "Method", "Rule"], sort=False)[column]
    result = groups.agg(["count", "mean", "std"])
    return result[groups.size() > 1]


def write_comparison(runs: Mapping[str, Summary], out: Path) -> dict[str, Path]:
    """Write ``comparison.html``, ``comparison.csv``, ``comparison.md`` and ``figures/runs.png`` into ``out``.

    Returns:
        The paths by ``html``, ``csv``, ``md`` and ``figure``.
    """
    paths = comparison_files(out)
    frame = runs_frame(runs)
    table = runs_table(frame)
    with style():
        save(_draw(runs, frame), paths["figure"])
    write_whole(paths["csv"], frame.to_csv())
    note = own_models_note(runs)
    write_whole(paths["md"], markdown(table) + (f"\n{note}\n" if note else ""))
    short, shared = page_table(frame)
    context = {
        "table": short,
        "shared": shared,
        "phantoms": next(filter(None, map(phantom_words, runs.values())), ""),
        "repeats": _repeats_table(frame, f"Mean {_score(runs).title}"),
        "figure": embed(paths["figure"]),
        "tasks": sorted({task_of(s).name for s in runs.values()}),
        "splits": sorted({part(s, "final").get("split") or "held-out" for s in runs.values()}),
        "note": note,
        "score": _score(runs).title,
        "output": objective_of_run(next(iter(runs.values()))).output,
    }
    render("compare.html.j2", paths["html"], context)
    return paths


def comparison_files(out: Path) -> dict[str, Path]:
    """The files that ``write_comparison`` writes, by what it calls them."""
    files = {kind: out / f"comparison.{kind}" for kind in ("html", "csv", "md")}
    return {**files, "figure": out / "figures" / "runs.png"}


def _repeats_table(frame: pd.DataFrame, column: str) -> TextTable:
    body = [
        [job, method, rule, str(int(row["count"])), shown(row["mean"]), shown(row["std"])]
        for (job, method, rule), row in repeats_frame(frame, column).iterrows()
    ]
    return TextTable(("Job", "Method", "Rule", "Runs", column, "Standard deviation"), body, 0, 3)


def own_models_note(runs: Mapping[str, Summary]) -> str:
    """Which runs have no single model, so that their numbers mean something else; empty where there is none."""
    own = [name for name, summary in runs.items() if own_models(summary)]
    if not own:
        return ""
    return (
        f"{', '.join(own)}: every site was scored with a model of its own, on its own cases. These are no scores of a "
        "single model, and tell nothing of other hospitals' cases; compare them with single models with care."
    )


def markdown(table: TextTable) -> str:
    """A table in Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"

    rule = ["---" if i < table.left else "---:" for i in range(len(table.header))]
    return line(table.header) + line(rule) + "".join(line(row) for row in table.rows)


def runs_table(frame: pd.DataFrame) -> TextTable:
    """What ``runs_frame`` gives, as text."""
    forms = {"Sites": ".0f", "Rounds": ".0f"}
    body = []
    for name, row in frame.iterrows():
        cells = [str(name)]
        for column, value in row.items():
            if column in _TEXTS:
                cells.append(str(value))
            elif column in ("Bytes", "Seconds"):
                cells.append(shown_bytes(value) if column == "Bytes" else shown_seconds(value))
            else:
                cells.append(shown(value, forms.get(str(column), ".3f")))
        body.append(cells)
    left = 1 + sum(column in _TEXTS for column in frame.columns)
    return TextTable(("Run", *(str(c).replace("Seconds", "Time") for c in frame.columns)), body, 0, left)


def page_table(frame: pd.DataFrame) -> tuple[TextTable, list[str]]:
    """The table without what is the same in all runs and with rules by name, so that it fits a page; sentences say the
    rest."""
    facts = [c for c in (*_TEXTS, "Sites", "Rounds") if len(frame) > 1 and frame[c].nunique() == 1]
    told = "; ".join(f"{c.lower()} {plain(frame[c].iloc[0])}" for c in facts)
    shared = [f"In all runs: {told}."] if told else []
    short = frame.drop(columns=facts)
    if "Rule" in short and (rules := [rule for rule in frame["Rule"].unique() if " with " in rule]):
        short["Rule"] = [str(rule).partition(" with ")[0] for rule in short["Rule"]]
        shared.append(f"Rules in full: {'; '.join(rules)}.")
    return runs_table(short), shared


def _draw(runs: Mapping[str, Summary], frame: pd.DataFrame) -> Figure:
    """The mean primary score of each run, and its sites as dots."""
    score = _score(runs)
    figure = new_figure(7.4, 0.9 + 0.42 * len(frame))
    axes = figure.subplots()
    bars = [(number(v), part(runs[str(n)], "final", "sites")) for n, v in frame[f"Mean {score.title}"].items()]
    draw_means(axes, [str(i) for i in frame.index], bars, score, first_stands_out=False)
    axes.set_xlabel(f"Mean {score.title} of the final model (dots: single sites)")
    return figure


def _score(runs: Mapping[str, Summary]) -> Score:
    """The primary score of the runs, which are of one kind.

    Raises:
        UsageError: they are not.
    """
    found = {objective_of_run(summary).primary for summary in runs.values()}
    if len(found) != 1:
        raise UsageError(f"Runs scored by {', '.join(sorted(s.title for s in found))} cannot stand side by side.")
    return found.pop()
