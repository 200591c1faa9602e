"""What came out of a run, in sentences: the first thing on its page."""

from __future__ import annotations

import pandas as pd

from fedseg.contract.round_numbers import nth
from fedseg.evaluation.report.split_words import own_models, private_layers
from fedseg.evaluation.report.spread import spread_words
from fedseg.evaluation.report.tables import (
    MEAN_OF_CASES,
    MEAN_OF_SITES,
    comparison_frame,
    mean_column,
    score_frame,
)
from fedseg.evaluation.report.text_tables import ALIKE, counted, shown, statement
from fedseg.evaluation.summary import Summary, number, objective_of_run, part, participation, rows, site_names
from fedseg.tasks.objective import Objective


def verdict(summary: Summary, cases: pd.DataFrame) -> list[str]:
    """What came out, in paragraphs: who was missing; the result, and how it spreads; what it compares with.

    Args:
        summary: of the run.
        cases: see ``final_case_facts``; empty where nobody knows single cases.
    """
    missing = [*participation(summary), *_incomplete(summary)]
    frame, kind = score_frame(summary), objective_of_run(summary)
    start = f"After {counted(len(rows(summary, 'rounds')), 'round')} of training"
    if frame.empty or number(frame.loc[MEAN_OF_SITES, mean_column(kind)]) is None:
        nothing = f"{start}, no result of the final model was reported, so nothing can be said about its quality."
        return [*([" ".join(missing)] if missing else []), nothing]
    sites = frame.drop(index=[MEAN_OF_SITES, MEAN_OF_CASES], errors="ignore")
    spread = spread_words(cases, kind)
    compared = _best_model(summary) + _comparisons(summary)
    result = [_result(summary, start, frame, sites), *_extremes(kind, sites), *spread]
    return [" ".join(sentences) for sentences in (missing, result, compared) if sentences]


def _incomplete(summary: Summary) -> list[str]:
    """At which sites training cases lacked an optional channel of the task."""
    told = {site: part(entry) for entry in rows(summary, "rounds") for site, entry in part(entry, "sites").items()}
    counts = {
        site: (number(report.get("incomplete_samples")), number(report.get("num_samples")))
        for site, report in told.items()
    }
    found = [
        f"{lacking:.0f} of {cases:.0f} at {site}" for site, (lacking, cases) in counts.items() if lacking and cases
    ]
    return [f"Training cases that lack a channel: {', '.join(found)}."] if found else []


def phantom_words(summary: Summary) -> str:
    """Which sites have images that a program drew; empty where none has."""
    drawn = [str(site) for site in summary.get("phantoms") or []]
    if not drawn:
        return ""
    whose = "All images" if set(drawn) >= set(site_names(summary)) else f"The images of {', '.join(drawn)}"
    return (
        f"{whose} were drawn by a program (phantoms). The numbers here test software; they say nothing about patients."
    )


def _result(summary: Summary, start: str, frame: pd.DataFrame, sites: pd.DataFrame) -> str:
    kind = objective_of_run(summary)
    score, form, column = kind.primary.title, kind.primary.form, mean_column(kind)
    split = part(summary, "final").get("split") or "held-out"
    pooled = number(frame[column].get(MEAN_OF_CASES))
    over_cases = "" if pooled is None else f" ({shown(pooled, form)} when every case counts the same)"
    where = counted(len(sites), "site") if len(sites) > 1 else f"one site, {sites.index[0]}"
    whose = "each site's own model, on its own cases, reaches" if own_models(summary) else "the final model reaches"
    if private_layers(summary):
        whose = "the final model, at each site with the layers that this site keeps for itself, reaches"
    count = number(frame.loc[MEAN_OF_SITES, "Cases"])
    cases = f"{split} cases" if count is None else counted(int(count), f"{split} case")
    mean = shown(frame.loc[MEAN_OF_SITES, column], form)
    return f"{start}, {whose} a mean {score} of {mean}{over_cases} on {cases} of {where}."


def _extremes(kind: Objective, sites: pd.DataFrame) -> list[str]:
    sentences, score = [], kind.primary
    # A site without any case of a hard region is no better for it: rank sites that have every region, if there are two.
    complete = sites.dropna(subset=[f"{score.title} {output}" for output in kind.outputs])
    means = (complete if len(complete) > 1 else sites)[mean_column(kind)].dropna()
    ranked = means.loc[score.order(means.to_dict())]
    if len(ranked) > 1:
        best, weakest = (format(ranked.iloc[place], score.form) for place in (0, -1))
        sentences.append(f"It is best at {ranked.index[0]} ({best}) and weakest at {ranked.index[-1]} ({weakest}).")
    outputs = {output: number(sites[f"{score.title} {output}"].mean()) for output in kind.outputs}
    known = {output: value for output, value in outputs.items() if value is not None}
    if len(known) > 1:
        worst = min(known, key=lambda output: score.goodness(known[output]))
        found = format(known[worst], score.form)
        sentences.append(f"The hardest {kind.output} is {worst} (mean {score.title} {found}).")
    return sentences


def best_is_last(summary: Summary) -> bool:
    """Whether the best model on validation cases is the one after the last round, so that its scores are the same."""
    best = number(part(summary, "best").get("round"))
    return best is not None and best == len(rows(summary, "rounds")) - 1


def _best_model(summary: Summary) -> list[str]:
    best, final = part(summary, "best"), part(summary, "final")
    score = objective_of_run(summary).primary
    value, last = number(best.get(f"mean_{score.name}")), number(final.get(f"mean_{score.name}"))
    index = number(best.get("round"))
    if value is None or last is None or index is None:
        return []
    if best_is_last(summary):
        return ["On validation cases this model was the best of all rounds."]
    split = best.get("split") or "final"
    whose = ("models of the sites were", "those reach") if own_models(summary) else ("model was that", "it reaches")
    chosen = (
        " It was chosen on the very cases on which it is scored, so this number is too good."
        if "validation" in split
        else ""
    )
    words = f"The best {whose[0]} after round {nth(int(index))}, judged on validation cases; on the {split} cases "
    return [f"{words}{whose[1]} {value:{score.form}}.{chosen}"]


def _comparisons(summary: Summary) -> list[str]:
    differences = comparison_frame(summary)["difference"].dropna()
    if differences.empty:
        return []
    found = [statement(difference, objective_of_run(summary).primary) for difference in differences]
    better, worse, alike = (found.count(word) for word in ("better", "worse", "about equal"))
    return [
        f"Of {len(differences)} other ways to segment the same cases, the federated model is better than "
        f"{better or 'none'}, worse than {worse or 'none'} and about equal (within {ALIKE}) to {alike or 'none'}."
    ]
