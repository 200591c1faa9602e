"""Regions that are not drawn in every case, on the page of a run: behind which scores how many cases stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedseg.evaluation.report.text_tables import TextTable, shown
from fedseg.evaluation.summary import Summary, number, objective_of_run, part

EXCLUDE = "exclude"
"""Convention under which cases that lack a region have no score of it, too."""


def drawn_counts(summary: Summary, model: str = "final") -> dict[str, dict[str, int]]:
    """Of each site the scored cases in which each region is drawn; empty where some site does not tell.

    A case in which a region is drawn has a score of it, or is counted as one that lacks it.
    """
    kind, found = objective_of_run(summary), {}
    excluded = (summary.get("empty_convention") or part(summary, model).get("empty_convention")) == EXCLUDE
    for site, scored in part(summary, model, "sites").items():
        defined = part(scored, "defined")
        counts = {name: _drawn(part(scored, "empty", name), defined.get(name), excluded) for name in kind.outputs}
        if kind.partial and all(count is not None for count in counts.values()):
            found[site] = {name: count for name, count in counts.items() if count is not None}
    return found


def _drawn(empty: Mapping[str, Any], defined: Any, excluded: bool) -> int | None:
    scored = number(defined)
    if scored is None:
        return None
    lacking = sum(number(empty.get(place)) or 0 for place in ("both", "reference")) if excluded else 0
    return int(scored + lacking)


def drawn_table(summary: Summary, model: str = "final") -> TextTable:
    """Scored cases by site and region; no rows where every region is drawn in every case."""
    kind, counts = objective_of_run(summary), drawn_counts(summary, model)
    cases = {site: number(scored.get("cases")) for site, scored in part(summary, model, "sites").items()}
    if all(count >= (cases[site] or 0) for site, told in counts.items() for count in told.values()):
        return TextTable(())
    body = [
        [site, shown(cases[site], ".0f"), *(str(told[name]) for name in kind.outputs)] for site, told in counts.items()
    ]
    totals = [str(sum(told[name] for told in counts.values())) for name in kind.outputs]
    body.append(["All sites", shown(sum(cases[site] or 0 for site in counts), ".0f"), *totals])
    return TextTable(("Site", "Cases", *kind.outputs), body, 1)


def drawn_words(summary: Summary, model: str = "final") -> str:
    """What to know of means over regions that rest on different cases; empty where all are drawn."""
    counts = drawn_counts(summary, model)
    if not drawn_table(summary, model).rows:
        return ""
    return some_drawn_words(
        {name: [site for site, told in counts.items() if not told[name]] for name in objective_of_run(summary).outputs}
    )


def some_drawn_words(nowhere: Mapping[str, Sequence[str]]) -> str:
    """What to know of scores where not every region is drawn in every case.

    Args:
        nowhere: by region, the sites at which it is drawn in no scored case.
    """
    alone = [f"{name} at {', '.join(sites)}" for name, sites in nowhere.items() if sites]
    told = f" Nobody drew {'; '.join(alone)}: there is no score of it there." if alone else ""
    return (
        "Not every region is drawn in every case. A score of a region is over the cases in which it is drawn, and the "
        f"mean over regions is one over those that have a score: compare regions between sites, not means.{told}"
    )
