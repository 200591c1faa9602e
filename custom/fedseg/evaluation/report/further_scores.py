"""Scores beside the main ones, intervals of means, and how fair a model is to sites: tables and a sentence."""

from __future__ import annotations

from fedseg.evaluation.case_intervals import told_bounds
from fedseg.evaluation.report.tables import MEAN_OF_CASES, score_frame
from fedseg.evaluation.report.text_tables import NOT_AVAILABLE, TextTable, counted, shown
from fedseg.evaluation.summary import Summary, number, objective_of_run, part
from fedseg.tasks.objective import MEAN


def further_table(summary: Summary, model: str = "final") -> TextTable:
    """Means of all scores but the main ones: a row for each site and output, a column for each score."""
    frame, kind = score_frame(summary, model), objective_of_run(summary)
    told = [score for score in kind.scores if not score.main]
    told = [s for s in told if any(frame[f"{s.title} {o}"].notna().any() for o in kind.outputs if not frame.empty)]
    if not told:
        return TextTable(())
    header = ["Site", kind.output.capitalize()]
    header += [f"{score.title} ({score.unit})" if score.unit else score.title for score in told]
    body = [
        [str(site), output, *(shown(row[f"{score.title} {output}"], score.form) for score in told)]
        for site, row in frame.iterrows()
        for output in kind.outputs
    ]
    return TextTable(header, body, len(kind.outputs) * (1 + (MEAN_OF_CASES in frame.index)), 2)


def further_words(summary: Summary) -> str:
    """How to read these scores."""
    told = [score for score in objective_of_run(summary).scores if not score.main and score.hint]
    return " ".join(f"{score.title}: {score.hint}." for score in told)


def interval_table(summary: Summary, model: str = "final") -> TextTable:
    """The primary score of each site with the 95% interval that the site made of its own cases."""
    kind = objective_of_run(summary)
    score, outputs = kind.primary, [*kind.outputs, *([MEAN] if len(kind.outputs) > 1 else [])]
    body = []
    for site, scored in part(summary, model, "sites").items():
        cells = []
        for output in outputs:
            bounds = told_bounds(scored, score.name, output)
            told = NOT_AVAILABLE if bounds is None else " to ".join(shown(bound, score.form) for bound in bounds)
            cells.append(f"{shown(part(scored, score.name).get(output), score.form)} ({told})")
        if any(told_bounds(scored, score.name, output) for output in outputs):
            body.append([site, shown(scored.get("cases"), ".0f"), *cells])
    header = ["Site", "Cases", *(f"{score.title} {output} (95% CI)" for output in outputs)]
    return TextTable(header, body, 0, 1)


def fairness_words(summary: Summary, model: str = "final") -> str:
    """The fairness line; empty with fewer than two sites."""
    told, score = part(summary, model, "fairness", MEAN), objective_of_run(summary).primary
    sites, cases = (int(number(told.get(name)) or 0) for name in ("sites", "cases"))
    if sites < 2:
        return ""
    worst, spread, macro, pooled = (
        shown(told.get(name), score.form) for name in ("worst_value", "spread", "macro", "pooled")
    )
    return (
        f"Worst site: {told['worst']} ({score.title} {worst}). Spread over sites (standard deviation): {spread}. "
        f"Mean over {counted(sites, 'site')}: {macro}; over {counted(cases, 'case')}: {pooled}."
    )
