"""Every model at every site: the matrix of a cross-site evaluation, from what sites said of the models they scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedseg.contract.scores import BESIDE, is_withheld, withheld_words
from fedseg.evaluation.case_intervals import told_bounds
from fedseg.evaluation.fairness import Fairness, fairness_of_sites
from fedseg.tasks.objective import MEAN, Objective

CROSS_SITE = "cross_site_evaluation"
"""Key of a matrix in the results and in the summary of a run."""
LAST, BEST, AVERAGE, LOCAL = "last", "best", "average", "local"
PERSONAL, WITHOUT, FILE = "personal", "without", "file"
_TITLES = {
    LAST: "Last global model",
    BEST: "Best global model",
    AVERAGE: "Average of the global models",
    LOCAL: "{}: own last model",
    PERSONAL: "{}: personal model",
    WITHOUT: "Trained without {}",
    FILE: "{} (file)",
}
KINDS = tuple(_TITLES)
"""Kinds of models, in the order of the rows."""


@dataclass(frozen=True)
class MatrixModel:
    """A row of the matrix.

    Attributes:
        kind: one of ``KINDS``.
        of: the site whose model it is, or without which it was trained; of a file its name; empty for a global model.
        digest: of its arrays, see ``files.digest``; empty for a model that did not come.
        same_as: name of an earlier row whose model has the very same arrays; such a model is scored once.
        missing: why there is no such model; empty where there is one.
    """

    kind: str
    of: str = ""
    digest: str = ""
    same_as: str = ""
    missing: str = ""

    @property
    def name(self) -> str:
        """In files and messages, such as ``local-alpha``."""
        return f"{self.kind}-{self.of}" if self.of else self.kind

    @property
    def title(self) -> str:
        """For people."""
        return _TITLES[self.kind].format(self.of)


@dataclass(frozen=True)
class Cell:
    """One model at one site.

    Attributes:
        scores: what the site said: ``cases``, and per score and output the mean, see ``Objective.summarise``; empty
            where there is nothing.
        withheld: why the site keeps the scores to itself, such as ``fewer than 5 cases``; empty where it does not.
        missing: why there are none; empty where there are, or where they are withheld.
    """

    scores: Mapping[str, Any] = field(default_factory=dict)
    withheld: str = ""
    missing: str = ""

    @property
    def cases(self) -> int | None:
        """How many cases were scored; None where nobody knows."""
        return self.scores.get("cases")

    def score(self, name: str, output: str = MEAN) -> float | None:
        """The mean over the site's cases."""
        value: float | None = self.scores.get(name, {}).get(output)
        return value

    def interval(self, name: str, output: str = MEAN) -> tuple[float, float] | None:
        """The site's own confidence interval of the mean; None where it made none."""
        return told_bounds(self.scores, name, output)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a summary."""
        return {**self.scores, **{k: v for k, v in (("withheld", self.withheld), ("missing", self.missing)) if v}}


NOTHING = Cell(missing="not scored")


def cell_of(part: Mapping[str, Any]) -> Cell:
    """A cell from a site's answer for one model and split, see ``contract.scores``."""
    if is_withheld(part):
        return Cell(withheld=withheld_words(part))
    if not part.get("cases"):
        return Cell(missing="no cases to score")
    return Cell({key: value for key, value in part.items() if key not in ("split", *BESIDE)})


