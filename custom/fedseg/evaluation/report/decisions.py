"""What decided about the rounds of a run, for people: rule, weights, who was asked, and why the training ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fedseg.contract.round_numbers import nth
from fedseg.evaluation.report.tables import history_frame
from fedseg.evaluation.report.text_tables import TextTable, plain, shown
from fedseg.evaluation.summary import Summary, number, part, rows, site_names


def rule_words(rule: Mapping[str, Any]) -> str:
    """A rule with its arguments: ``FedCostWAvg with alpha 0.5, cost train_loss``; empty for an empty one."""
    arguments = [f"{key.replace('_', ' ')} {_argument(value)}" for key, value in rule.items() if key != "name"]
    name = str(rule.get("name") or ("a rule without name" if arguments else ""))
    return f"{name} with {', '.join(arguments)}" if arguments else name


def _argument(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({rule_words(value)})"
    if isinstance(value, list):
        return f"({', '.join(_argument(entry) for entry in value)})"
    return "not set" if value is None else plain(value)


def last_rule(summary: Summary) -> str:
    """The rule of the last round, in words; empty where the run reports none."""
    history = rows(summary, "rounds")
    return rule_words(part(history[-1], "rule")) if history else ""


def without_weights(summary: Summary) -> bool:
    """Whether the run says of every round that no site had a weight of its own, as with medians."""
    stated = [entry["weights"] for entry in rows(summary, "rounds") if "weights" in entry]
    return bool(stated) and not any(stated)


def carried(summary: Summary) -> bool:
    """Whether one model went from site to site, as in cyclic weight transfer."""
    history = rows(summary, "rounds")
    return bool(history) and history[-1].get("carried") is True


def visit_table(summary: Summary) -> TextTable:
    """Where a carried model went, visit after visit; empty where it was not carried or the run does not say.

    Rounds in a row with the same visits share a line.
    """
    entries = [entry for entry in rows(summary, "rounds") if isinstance(entry.get("visited"), list)]
    body = [[_span(first, last), " → ".join(entry["visited"])] for first, last, entry in _runs(entries, _same_visits)]
    return TextTable(("Rounds", "Visits in their order"), body, 0, 2)


def _same_visits(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return bool(a["visited"] == b["visited"])


def weight_table(summary: Summary) -> TextTable:
    """Each site's weight over the rounds beside its share of the training cases; empty where no site had a weight.

    The share is that among the sites of a round, averaged over the rounds in which the site took part, so that it can
    be compared with the mean weight.
    """
    history = history_frame(summary)
    if history.empty or not history["weight"].notna().any():
        return TextTable(())
    taken = history[history["weight"].notna()].copy()
    taken["share"] = taken["cases"] / taken.groupby("round")["cases"].transform("sum", min_count=1)
    scaled = bool((taken["scale"] != 1).any())
    body = []
    for site in [s for s in site_names(summary) if s in set(taken["site"])]:
        mine = taken[taken["site"] == site]
        weight = mine["weight"]
        cells = [mine["share"].mean(), weight.mean(), weight.iloc[0], weight.iloc[-1], weight.min(), weight.max()]
        factor = [shown(mine["scale"].mean())] if scaled else []
        body.append([site, str(len(mine)), *(shown(cell) for cell in cells), *factor])
    header = ["Site", "Rounds", "Share of cases", "Mean weight", "First", "Last", "Lowest", "Highest"]
    return TextTable([*header, *(["Mean factor"] if scaled else [])], body)


def ending(summary: Summary) -> str:
    """Why the run ended, as a sentence; empty where the run does not say."""
    if "stopped" not in summary:
        return ""
    stopped = part(summary, "stopped")
    if not stopped:
        return "The training ran all its rounds; no stopping rule ended it."
    when = number(stopped.get("round"))
    after = "" if when is None else f" after round {nth(int(when))}"
    return f"A stopping rule ended the training{after}: {plain(stopped.get('reason'))}."


def selection_words(summary: Summary) -> str:
    """A sentence on who was asked; empty where the run does not say."""
    stated = [entry for entry in rows(summary, "rounds") if part(entry, "selection")]
    if not stated:
        return ""
    partial = sum(bool(_left_out(entry)) for entry in stated)
    if not partial:
        return "Every site that had accepted the job was asked in every round."
    return f"In {partial} of {len(stated)} rounds not every site was asked."


def selection_table(summary: Summary) -> TextTable:
    """Who was asked in which rounds, who was not, and why; empty where every site was always asked.

    Rounds in a row in which the same was decided for the same reasons share a line.
    """
    entries = [entry for entry in rows(summary, "rounds") if part(entry, "selection")]
    if not any(_left_out(entry) for entry in entries):
        return TextTable(())
    body = []
    for first, last, entry in _runs(entries, _same):
        reasons, left = part(entry, "selection"), _left_out(entry)
        asked = [site for site in reasons if site not in left]
        body.append([_span(first, last), _by_reason(asked, reasons), _by_reason(left, reasons) or "nobody"])
    return TextTable(("Rounds", "Asked, and why", "Left out, and why"), body, 0, 3)


def _left_out(entry: Mapping[str, Any]) -> list[str]:
    asked = entry.get("asked")
    # A summary without the list still names those who answered.
    asked = asked if isinstance(asked, list) else list(part(entry, "sites"))
    return [site for site in part(entry, "selection") if site not in asked]


def _span(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first} to {last}"


def _runs(
    entries: Sequence[Mapping[str, Any]], same: Callable[[Mapping[str, Any], Mapping[str, Any]], bool]
) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """First round and last round (from 1) and one entry of each stretch of rounds that are the same."""
    start = 0
    for index, entry in enumerate(entries):
        following = entries[index + 1] if index + 1 < len(entries) else None
        if following is None or not same(entry, following):
            yield nth(int(entries[start].get("round", start))), nth(int(entry.get("round", index))), entry
            start = index + 1


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    consecutive = number(b.get("round")) == (number(a.get("round")) or 0) + 1
    return consecutive and _left_out(a) == _left_out(b) and part(a, "selection") == part(b, "selection")


def _by_reason(sites: Sequence[str], reasons: Mapping[str, Any]) -> str:
    """``a, b (drawn); c (the largest)``: sites with the same reason together."""
    groups: dict[str, list[str]] = {}
    for site in sites:
        groups.setdefault(plain(reasons[site]), []).append(site)
    return "; ".join(f"{', '.join(named)} ({reason})" for reason, named in groups.items())
