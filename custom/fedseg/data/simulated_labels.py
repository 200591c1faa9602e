"""Labels of simulated sites: what their annotators draw, and how; and what cases have in the place of masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedseg.data.datalist import Datalist
from fedseg.data.label_noise import LabelNoise, disturb_site
from fedseg.data.undrawn_labels import PartialLabels, chosen_patients, take_out
from fedseg.data.weak_labels import WeakLabels, weakened
from fedseg.tasks.task import Task


def simulate_labels(
    datalists: Mapping[str, Datalist],
    task: Task,
    folder: Path,
    seed: int,
    noise: Mapping[str, LabelNoise],
    partial: PartialLabels | None,
    weak: WeakLabels | None,
) -> dict[str, Datalist]:
    """The datalists of simulated sites with the labels that are asked for; test cases keep theirs.

    Args:
        datalists: of all sites, with whole labels; no file that they name is changed.
        task: names the regions.
        folder: of all sites; new labels go into ``folder/<site>``.
        seed: of all draws.
        noise: by site, how its annotator draws.
        partial: which regions stay drawn, and where, of what was drawn; None: all.
        weak: what cases have in the place of masks, and where; None: all have masks.

    Raises:
        UsageError: a site is none of them.
        DataError: a label cannot be read, or does not fit what is asked for.
    """
    found = {
        site: disturb_site(task, datalist, noise[site], seed, folder / site) if site in noise else datalist
        for site, datalist in datalists.items()
    }
    if partial is not None:
        patients = chosen_patients(partial, found, seed)
        found = {site: take_out(partial, task, each, patients, folder / site) for site, each in found.items()}
    return found if weak is None else weakened(weak, task, found, seed)
