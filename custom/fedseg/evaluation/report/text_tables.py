"""The printed numbers of a report: every table as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedseg.contract.events import when
from fedseg.evaluation.comparison_tests import NO_FEDERATED, TEST, UNTESTED
from fedseg.evaluation.cross_site import CROSS_SITE
from fedseg.evaluation.report.tables import (
    MEAN_OF_CASES,
    beside_frame,
    comparison_frame,
    cost_frame,
    cross_site_frame,
    mean_column,
    score_frame,
)
from fedseg.evaluation.summary import Summary, number, objective_of_run, part, rows, site_names
from fedseg.tasks.objective import Score

NOT_AVAILABLE = "n/a"
ALIKE = 0.005  # difference in the mean score below which a report calls two ways alike
# Shown in sections of their own; whatever else a summary holds is listed under the configuration.
_SECTIONS = (
    *("rounds", "final", "best", "average", "comparison", "cross_site", "events", "privacy", "cost", "stopped"),
    *("task_declaration", "inversion", "reports", "cases", "phantoms", "voxels", CROSS_SITE, "evaluators"),
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


def counted(count: int, noun: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{count} {noun}{'s' * (count != 1)}"


def shown(value: Any, form: str = ".3f") -> str:
    """A number in the given form; ``n/a`` for None and NaN."""
    known = number(value)
    return NOT_AVAILABLE if known is None else format(known, form).replace("-", "\N{MINUS SIGN}")


def difference_words(name: str, reference: str, score: Score, told: Mapping[str, Any]) -> str:
    """What a paired test of two ways says, in a sentence.

    Args:
        name, reference: the two ways; the difference is the first less the second.
        score: of which it is.
        told: see ``paired_tests.compare_with``.
    """
    patients = counted(int(told["patients"]), "patient")
    if told["difference"] is None:
        return f"{name} less {reference}: no patient has a {score.title} in both."
    bounds = "" if told["low"] is None else f" ({shown(told['low'], score.form)} to {shown(told['high'], score.form)})"
    p, corrected = shown(told["p"], ".3g"), shown(told["p_holm"], ".3g")
    difference = f"{score.title} {shown(told['difference'], score.form)}{bounds}"
    return f"{name} less {reference}: {difference} on {patients}, p {p}, corrected {corrected}."


def comparison_words(summary: Summary, entry: Mapping[str, Any]) -> str:
    """What the paired test of the federated model and another way says, or why there is none.

    Args:
        summary: of the run.
        entry: of its ``comparison``.
    """
    test = part(entry, TEST)
    if not test:
        return f"No paired test: {entry.get(UNTESTED) or NO_FEDERATED}"
    return difference_words("federated model", str(entry["name"]), objective_of_run(summary).primary, test)


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


def shown_watt_hours(kwh: Any) -> str:
    """An energy of so many kWh in watt hours, with three figures that count or all of the whole number: 0.0123, 1,250.

    >>> shown_watt_hours(1.2345e-5), shown_watt_hours(1.25), shown_watt_hours(None)
    ('0.0123', '1,250', 'n/a')
    """
    known = number(kwh)
    return shown(None if known is None else 1000 * known, ",.0f" if known is not None and known >= 0.1 else ".3g")


def shown_seconds(value: Any) -> str:
    """A duration: 42 s, 12 min 5 s, 3 h 2 min."""
    known = number(value)
    if known is None:
        return NOT_AVAILABLE
    if known < 60:
        return f"{known:.1f} s" if known < 10 else f"{known:.0f} s"
    minutes, seconds = divmod(round(known), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def score_table(summary: Summary, model: str) -> TextTable:
    """Cases and scores per site and output."""
    frame, kind = score_frame(summary, model), objective_of_run(summary)
    if frame.empty:
        return TextTable(())
    if len(kind.outputs) == 1:
        frame = frame.drop(columns=mean_column(kind))  # the same number again
    forms, header, notes = {"Cases": ".0f"}, ["Site", "Cases"], []
    for score in kind.main_scores:
        columns = [c for c in frame.columns if str(c).startswith(f"{score.title} ")]
        if score != kind.primary and not frame[columns].notna().any().any():
            notes.append(f"{score.title} was not measured in this run.")
            continue
        forms |= dict.fromkeys(columns, score.form)
        header += [f"{column} ({score.unit})" if score.unit else column for column in columns]
    body = [[str(site), *(shown(row[c], form) for c, form in forms.items())] for site, row in frame.iterrows()]
    primary = [c for c in frame.columns if str(c).startswith(f"{kind.primary.title} ")]
    if frame[primary].loc[[i for i in frame.index if i != MEAN_OF_CASES]].isna().any().any():
        notes.append(f"{NOT_AVAILABLE}: no case at this site has this {kind.output}, or the site sent no result.")
    return TextTable(header, body, 1 + (MEAN_OF_CASES in frame.index), 1, notes)


def beside_table(summary: Summary, which: str) -> TextTable:
    """What each site has for itself beside the final model; empty where no site has such a model.

    Args:
        summary: of the run.
        which: one of ``contract.scores.BESIDE``.
    """
    frame, kind, word = beside_frame(summary, which), objective_of_run(summary), which.replace("_", "-")
    title, form = kind.primary.title, kind.primary.form
    outputs = (f"{title} {output} ({word})" for output in kind.outputs)
    header = ("Site", f"{title}, final model", f"{title}, {word} model", "Difference", *outputs)
    return TextTable(header, [[str(site), *(shown(v, form) for v in row)] for site, row in frame.iterrows()], 1)


def empty_table(summary: Summary, model: str) -> TextTable:
    """Cases that the kind of task counts, such as those with an empty region, per site and output that has any."""
    objective, body, header = objective_of_run(summary), [], []
    for name, kinds in objective.counts.items():
        header = ["Site", objective.output.capitalize(), *kinds.values()]
        for site, result in part(summary, model, "sites").items():
            for output, counts in part(result, name).items():
                found = [int(number(part(counts).get(kind)) or 0) for kind in kinds]
                body += [[site, output, *map(str, found)]] if any(found) else []
    return TextTable(header, body, 0, 2)


def comparison_table(summary: Summary) -> TextTable:
    """Other ways beside the federated model on the same sites, with a plain statement."""
    body, score = [], objective_of_run(summary).primary
    for row in comparison_frame(summary).itertuples():
        scored = f"{row.sites}" if row.sites else "all"
        text = [shown(row.score, score.form), shown(row.federated, score.form), shown(row.difference, f"+{score.form}")]
        body.append([row.name, row.description, statement(row.difference, score), scored, *text])
    header = ("Other way", "What it is", "The federated model is", "Sites", score.title, "Federated", "Difference")
    notes = [comparison_words(summary, entry) for entry in rows(summary, "comparison")]
    return TextTable(header, body, 0, 3, notes)


def statement(difference: Any, score: Score) -> str:
    """Whether the federated model beats the other way, whose score is smaller by ``difference``."""
    known = number(difference)
    if known is None:
        return "not comparable"
    if abs(known) <= ALIKE:
        return "about equal"
    return "better" if score.better(known, 0) else "worse"


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


def method_table(summary: Summary) -> TextTable:
    """Each site's last number of what the method's classes declare to report; empty where they declare nothing."""
    declared = part(summary, "reports")
    latest: dict[str, dict[str, Any]] = {}
    for entry in rows(summary, "rounds"):
        for site, report in part(entry, "sites").items():
            known = {name: report.get(name) for name in declared if number(part(report).get(name)) is not None}
            latest.setdefault(site, {}).update(known)
    body = [[site, *(shown(values.get(name)) for name in declared)] for site, values in latest.items()]
    return TextTable(("Site", *(str(meaning) for meaning in declared.values())), body if declared else ())


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


def uncovered_words(summary: Summary) -> str:
    """Which sites had releases on the same patients that their epsilon does not cover; empty for none."""
    counts = {name: part(entry).get("without_guarantee") for name, entry in part(summary, "privacy", "sites").items()}
    found = [f"{name}: {count}" for name, count in counts.items() if count]
    return f"Releases without a guarantee on the same patients before: {', '.join(found)}." if found else ""


def privacy_facts(summary: Summary) -> TextTable:
    """What the privacy section says besides its sites, e.g. the parameters of an encryption."""
    rest = {k: v for k, v in part(summary, "privacy").items() if k not in ("sites", "total", "filters") or not v}
    if not isinstance(part(summary, "privacy").get("total"), Mapping):
        rest |= {"total": part(summary, "privacy").get("total")}
    return _facts({k: v for k, v in rest.items() if v not in (None, {}, [])})


def filter_table(summary: Summary) -> TextTable:
    """The filters through which every update went, in order, and what they are for."""
    body = []
    for entry in rows(part(summary, "privacy"), "filters"):
        arguments = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in entry.items() if k not in ("filter", "meaning"))
        body.append([str(entry["filter"]), arguments, str(entry.get("meaning", ""))])
    return TextTable(("Filter", "Arguments", "What it does"), body, 0, 3)


def event_table(summary: Summary) -> TextTable:
    """Refusals, failures and sites left out."""
    body = [[when(e), plain(e.get("site")), plain(e.get("what"))] for e in rows(summary, "events")]
    return TextTable(("When", "Site", "What happened"), body, 0, 3)


def data_table(summary: Summary) -> TextTable:
    """What each site trained on; empty where the run does not say."""
    cases, voxels = part(summary, "cases"), part(summary, "voxels")
    splits = ("training", "validation", "test")
    body = []
    for site in [s for s in site_names(summary) if s in cases or s in voxels]:
        sizes = [" x ".join(f"{size:g}" for size in each) for each in voxels.get(site, [])]
        more = f" and {len(sizes) - 1} more" if len(sizes) > 1 else ""
        counts = [shown(part(cases, site).get(split), ".0f") for split in splits]
        body.append([site, *counts, f"{sizes[0]}{more}" if sizes else NOT_AVAILABLE])
    header = ("Site", "Training cases", "Validation cases", "Test cases", "Voxels (mm), most frequent")
    return TextTable(header, body)


def configuration_table(summary: Summary) -> TextTable:
    """Everything else that the summary states: job, versions, seeds, the aggregation rule."""
    history = rows(summary, "rounds")
    rule = {"rule": history[-1]["rule"]} if history and history[-1].get("rule") else {}
    rest = {k: v for k, v in summary.items() if k not in _SECTIONS}
    files = {which: part(summary, which).get("model") for which in ("final", "best", "average")}
    models = {f"{which} model": file for which, file in files.items() if file}
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
