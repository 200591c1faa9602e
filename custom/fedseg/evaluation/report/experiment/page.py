"""The page of an experiment, made from the files of its folder: one for coordinators, and one for each site."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fedseg.evaluation.experiment_folder import Experiment, read_experiment
from fedseg.evaluation.report import overlays
from fedseg.evaluation.report.drawing import save, style
from fedseg.evaluation.report.experiment import numbers, tables, words
from fedseg.evaluation.report.experiment.checklist import AUTHORS, checklists
from fedseg.evaluation.report.experiment.drawn import drawn_table, drawn_words
from fedseg.evaluation.report.experiment.figures import draw_figures
from fedseg.evaluation.report.experiment.subject import (
    defined_arms,
    external_sites,
    reference_arm,
    scores_of,
    task_of,
)
from fedseg.evaluation.report.page import embed, render
from fedseg.evaluation.report.statistics import CERTAINTY, protection_words, statistics_tables
from fedseg.evaluation.report.text_tables import NOT_AVAILABLE, TextTable, counted, shown
from fedseg.statistics.document import FederationStatistics
from fedseg.tasks.objective import Score, objective_of

TEMPLATE = "experiment.html.j2"


@dataclass(frozen=True)
class Content:
    """What all forms of the page share.

    Attributes:
        experiment: what was read.
        scores: those that were measured; the first is the primary one.
        reference: the arm with which the others are compared.
        arms, pairs, left_out, costs: see ``numbers``.
        figures: path of each figure by its name.
    """

    experiment: Experiment
    scores: list[Score]
    reference: str
    arms: pd.DataFrame
    pairs: pd.DataFrame
    left_out: pd.DataFrame
    costs: pd.DataFrame
    figures: dict[str, Path]

    @property
    def best(self) -> str:
        """The arm with the best mean over sites."""
        return str(self.scores[0].order(self.arms["macro"].dropna().to_dict())[0])


@dataclass(frozen=True)
class ExperimentReport:
    """What was made: the coordinators' page, and its table of arms side by side."""

    page: Path
    arms: TextTable


def write_experiment_report(folder: Path) -> ExperimentReport:
    """Write ``report/report.html`` for coordinators, and ``report/sites/<site>.html`` for each site.

    The coordinators' page names no case and no patient, and has no picture. A site's page adds its own worst cases by
    name, and pictures of them where ``report/overlays.json`` has any (as in the report of a run).

    Args:
        folder: of the experiment.

    Returns:
        The coordinators' page, one file with everything inside, no scripts, nothing fetched; and the table of arms.

    Raises:
        DataError: a file of the experiment is missing or wrong.
    """
    content = _read(folder)
    experiment, shared = content.experiment, page_context(content)
    page = render(TEMPLATE, folder / "report" / "report.html", shared | _cases(content))
    for site in experiment.sites:
        render(TEMPLATE, folder / "report" / "sites" / f"{site}.html", shared | _cases(content, site))
    return ExperimentReport(page, shared["arms"])


def _read(folder: Path) -> Content:
    experiment = read_experiment(folder)
    scores, reference = scores_of(experiment), reference_arm(experiment)
    arms = numbers.arm_frame(experiment, scores[0])
    pairs = numbers.pair_frame(experiment, scores[0], reference)
    left_out = numbers.left_out_frame(experiment, scores[0])
    figures = draw_figures(experiment, scores[0], arms, pairs, left_out, folder / "report" / "figures")
    return Content(experiment, scores, reference, arms, pairs, left_out, numbers.cost_frame(experiment), figures)


def page_context(content: Content) -> dict[str, Any]:
    """Everything that all forms of the page show, as text."""
    experiment, task, primary = content.experiment, task_of(content.experiment), content.scores[0]
    numbered = content.arms, content.pairs, content.left_out
    return {
        "name": experiment.name,
        "title": str(experiment.facts.get("description") or experiment.name),
        "facts": _facts(content),
        "warnings": words.warnings(experiment),
        "score": primary,
        "scores": content.scores,
        "glossary": objective_of(task).glossary if task else {},
        "not_available": NOT_AVAILABLE,
        "authors": AUTHORS,
        "reference": content.reference,
        "best": content.best,
        "verdict": words.verdict(experiment, *numbered, primary, content.reference),
        "highlights": _highlights(content),
        **_results(content),
        **_background(content),
    }


