"""The part ``privacy`` of a run's summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# In a step, but not an argument of the filter that made it.
_FACTS = (
    "filter", "stage", "seconds", "epsilon", "releases", "mechanism", "unit", "secure_noise", "without_guarantee",
    "noise_to_signal", "coordinates", "sent", "shared", "overlap_with_top_k", "security_bits", "bytes_per_parameter",
    "parameters", "form", "sites", "key", "error",
)  # fmt: skip


def privacy_summary(rounds: Sequence[Mapping[str, Any]], meanings: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The part ``privacy`` of a run's summary.

    Args:
        rounds: the entries of the run's rounds, whose sites hold ``privacy``: the steps of their updates.
        meanings: what a filter is to somebody who reads a report, by its class.

    Returns:
        ``filters`` (class, arguments and meaning, in order), ``sites`` (of each what its mechanism states and has
        spent in guaranteed releases, and how many releases on the same patients had no guarantee), ``total`` (the
        largest of the sites' epsilons, and of these numbers: a patient of two hospitals may have lost their sum),
        ``seconds_per_round`` (of all filters, mean over sites and rounds)
        and, for encrypted runs, ``mechanism``, ``security_bits`` and ``bytes_per_parameter``. Empty where no filter
        ran.
    """
    taken = [(entry["round"], site, values) for entry in rounds for site, values in entry["sites"].items()]
    steps = [(number_, site, step) for number_, site, values in taken for step in values.get("privacy") or ()]
    if not steps:
        return {}
    names = sorted({site for _, site, _ in steps})
    sites = {site: _of_site([(n, s) for n, name, s in steps if name == site]) for site in names}
    content: dict[str, Any] = {"filters": _chain(taken, meanings or {}), "sites": sites}
    spent = [values for values in sites.values() if values.get("epsilon") is not None]
    if spent:
        worst = max(spent, key=lambda values: values["epsilon"])
        content["total"] = {key: worst[key] for key in ("mechanism", "unit", "epsilon", "delta")}
        without = [values["without_guarantee"] for values in spent if "without_guarantee" in values]
        content["total"] |= {"without_guarantee": max(without)} if without else {}
    content["seconds_per_round"] = sum(step.get("seconds", 0.0) for _, _, step in steps) / len(
        {(n, s) for n, s, _ in steps}
    )
    encrypted = [step for _, _, step in steps if "security_bits" in step]
    if encrypted:
        last = encrypted[-1]
        content["mechanism"] = last.get("mechanism", "homomorphic encryption")
        content["security_bits"] = min(step["security_bits"] for step in encrypted)
        content["bytes_per_parameter"] = last.get("bytes_per_parameter")
    return content


def _of_site(steps: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """What the last release of a site says; for filters without a guarantee what they sent."""
    guaranteed = [(n, step) for n, step in steps if step.get("epsilon") is not None]
    chosen = guaranteed or steps
    last = chosen[-1][1]
    known = {key: last[key] for key in ("unit", "epsilon", "delta", "noise_multiplier", "clip") if key in last}
    content: dict[str, Any] = {"mechanism": last.get("mechanism") or str(last["filter"]), **known}
    content["rounds"] = len({n for n, _ in chosen})
    if "releases" in last:
        content["steps"] = last["releases"]
    for key in ("without_guarantee", "noise_to_signal", "coordinates", "secure_noise", "overlap_with_top_k"):
        if key in last:
            content[key] = last[key]
    return content


def _chain(taken: Sequence[tuple[int, str, Mapping[str, Any]]], meanings: Mapping[str, str]) -> list[dict[str, Any]]:
    """The filters of the last update that has any, with their arguments and what they mean."""
    steps = next(values["privacy"] for _, _, values in reversed(taken) if values.get("privacy"))
    return [
        {
            "filter": step["filter"],
            **{k: v for k, v in step.items() if k not in _FACTS and v is not None},
            **({"meaning": meanings[step["filter"]]} if step["filter"] in meanings else {}),
        }
        for step in steps
    ]
