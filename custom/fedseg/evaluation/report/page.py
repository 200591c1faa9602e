"""One self-contained page about a run, for a radiologist and a coordinator.

This module puts the page together. Its sentences stand in the template ``report.html.j2`` and in ``verdict``, its
tables in ``text_tables``.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from fedseg.contract.round_numbers import nth
from fedseg.contract.scores import FINE_TUNED, PERSONAL
from fedseg.evaluation.case_tables import final_case_facts
from fedseg.evaluation.report import cross_site, decisions, overlays, peers, spread, text_tables, verdict
from fedseg.evaluation.report.drawing import DPI
from fedseg.evaluation.report.drawn import drawn_table, drawn_words
from fedseg.evaluation.report.figures import draw_figures
from fedseg.evaluation.report.further_scores import fairness_words, further_table, further_words, interval_table
from fedseg.evaluation.report.inversion import PICTURE, inversion_table, inversion_verdict, inversion_words
from fedseg.evaluation.report.split_words import leaving_words, own_models, unmeasured_words
from fedseg.evaluation.report.tables import MEAN_OF_CASES, MEAN_OF_SITES, mean_column, score_frame
from fedseg.evaluation.report.wall_time import version_table
from fedseg.evaluation.summary import Summary, number, objective_of_run, part, read_summary, rows, task_of
from fedseg.files.documents import write_whole
from fedseg.tasks.objective import Objective, objective_of
from fedseg.tasks.task import Task


def write_report(out: Path) -> Path:
    """Draw the figures and write ``out/report/report.html`` from ``out/report/summary.json``.

    Args:
        out: the folder of a run; ``report/overlays.json`` and ``report/gallery.json`` are used if they are there.

    Returns:
        Path of the page: one file with everything inside, no scripts, nothing fetched.

    Raises:
        DataError: there is no readable summary.
    """
    summary = read_summary(out)
    task = task_of(summary)
    cases = final_case_facts(out, summary) if summary.get("simulated") else pd.DataFrame()
    figures = draw_figures(summary, out / "report", task, cases)
    cross_site.write_matrix_table(cross_site.run_matrix(summary), out / "report")
    picture = out / "report" / PICTURE
    if part(summary, "inversion") and picture.is_file():
        figures["inversion"] = picture
    return render("report.html.j2", out / "report" / "report.html", report_context(summary, task, figures, out, cases))


def render(template: str, path: Path, context: Mapping[str, Any]) -> Path:
    """Fill a page of this package (escaping every value) and put it at ``path`` in one step."""
    environment = Environment(
        loader=PackageLoader("fedseg.evaluation.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return write_whole(path, environment.get_template(template).render(context))


def embed(path: Path) -> dict[str, str]:
    """A PNG as a data URL (``url``) and the width in inches at which its type has its own size (``width``)."""
    with Image.open(path) as image:
        width = image.width / DPI
    url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
    return {"url": url, "width": f"{width:.2f}"}


def report_context(
    summary: Summary, task: Task, figures: Mapping[str, Path], out: Path, cases: pd.DataFrame
) -> dict[str, Any]:
    """Everything that the page shows, as text."""
    kind = objective_of(task)
    return {
        "job": summary.get("job") or "Run",
        "kind": kind,
        "score": kind.primary.title,
        "hints": " ".join(f"{score.title}: {score.hint}." for score in kind.main_scores if score.hint),
        "title": f"Federated {kind.title}: {task.description or task.name}",
        "facts": _facts(summary, task),
        "verdict": verdict.verdict(summary, cases),
        "phantoms": verdict.phantom_words(summary),
        "data": text_tables.data_table(summary),
        "highlights": _highlights(summary),
        "figures": {name: embed(path) for name, path in figures.items()},
        "events": text_tables.event_table(summary),
        "configuration": text_tables.configuration_table(summary),
        "convention": _convention(summary),
        "regions": "; ".join(f"{r.name}: {', '.join(r.classes)}" for r in task.regions) + ".",
        "not_available": text_tables.NOT_AVAILABLE,
        "displayed": bool(task.display),
        "gone": _gone(out / "report"),
        **_results(summary),
        **_spread(kind, cases),
        **_training(summary),
        **_privacy(summary),
        **_split_training(summary),
    }


def _results(summary: Summary) -> dict[str, Any]:
    """What came out: scores, comparisons, and what the run cost."""
    final, matrix = part(summary, "final"), cross_site.run_matrix(summary)
    return {
        "final": text_tables.score_table(summary, "final"),
        "best": text_tables.TextTable(())
        if verdict.best_is_last(summary)
        else text_tables.score_table(summary, "best"),
        "average": text_tables.score_table(summary, "average"),
        "best_round": nth(int(number(part(summary, "best").get("round")) or 0)),
        "further": further_table(summary),
        "further_hints": further_words(summary),
        "intervals": interval_table(summary),
        "fairness": fairness_words(summary),
        "split": final.get("split") or "held-out",
        "withheld": final.get("withheld") or [],
        "personal": text_tables.beside_table(summary, PERSONAL),
        "fine_tuned": text_tables.beside_table(summary, FINE_TUNED),
        "empty": text_tables.empty_table(summary, "final"),
        "drawn_regions": drawn_table(summary),
        "drawn_words": drawn_words(summary),
        "comparison": text_tables.comparison_table(summary),
        "alike": text_tables.ALIKE,
        "cross_site": text_tables.cross_site_table(summary),
        "matrix": cross_site.matrix_table(matrix),
        "left_out": cross_site.left_out_table(matrix),
        "matrix_sites": len(matrix.worst_first()) if matrix else 0,
        "cost": text_tables.cost_table(summary),
        "memory": text_tables.memory_table(summary),
    }


def _spread(kind: Objective, cases: pd.DataFrame) -> dict[str, Any]:
    """How the scores of single cases lie."""
    nothing = text_tables.TextTable(())
    return {
        "single_cases": not cases.empty,
        "spread": nothing if cases.empty else spread.spread_table(cases, kind),
        "volumes": nothing if cases.empty else spread.volume_table(cases, kind),
    }


def _training(summary: Summary) -> dict[str, Any]:
    """What decided about the rounds."""
    return {
        "round_count": len(rows(summary, "rounds")),
        "rule": decisions.last_rule(summary),
        "ending": decisions.ending(summary),
        "weights": decisions.weight_table(summary),
        "without_weights": decisions.without_weights(summary),
        "carried": decisions.carried(summary),
        "visits": decisions.visit_table(summary),
        "versions": version_table(summary),
        "leaders": peers.leader_table(summary),
        "turns": peers.turn_table(summary),
        "method": text_tables.method_table(summary),
        "selection": decisions.selection_table(summary),
        "selection_words": decisions.selection_words(summary),
    }


def _privacy(summary: Summary) -> dict[str, Any]:
    """Through which filters updates went, and what was spent."""
    sites = part(summary, "privacy", "sites").values()
    return {
        "privacy": text_tables.privacy_table(summary),
        "filters": text_tables.filter_table(summary),
        "uncovered": text_tables.uncovered_words(summary),
        "private": any(site.get("epsilon") is not None for site in sites),
        "seeded_noise": any(site.get("secure_noise") is False for site in sites),
        "privacy_facts": text_tables.privacy_facts(summary),
    }


def _split_training(summary: Summary) -> dict[str, Any]:
    """What is special where the network was trained in two parts."""
    return {
        "split_training": isinstance(summary.get("split"), Mapping),
        "leaving": leaving_words(summary),
        "own_models": own_models(summary),
        "whose": "each site's own model" if own_models(summary) else "the final model",
        "unmeasured": unmeasured_words(summary),
        "inversion": inversion_table(summary),
        "inversion_verdict": inversion_verdict(summary),
        "inversion_words": inversion_words(summary),
    }


def _facts(summary: Summary, task: Task) -> list[str]:
    """The line under the title."""
    date = next((str(summary[key]) for key in ("date", "finished", "started") if summary.get(key)), "")
    method = summary.get("method")
    method = part(summary, "method").get("name") if isinstance(method, Mapping) else method
    facts = {"Job": summary.get("job"), "Task": task.name, "Method": method, "Run": summary.get("run_id"), "Date": date}
    return [f"{name} {value}" for name, value in facts.items() if value]


def _highlights(summary: Summary) -> list[tuple[str, str]]:
    frame = score_frame(summary)
    if frame.empty:
        return []
    kind = objective_of_run(summary)
    column, score = mean_column(kind), kind.primary
    values = [(text_tables.shown(frame.loc[MEAN_OF_SITES, column], score.form), f"mean {score.title} over sites")]
    if MEAN_OF_CASES in frame.index:
        values.append(
            (text_tables.shown(frame.loc[MEAN_OF_CASES, column], score.form), f"mean {score.title} over cases")
        )
    values.append((str(len(part(summary, "final", "sites"))), "sites scored"))
    values.append((text_tables.shown(frame.loc[MEAN_OF_SITES, "Cases"], ".0f"), "cases scored"))
    values.append((str(len(rows(summary, "rounds"))), "rounds"))
    wall = part(summary, "cost").get("wall_seconds")
    return [*values, (text_tables.shown_seconds(wall), "in total")] if wall is not None else values


def _convention(summary: Summary) -> str:
    name = summary.get("empty_convention") or part(summary, "final").get("empty_convention")
    return f'This run used "{name}".' if name else ""


def _gone(report: Path) -> str:
    """What to say about pictures whose files are not there any more."""
    entries = overlays.read_list(report / "overlays.json")
    gone = sum(not all(path.is_file() for path in overlays.files_of(entry)) for entry in entries)
    if not gone:
        return ""
    return f"{gone} of {len(entries)} cases are not shown, since their files are no longer where the run found them."