@dataclass
class CrossSiteMatrix:
    """Models by sites.

    >>> from fedseg.tasks.registry import BRATS
    >>> from fedseg.tasks.objective import objective_of
    >>> matrix = CrossSiteMatrix(objective_of(BRATS), ["a", "b"])
    >>> matrix.add(MatrixModel("last"), {s: Cell({"cases": 3, "dice": {"mean": d}}) for s, d in (("a", .8), ("b", .7))})
    >>> matrix.worst_first()
    ['b', 'a']

    Attributes:
        objective: kind of task, whose primary score orders sites and fills the heat map.
        sites: those that train.
        evaluators: those that score only.
        models: the rows, in the order in which they were scored.
        cells: by the names of model and site.
    """

    objective: Objective
    sites: Sequence[str]
    evaluators: Sequence[str] = ()
    models: list[MatrixModel] = field(default_factory=list)
    cells: dict[str, dict[str, Cell]] = field(default_factory=dict)

    # ------------------------------------------------------------------ making it

    def add(self, model: MatrixModel, cells: Mapping[str, Cell]) -> None:
        """Add a row; sites of which nothing is said get an empty cell."""
        why = Cell(missing=model.missing) if model.missing else NOTHING
        self.models.append(model)
        self.cells[model.name] = {site: cells.get(site, why) for site in (*self.sites, *self.evaluators)}

    def twin(self, digest: str) -> MatrixModel | None:
        """The first row whose model has this digest; None without one."""
        return next((model for model in self.models if model.digest == digest and not model.same_as), None)

    # ------------------------------------------------------------------ reading it

    def ordered(self) -> list[MatrixModel]:
        """The rows by kind, and within a kind by name."""
        return sorted(self.models, key=lambda model: (KINDS.index(model.kind), model.of))

    def worst_first(self) -> list[str]:
        """All sites, the one at which the first scored model of ``ordered`` does worst first; those without a score
        last, by name."""
        names, primary = sorted({*self.sites, *self.evaluators}), self.objective.primary
        row = next((self.cells[m.name] for m in self.ordered() if self._scored(self.cells[m.name])), {})
        known = {site: value for site in names if (value := _score(row, site, primary.name)) is not None}
        order = sorted(known, key=lambda site: primary.goodness(known[site]))
        return [*order, *(site for site in names if site not in known)]

    def _scored(self, row: Mapping[str, Cell]) -> bool:
        return any(cell.score(self.objective.primary.name) is not None for cell in row.values())

    def counts(self) -> dict[str, int | None]:
        """How many cases each site scores: the most of any of its cells; None where no cell tells."""
        found: dict[str, int | None] = {}
        for site in self.worst_first():
            known = [c for row in self.cells.values() if (c := row[site].cases) is not None]
            found[site] = max(known, default=None)
        return found

    def withheld(self) -> dict[str, str]:
        """Why each site that keeps all its scores to itself does so."""
        return {
            site: next(iter(texts))
            for site in self.worst_first()
            if len(texts := {row[site].withheld for row in self.cells.values() if not row[site].missing}) == 1
            and "" not in texts
        }

    def fairness(self, model: MatrixModel) -> Fairness:
        """How evenly a model serves the sites that have a score."""
        row = self.cells[model.name]
        return fairness_of_sites(self.objective, {site: cell.scores for site, cell in row.items() if cell.scores})

    def rows(self) -> Iterator[dict[str, Any]]:
        """One line for each model, site, score and output: the long form, for files.

        A cell without numbers has one line, in which ``note`` says why.
        """
        for model in self.ordered():
            facts = {"model": model.name, "kind": model.kind, "of": model.of, "same_as": model.same_as}
            for site in self.worst_first():
                cell = self.cells[model.name][site]
                place = {**facts, "evaluated_at": site, "cases": cell.cases}
                if not cell.scores:
                    note = f"withheld: {cell.withheld}" if cell.withheld else f"missing: {cell.missing}"
                    yield {**place, "note": note}
                for score in self.objective.scores if cell.scores else ():
                    for output, value in cell.scores.get(score.name, {}).items():
                        low, high = cell.interval(score.name, output) or (None, None)
                        yield {
                            **place,
                            "region": output,
                            "metric": score.name,
                            "value": value,
                            "low": low,
                            "high": high,
                        }

    # ------------------------------------------------------------------ as JSON

    def to_dict(self) -> dict[str, Any]:
        """As it stands in results and summaries: sites from the worst on."""
        return {
            "sites": [site for site in self.worst_first() if site in self.sites],
            "evaluators": [site for site in self.worst_first() if site in self.evaluators],
            "models": [{"name": m.name, **asdict(m)} for m in self.ordered()],
            "cells": {
                m.name: {site: self.cells[m.name][site].to_dict() for site in self.worst_first()}
                for m in self.ordered()
            },
            "fairness": {m.name: self.fairness(m).to_dict() for m in self.ordered()},
        }


def matrix_of(objective: Objective, content: Mapping[str, Any]) -> CrossSiteMatrix:
    """The matrix from what ``to_dict`` gave."""
    matrix = CrossSiteMatrix(objective, list(content["sites"]), list(content["evaluators"]))
    for entry in content["models"]:
        row = content["cells"][entry["name"]]
        matrix.add(
            MatrixModel(**{key: value for key, value in entry.items() if key != "name"}),
            {site: _read_cell(part) for site, part in row.items()},
        )
    return matrix


def _read_cell(part: Mapping[str, Any]) -> Cell:
    scores = {key: value for key, value in part.items() if key not in ("withheld", "missing")}
    return Cell(scores, str(part.get("withheld", "")), str(part.get("missing", "")))


def _score(row: Mapping[str, Cell], site: str, name: str, output: str = MEAN) -> float | None:
    return row[site].score(name, output) if site in row else None
