"""A run for trackers of experiments: its parameters, its numbers round by round, and the files that may be shown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedseg.contract.round_numbers import nth
from fedseg.evaluation.report.tables import MEAN_OF_CASES, MEAN_OF_SITES, history_frame, score_frame
from fedseg.evaluation.report.text_tables import plain
from fedseg.evaluation.summary import Summary, last_models, number, objective_of_run, part, read_summary, rows
from fedseg.tasks.objective import MEAN

PICTURES = ("overlays", "gallery", "inversion")
"""Figures that show images of cases."""
NESTED = ("network", "training", "workflow", "selection", "split")
"""Parts of a summary whose settings become parameters."""
_PARAMETERS = ("job", "task", "method", "seed", "threads_per_site", "empty_convention")
_SITE_NUMBERS = ("train_loss", "val_loss", "weight", "cases", "bytes_up", "bytes_down", "seconds")
# What MLflow takes in the name of a metric; Weights & Biases takes more.
_STRANGE = re.compile(r"[^\w\-. /:]")


@dataclass(frozen=True)
class Point:
    """One number at one step. Steps are rounds, from 1; 0 is the model before the training.

    No name is the beginning of another one up to a slash, which would be a file and a folder in one place.
    """

    name: str
    value: float
    step: int


@dataclass
class Tracked:
    """What a tracker gets of a run, or of a unit of an experiment.

    Attributes:
        name: of the run.
        parameters: settings as text.
        tags: ``run_id`` (of a unit its digest), ``date``, and the versions of packages.
        points: numbers, in the order of their steps.
        files: what is attached, by the folder in the tracker.
    """

    name: str
    parameters: dict[str, str]
    tags: dict[str, str]
    points: list[Point]
    files: list[tuple[Path, str]] = field(default_factory=list)


def tracked_run(run: Path, pictures: bool = False, models: bool = False) -> Tracked:
    """What a tracker gets of the run in a folder.

    Args:
        run: folder of the run.
        pictures: also figures that show images of cases, and the report where it has such figures.
        models: also the model files.

    Raises:
        DataError: the folder is not that of a run.
    """
    summary = read_summary(run)
    points = sorted([*_rounds(summary), *_final(summary)], key=lambda point: point.step)
    versions = {f"version.{name}": str(value) for name, value in part(summary, "versions").items()}
    tags = {"run_id": str(summary.get("run_id", "")), "date": str(summary.get("date", "")), **versions}
    found = Tracked(str(summary.get("job") or run.name), _parameters(summary), tags, points)
    found.files = list(_files(run, summary, pictures, models))
    return found


def _parameters(summary: Summary) -> dict[str, str]:
    history = rows(summary, "rounds")
    chosen: dict[str, Any] = {name: summary[name] for name in _PARAMETERS if name in summary}
    for name in NESTED:
        chosen |= flat(part(summary, name), name)
    chosen |= flat(dict(history[-1].get("rule") or {}) if history else {}, "rule")
    chosen |= {"sites": len(summary.get("sites") or []), "rounds": len(history)}
    return {name: plain(value) for name, value in chosen.items()}


def flat(content: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The values of nested objects, by their names joined with points."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}.{key}"
        result |= flat(value, name) if isinstance(value, Mapping) else {name: value}
    return result


def _rounds(summary: Summary) -> Iterator[Point]:
    """Numbers of the rounds: of each site and output, and of all sites together."""
    kind = objective_of_run(summary)
    score = kind.primary
    for row in history_frame(summary).to_dict("records"):
        for name in _SITE_NUMBERS:
            # What was measured on the model that a site received belongs to the round before.
            step = row["made"] if name == "val_loss" else row.get("round")
            yield from known_point(f"{name}/{row['site']}", row.get(name), step)
        for output in (MEAN, *kind.outputs):
            value = row.get(score.title if output == MEAN else f"{score.title} {output}")
            yield from known_point(f"val_{score.name}/{row['site']}/{output}", value, row["made"])
    for entry in rows(summary, "rounds"):
        made = number(entry.get("round"))
        yield from known_point(f"val_{score.name}/pooled/{MEAN}", entry.get(f"val_{score.name}"), made)
        yield from known_point("round_seconds", entry.get("seconds"), None if made is None else nth(int(made)))


def _final(summary: Summary) -> Iterator[Point]:
    """Scores of the last model on held-out cases, and what the run cost, at the step of the last round."""
    last, kind = len(rows(summary, "rounds")), objective_of_run(summary)
    frame, means = score_frame(summary), {MEAN_OF_SITES: "mean", MEAN_OF_CASES: "pooled"}
    for site, row in frame.iterrows():
        for score in kind.scores:
            for output in (*kind.outputs, MEAN):
                name = f"final_{score.name}/{means.get(str(site), site)}/{output}"
                yield from known_point(name, row.get(f"{score.title} {output}"), last)
    for name, value in part(summary, "cost").items():
        yield from known_point(f"cost/{name}", value, last)
    yield from known_point(f"best_{kind.primary.name}", part(summary, "best").get(f"mean_{kind.primary.name}"), last)


def known_point(name: str, value: Any, step: Any) -> Iterator[Point]:
    """A number at a step, under a name that trackers take; nothing where there is no number."""
    known, at = number(value), number(step)
    if known is not None and at is not None:
        yield Point(_STRANGE.sub("_", name), known, int(at))


def _files(run: Path, summary: Summary, pictures: bool, models: bool) -> Iterator[tuple[Path, str]]:
    """Files to attach that are there; images of cases only where they were asked for."""
    report = run / "report"
    figures = sorted((report / "figures").glob("*.png"))
    shown = [path for path in figures if pictures or path.stem not in PICTURES]
    page = [report / "report.html"] if pictures or len(shown) == len(figures) else []
    for path in (report / "summary.json", *page):
        if path.is_file():
            yield path, "report"
    yield from ((path, "report/figures") for path in shown)
    if models:
        yield from ((run / file, "models") for file in sorted(set(last_models(summary).values())))
