"""What a report says of rounds between sites: who led them, who has the model, and the bytes between sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedseg.contract.round_numbers import nth
from fedseg.evaluation.report.heat_map import heat_map
from fedseg.evaluation.report.text_tables import TextTable, shown_bytes
from fedseg.evaluation.summary import Summary, part, rows, site_names
from fedseg.tasks.scores import Score

_BYTES = Score("bytes", "Bytes")


def leader_table(summary: Summary) -> TextTable:
    """Of each round the site that merged, how many updates, and which sites lack its model; empty without a swarm."""
    body = []
    for entry in rows(summary, "rounds"):
        swarm = part(entry, "swarm")
        if not swarm:
            continue
        lacking = sorted(set(entry.get("asked", ())) - set(swarm["takers"]))
        body.append([str(nth(entry["round"])), swarm["leader"], str(len(entry["sites"])), ", ".join(lacking) or "none"])
    return TextTable(("Round", "Led by", "Updates", "Asked, and without its model"), body) if body else TextTable(())


def turn_table(summary: Summary) -> TextTable:
    """Of each turn of BrainTorrent its site, the new version, and the versions it merged; empty without turns."""
    body = []
    for entry in rows(summary, "rounds"):
        for turn in entry.get("turns", ()):
            taken = ", ".join(f"{site} {version}" for site, version in sorted(turn["taken"].items()))
            body.append([str(nth(entry["round"])), turn["initiator"], str(turn["version"]), taken or "none"])
    return TextTable(("Round", "Turn of", "Its version", "Merged: sites and versions"), body) if body else TextTable(())


def pair_bytes(summary: Summary) -> tuple[list[str], np.ndarray]:
    """Sites, and the bytes of all rounds from each (row) to each other one (column); NaN on the diagonal.

    >>> swarm = {"leader": "a", "takers": ["a", "b"], "bytes": {"b": [3, 5]}}
    >>> pair_bytes({"sites": ["a", "b"], "rounds": [{"round": 0, "swarm": swarm}]})[1].tolist()
    [[nan, 5.0], [3.0, nan]]
    """
    names = list(site_names(summary))
    total = np.zeros((len(names), len(names)))
    for entry in rows(summary, "rounds"):
        for caller, traffic in _traffic(entry):
            for site, (received, sent) in traffic.items():
                if site in names and caller in names:
                    total[names.index(site), names.index(caller)] += received
                    total[names.index(caller), names.index(site)] += sent
    np.fill_diagonal(total, np.nan)
    return names, total


def _traffic(entry: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Who called others in a round, with the bytes from and to each."""
    swarm = part(entry, "swarm")
    led = [(str(swarm["leader"]), part(swarm, "bytes"))] if swarm else []
    return led + [(str(turn["initiator"]), part(turn, "bytes")) for turn in entry.get("turns", ())]


def pair_figure(summary: Summary) -> Figure | None:
    """The bytes between each pair of sites; None without a swarm of at least two sites."""
    names, total = pair_bytes(summary)
    if len(names) < 2 or not np.nansum(total):
        return None
    words = [["" if np.isnan(value) else shown_bytes(value) for value in row] for row in total]
    return heat_map(total, names, names, _BYTES, words=words, titles=("From", "To"))
