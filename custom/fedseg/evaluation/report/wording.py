"""The words and the printed numbers of a report: the verdict, and every table as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from fedseg.evaluation.report.privacy import filter_rows
from fedseg.evaluation.report.split_words import own_models
from fedseg.evaluation.report.tables import (
    MEAN_OF_CASES,
    MEAN_OF_SITES,
    comparison_frame,
    cost_frame,
    cross_site_frame,
    empty_frame,
    score_frame,
)
from fedseg.evaluation.summary import Summary, number, part, rows, task_of

NOT_AVAILABLE = "n/a"
ALIKE = 0.005  # difference in mean Dice below which a report calls two ways alike
# Shown in sections of their own; whatever else a summary holds is listed under the configuration.
_SECTIONS = (
    *("rounds", "final", "best", "comparison", "cross_site", "events", "privacy", "cost", "stopped"),
    *("task_declaration", "inversion"),
)


_NOT_IN_TABLE = ("coordinates", "secure_noise")


@dataclass(frozen=True)
class TextTable:
    """A table ready to print: header, rows of text, and which of the last rows are totals."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]] = ()
    totals: int = 0
    left: int = 1  # how many columns hold text rather than numbers
    notes: Sequence[str] = field(default_factory=tuple)


def shown(value: Any, form: str = ".3f") -> str:
    """A number in the given form; ``n/a`` for None and NaN."""
    known = number(value)
    return NOT_AVAILABLE if known is None else format(known, form).replace("-", "\N{MINUS SIGN}")


def shown_bytes(value: Any) -> str:
    """Bytes in decimal units: 76.0 MB."""
    known = number(value)
    if known is None:
        return NOT_AVAILABLE
    for unit in ("B", "kB", "MB", "GB"):
        if abs(known) < 1000 or unit == "GB":
            return f"{known:.0f} B" if unit == "B" else f"{known:.1f} {unit}"
        known /= 1000
    raise AssertionError("unreachable")