def _cases(content: Content, site: str = "") -> dict[str, Any]:
    """What differs between the pages: for a site its own worst cases by name, for coordinators those of all without.

    Args:
        content: of all forms.
        site: whose own page it is; empty for the coordinators'.
    """
    worst = numbers.worst_cases(content.experiment, content.best, content.scores[0])
    worst = worst[worst["site"] == site] if site else worst
    picture = _pictures(content.experiment, site)
    figures = {name: embed(path) for name, path in (content.figures | picture).items()}
    table = tables.worst_table(worst, content.scores[0], names=bool(site))
    return {"site": site, "figures": figures, "worst": table, "drawn": _drawn_arm(content.experiment)}


def _results(content: Content) -> dict[str, Any]:
    """What came out."""
    experiment, primary = content.experiment, content.scores[0]
    outside = external_sites(experiment)
    return {
        "people": tables.people_table(experiment),
        "drawn_regions": drawn_table(experiment),
        "drawn_words": drawn_words(experiment),
        "arms": tables.arm_table(content.arms, primary),
        "kinds": tables.kind_table(experiment),
        "by_region": tables.region_table(experiment, primary),
        "all_scores": tables.score_table(experiment, content.scores),
        "by_site": tables.site_table(experiment, primary),
        "pairs": tables.pair_table(content.pairs, content.reference, primary),
        "drawn_anew": words.redrawn_words(content.arms),
        "matrices": {
            arm: tables.matrix_table(*numbers.matrix(experiment, arm, primary), primary)
            for arm in numbers.travelling_arms(experiment)
        },
        "left_out": tables.left_out_table(content.left_out, primary),
        "external": tables.external_table(numbers.external_frame(experiment, primary, outside), primary),
    }


def _background(content: Content) -> dict[str, Any]:
    """What it cost, from what it was made, and what to paste."""
    experiment = content.experiment
    return {
        **_statistics(experiment.statistics),
        "costs": tables.cost_table(experiment),
        "energy": words.energy_words(experiment, content.costs),
        "methods": words.methods(experiment, content.scores, content.reference, content.arms),
        "checklists": checklists(experiment, content.arms),
        "provenance": tables.facts_table(experiment),
    }


def _statistics(found: FederationStatistics | None) -> dict[str, Any]:
    """How the sites' data differ; nothing where the experiment did not ask."""
    if found is None:
        return {"statistics": {}, "advice": [], "told_nothing": {}}
    told = {"advice": found.advice, "told_nothing": dict(found.left_out), "protection": protection_words(found)}
    return {"statistics": statistics_tables(found), **told, "certainty": CERTAINTY}


def _facts(content: Content) -> list[str]:
    """The line under the title."""
    experiment, task = content.experiment, task_of(content.experiment)
    date = str(experiment.facts.get("finished") or experiment.facts.get("started") or "")[:10]
    facts = {"Experiment": experiment.name, "Task": task.name if task else "", "Date": date}
    seeds = counted(experiment.results["seed"].nunique(), "seed")
    arms = counted(len(defined_arms(experiment.arms)), "arm")
    return [*(f"{name} {value}" for name, value in facts.items() if value), arms, seeds]


def _highlights(content: Content) -> list[tuple[str, str]]:
    """The large numbers at the top."""
    primary, row = content.scores[0], content.arms.loc[content.best]
    results = content.experiment.results
    patients = results[["evaluated_at", "patient"]].drop_duplicates()
    return [
        (shown(row["macro"], primary.form), f"mean {primary.title} over sites, {content.best}"),
        (shown(row["worst"], primary.form), f"at its worst site, {row['worst_site']}"),
        (shown(row["spread"], primary.form), "spread over sites"),
        (str(len(content.experiment.sites)), "sites"),
        (str(len(patients)), "patients tested"),
    ]


def _drawn_arm(experiment: Experiment) -> str:
    """Under which arm cases were drawn; empty where nothing tells."""
    entries = overlays.read_list(experiment.folder / "report" / "overlays.json")
    return str(next((entry["arm"] for entry in entries if entry.get("arm")), ""))


def _pictures(experiment: Experiment, site: str) -> dict[str, Path]:
    """The pictures of a site's own cases; none on the coordinators' page, and none without files."""
    task = task_of(experiment)
    entries = [e for e in overlays.read_list(experiment.folder / "report" / "overlays.json") if e.get("site") == site]
    if not site or task is None or not entries:
        return {}
    with style():
        figure = overlays.draw_overlays(entries, task)
        return {"pictures": save(figure, experiment.folder / "report" / "sites" / f"{site}.png")} if figure else {}
