"""Regions that are not drawn in every case, on the page of an experiment: behind which scores how many cases stand."""

from __future__ import annotations

from fedseg.evaluation.experiment_folder import Experiment
from fedseg.evaluation.report.drawn import some_drawn_words
from fedseg.evaluation.report.experiment.subject import regions_of, site_facts
from fedseg.evaluation.report.text_tables import NOT_AVAILABLE, TextTable
from fedseg.evaluation.summary import number, part


def tested(experiment: Experiment) -> dict[str, dict[str, int]]:
    """Of each site the tested cases (``""``), and those in which each region is drawn.

    A case in which a region is drawn has a score of it, or says in which of reference and prediction it is missing.
    """
    rows = experiment.results[experiment.results["metric"] == experiment.results["metric"].iloc[0]]
    drawn = rows[rows["value"].notna() | (rows["empty"] != "")]
    counts = drawn.groupby(["evaluated_at", "region"])["case"].nunique()
    every = rows.groupby("evaluated_at")["case"].nunique()
    return {
        site: {"": int(every[site]), **{name: int(counts.get((site, name), 0)) for name in regions_of(experiment)}}
        for site in experiment.sites
    }


def drawn_table(experiment: Experiment) -> TextTable:
    """Cases by site and region; no rows where every region is drawn in every case."""
    regions, found, facts = regions_of(experiment), tested(experiment), site_facts(experiment)
    told = {site: part(facts, site, "drawn") for site in experiment.sites}
    if not any(told.values()) and all(count == counts[""] for counts in found.values() for count in counts.values()):
        return TextTable(())
    body = []
    for site, counts in found.items():
        if told[site]:
            every = (number(told[site].get(name)) for name in regions)
            body.append([site, "all", *(NOT_AVAILABLE if n is None else f"{n:.0f}" for n in every)])
        body.append([site, f"tested ({counts['']})", *(str(counts[name]) for name in regions)])
    return TextTable(("Site", "Cases", *regions), body, 0, 2)


def drawn_words(experiment: Experiment) -> str:
    """What to know of means over regions that rest on different cases; empty where all are drawn."""
    if not drawn_table(experiment).rows:
        return ""
    found = tested(experiment)
    nowhere = {name: [site for site in found if not found[site][name]] for name in regions_of(experiment)}
    return some_drawn_words(nowhere)