def shown_seconds(value: Any) -> str:
    """A duration: 42 s, 12 min 5 s, 3 h 2 min."""
    known = number(value)
    if known is None:
        return NOT_AVAILABLE
    if known < 60:
        return f"{known:.1f} s" if known < 10 else f"{known:.0f} s"
    minutes, seconds = divmod(round(known), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def verdict(summary: Summary) -> list[str]:
    """What came out, in sentences."""
    frame = score_frame(summary)
    count = len(rows(summary, "rounds"))
    start = f"After {count} round{'s' * (count != 1)} of training"
    if frame.empty or number(frame.loc[MEAN_OF_SITES, "Dice mean"]) is None:
        return [f"{start}, no result of the final model was reported, so nothing can be said about its quality."]
    sites = frame.drop(index=[MEAN_OF_SITES, MEAN_OF_CASES], errors="ignore")
    cases = shown(frame.loc[MEAN_OF_SITES, "Cases"], ".0f")
    split = part(summary, "final").get("split") or "held-out"
    pooled = frame["Dice mean"].get(MEAN_OF_CASES)
    over_cases = f" ({shown(pooled)} when every case counts the same)" if number(pooled) is not None else ""
    where = f"{len(sites)} sites" if len(sites) > 1 else f"one site, {sites.index[0]}"
    result = shown(frame.loc[MEAN_OF_SITES, "Dice mean"])
    whose = "each site's own model, on its own cases, reaches" if own_models(summary) else "the final model reaches"
    sentences = [f"{start}, {whose} a mean Dice of {result}{over_cases} on {cases} {split} cases of {where}."]
    return sentences + _extremes(summary, sites) + _best_model(summary) + _comparisons(summary)


def _extremes(summary: Summary, sites: pd.DataFrame) -> list[str]:
    sentences = []
    # A site without any case of a hard region is no better for it: rank sites that have every region, if there are two.
    complete = sites.dropna(subset=[f"Dice {r}" for r in task_of(summary).region_names])
    ranked = (complete if len(complete) > 1 else sites)["Dice mean"].dropna().sort_values(ascending=False)
    if len(ranked) > 1:
        sentences.append(
            f"It is best at {ranked.index[0]} ({ranked.iloc[0]:.3f}) and weakest at {ranked.index[-1]} "
            f"({ranked.iloc[-1]:.3f})."
        )
    regions = {r: number(sites[f"Dice {r}"].mean()) for r in task_of(summary).region_names}
    known = {r: v for r, v in regions.items() if v is not None}
    if len(known) > 1:
        low = min(known, key=lambda r: known[r])
        sentences.append(f"The hardest region is {low} (mean Dice {known[low]:.3f}).")
    return sentences


def _best_model(summary: Summary) -> list[str]:
    best, final = part(summary, "best"), part(summary, "final")
    value, last = number(best.get("mean_dice")), number(final.get("mean_dice"))
    if value is None or last is None:
        return []
    index, split = best.get("round", "?"), best.get("split") or "final"
    if own_models(summary):
        start = f"The sites' own models were best on validation cases in round {index}"
        return [f"{start}; those reach {value:.3f} on the {split} cases."]
    return [
        f"The best model on validation cases was that of round {index}; on the {split} cases it reaches {value:.3f}."
    ]


def _comparisons(summary: Summary) -> list[str]:
    differences = comparison_frame(summary)["difference"].dropna()
    if differences.empty:
        return []
    better, worse = (differences > ALIKE).sum(), (differences < -ALIKE).sum()
    alike = len(differences) - better - worse
    return [
        f"Of {len(differences)} other ways to segment the same cases, the federated model is better than "
        f"{better or 'none'}, worse than {worse or 'none'} and about equal (within {ALIKE}) to {alike or 'none'}."
    ]


def score_table(summary: Summary, model: str) -> TextTable:
    """Cases, Dice and HD95 per site and region."""
    frame = score_frame(summary, model)
    if frame.empty:
        return TextTable(())
    regions = task_of(summary).region_names
    distances = any(frame[f"HD95 {r}"].notna().any() for r in regions)
    dice = [f"Dice {r}" for r in (*regions, "mean")]
    hd95 = [f"HD95 {r}" for r in regions] if distances else []
    body = [
        [str(site), shown(row["Cases"], ".0f"), *(shown(row[c]) for c in dice), *(shown(row[c], ".1f") for c in hd95)]
        for site, row in frame.iterrows()
    ]
    notes = [] if distances else ["HD95 was not measured in this run."]
    if frame[dice].loc[[i for i in frame.index if i != MEAN_OF_CASES]].isna().any().any():
        notes.append(f"{NOT_AVAILABLE}: no case at this site has this region, or the site sent no result.")
    totals = 1 + (MEAN_OF_CASES in frame.index)
    return TextTable(("Site", "Cases", *dice, *(f"{c} (mm)" for c in hd95)), body, totals, 1, notes)


def empty_table(summary: Summary, model: str) -> TextTable:
    """Where regions were empty."""
    frame = empty_frame(summary, model)
    return TextTable(list(frame.columns), [[str(v) for v in row] for row in frame.to_numpy()], 0, 2)


def comparison_table(summary: Summary) -> TextTable:
    """Other ways beside the federated model on the same sites, with a plain statement."""
    body = []
    for row in comparison_frame(summary).itertuples():
        scored = f"{row.sites}" if row.sites else "all"
        text = [shown(row.dice), shown(row.federated), shown(row.difference, "+.3f")]
        body.append([row.name, row.description, statement(row.difference), scored, *text])
    header = ("Other way", "What it is", "The federated model is", "Sites", "Dice", "Federated", "Difference")
    return TextTable(header, body, 0, 3)


def statement(difference: Any) -> str:
    """Whether the federated model beats the other way."""
    known = number(difference)
    if known is None:
        return "not comparable"
    if abs(known) <= ALIKE:
        return "about equal"
    return "better" if known > 0 else "worse"


def cross_site_table(summary: Summary) -> TextTable:
    """Rows: where a model was trained; columns: where it was scored."""
    frame = cross_site_frame(summary)
    body = [[str(name), *(shown(v) for v in row)] for name, row in zip(frame.index, frame.to_numpy(), strict=True)]
    return TextTable(("Trained at", *(str(c) for c in frame.columns)), body, int("federated" in frame.index))


def cost_table(summary: Summary) -> TextTable:
    """What each site sent, received and computed, and the run's own totals."""
    frame = cost_frame(summary)
    body = [
        [
            str(site),
            str(int(row["rounds"])),
            shown_bytes(row["bytes up"]),
            shown_bytes(row["bytes down"]),
            shown_seconds(row["seconds"]),
        ]
        for site, row in frame.iterrows()
    ]
    total = part(summary, "cost")
    if total:
        up, down = shown_bytes(total.get("bytes_up")), shown_bytes(total.get("bytes_down"))
        count = str(len(rows(summary, "rounds")))
        body.append(["Whole run (wall clock)", count, up, down, shown_seconds(total.get("wall_seconds"))])
    return TextTable(("Site", "Rounds", "Sent", "Received", "Time at work"), body, int(bool(total)))


def memory_table(summary: Summary) -> TextTable:
    """Peak resident memory per process."""
    peaks = part(summary, "cost", "peak_rss_mb")
    return TextTable(("Process", "Peak memory"), [[name, shown(mb, ",.0f") + " MB"] for name, mb in peaks.items()])


def privacy_table(summary: Summary) -> TextTable:
    """Whatever each site's mechanism states, and the run's total."""
    sites = part(summary, "privacy", "sites")
    total = summary_total = part(summary, "privacy", "total")
    named = {**sites, **({"Total": summary_total} if total else {})}
    keys = list(dict.fromkeys(key for entry in named.values() for key in part(entry) if key not in _NOT_IN_TABLE))
    body = [[str(name), *(plain(part(entry).get(key)) for key in keys)] for name, entry in named.items()]
    return TextTable(("Site", *(key.replace("_", " ") for key in keys)), body, int(bool(total)))


def privacy_facts(summary: Summary) -> TextTable:
    """What the privacy section says besides its sites, e.g. the parameters of an encryption."""
    rest = {k: v for k, v in part(summary, "privacy").items() if k not in ("sites", "total", "filters") or not v}
    if not isinstance(part(summary, "privacy").get("total"), Mapping):
        rest |= {"total": part(summary, "privacy").get("total")}
    return _facts({k: v for k, v in rest.items() if v not in (None, {}, [])})


def filter_table(summary: Summary) -> TextTable:
    """The filters through which every update went, in order, and what they are for."""
    return TextTable(("Filter", "Arguments", "What it does"), filter_rows(summary), 0, 3)


def event_table(summary: Summary) -> TextTable:
    """Refusals, failures and sites left out."""
    body = [[plain(e.get("round")), plain(e.get("site")), plain(e.get("what"))] for e in rows(summary, "events")]
    return TextTable(("Round", "Site", "What happened"), body, 0, 3)


def configuration_table(summary: Summary) -> TextTable:
    """Everything else that the summary states: job, versions, seeds, the aggregation rule."""
    history = rows(summary, "rounds")
    rule = {"rule": history[-1]["rule"]} if history and history[-1].get("rule") else {}
    rest = {k: v for k, v in summary.items() if k not in _SECTIONS}
    models = {f"{m} model": part(summary, m).get("model") for m in ("final", "best") if part(summary, m).get("model")}
    return _facts({**rest, **rule, **models})


def plain(value: Any) -> str:
    """A setting as a person would write it."""
    if value is None:
        return NOT_AVAILABLE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(plain(v) for v in value)
    return str(value)


def _facts(content: Mapping[str, Any]) -> TextTable:
    return TextTable(("Setting", "Value"), [[k, v] for k, v in _flat(content).items()], 0, 2)


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    result: dict[str, str] = {}
    for key, value in content.items():
        name = f"{prefix}{key}".replace("_", " ")
        result |= _flat(value, f"{name}: ") if isinstance(value, Mapping) else {name: plain(value)}
    return result
