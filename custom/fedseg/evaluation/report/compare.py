"""Several runs side by side: one table as page, CSV and Markdown, and one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from fedseg.evaluation.report.decisions import last_rule
from fedseg.evaluation.report.drawing import ACCENT, INK, grid, new_figure, save, style
from fedseg.evaluation.report.page import embed, render
from fedseg.evaluation.report.split_words import own_models
from fedseg.evaluation.report.tables import MEAN_OF_CASES, MEAN_OF_SITES, score_frame
from fedseg.evaluation.report.wording import TextTable, plain, shown, shown_bytes, shown_seconds
from fedseg.evaluation.summary import Summary, mean_dice, number, part, rows, site_names, task_of

_TEXTS = ("Job", "Method", "Rule", "Seed")


def runs_frame(runs: Mapping[str, Summary]) -> pd.DataFrame:
    """One row per run: job, method, rule, seed, sites, rounds, Dice of the final model, bytes and seconds.

    Args:
        runs: summaries by the name under which a run is shown.

    Returns:
        Index ``Run``; ``Dice <region>`` are means over sites; ``Bytes`` go both ways. Undefined numbers are NaN.
    """
    records = {}
    for name, summary in runs.items():
        scores, cost = score_frame(summary), part(summary, "cost")
        over_sites = scores.loc[MEAN_OF_SITES] if not scores.empty else pd.Series(dtype=float)
        over_cases = scores.loc[MEAN_OF_CASES] if MEAN_OF_CASES in scores.index else over_sites
        sent = [number(cost.get(key)) for key in ("bytes_up", "bytes_down")]
        record = {
            "Job": plain(summary.get("job")),
            "Method": plain(part(summary, "method").get("name", summary.get("method"))),
            "Rule": last_rule(summary),
            "Seed": plain(summary.get("seed")),
            "Sites": len(site_names(summary)),
            "Rounds": len(rows(summary, "rounds")),
            "Mean Dice": over_sites.get("Dice mean"),
            "Pooled Dice": over_cases.get("Dice mean"),
        }
        record |= {f"Dice {region}": over_sites.get(f"Dice {region}") for region in task_of(summary).region_names}
        known = [value for value in sent if value is not None]
        record |= {"Bytes": sum(known) if known else None, "Seconds": number(cost.get("wall_seconds"))}
        records[name] = record
    frame = pd.DataFrame.from_dict(records, orient="index").rename_axis("Run")
    last = ["Bytes", "Seconds"]
    frame = frame[[*(c for c in frame.columns if c not in last), *last]]
    numeric = [c for c in frame.columns if c not in _TEXTS]
    return frame.astype(dict.fromkeys(numeric, float))


def repeats_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (n - 1) of the mean Dice over runs of one job and rule that ran more than once."""
    groups = frame.groupby(["Job", "Method", "Rule"], sort=False)["Mean Dice"]
    result = groups.agg(["count", "mean", "std"])
    return result[groups.size() > 1]


def write_comparison(runs: Mapping[str, Summary], out: Path) -> dict[str, Path]:
    """Write ``comparison.html``, ``comparison.csv``, ``comparison.md`` and ``figures/runs.png`` into ``out``.

    Returns:
        The paths by ``html``, ``csv``, ``md`` and ``figure``.
    """
    out.mkdir(parents=True, exist_ok=True)
    frame = runs_frame(runs)
    table = runs_table(frame)
    with style():
        figure = save(_draw(runs, frame), out / "figures" / "runs.png")
    paths = {"csv": out / "comparison.csv", "md": out / "comparison.md", "figure": figure}
    frame.to_csv(paths["csv"])
    note = own_models_note(runs)
    paths["md"].write_text(markdown(table) + (f"\n{note}\n" if note else ""), "utf-8")
    repeats = [
        [job, method, rule, str(int(row["count"])), shown(row["mean"]), shown(row["std"])]
        for (job, method, rule), row in repeats_frame(frame).iterrows()
    ]
    header = ("Job", "Method", "Rule", "Runs", "Mean Dice", "Standard deviation")
    splits = {part(s, "final").get("split") or "held-out" for s in runs.values()}
    context = {
        "table": table,
        "repeats": TextTable(header, repeats, 0, 3),
        "figure": embed(figure),
        "tasks": sorted({task_of(s).name for s in runs.values()}),
        "splits": sorted(splits),
        "note": note,
    }
    paths["html"] = render("compare.html.j2", out / "comparison.html", context)
    return paths


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
    return TextTable(("Run", *(str(c).replace("Seconds", "Time") for c in frame.columns)), body, 0, 5)


def _draw(runs: Mapping[str, Summary], frame: pd.DataFrame) -> Figure:
    """Mean Dice of each run, and its sites as dots."""
    figure = new_figure(7.4, 0.9 + 0.42 * len(frame))
    axes = figure.subplots()
    for place, (name, value) in enumerate(frame["Mean Dice"].items()):
        known = number(value)
        axes.barh(place, known or 0, 0.62, color=ACCENT)
        scored = part(runs[str(name)], "final", "sites")
        dots = [d for d in (mean_dice(part(scored, s).get("dice")) for s in scored) if d is not None]
        axes.plot(dots, [place] * len(dots), "o", color=INK, markersize=3.5, markerfacecolor="white", linestyle="none")
        axes.text(1.01, place, shown(known), va="center")
    axes.set_yticks(range(len(frame)), [str(i) for i in frame.index])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("Mean Dice of the final model (dots: single sites)")
    grid(axes, "x")
    return figure
