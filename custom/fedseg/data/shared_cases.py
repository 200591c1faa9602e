"""A small set of training cases at every site: the baseline against which methods that share no data are held."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedseg.data.datalist import Case, Datalist
from fedseg.errors import UsageError

NOTE = "shared_cases"


def draw_shared(training: Mapping[str, Sequence[Case]], fraction: float, seed: int) -> dict[str, tuple[int, ...]]:
    """Draw the training cases that every site is to have, for the baseline of a small shared data set.

    The data-sharing strategy of Zhao et al., 2018 (arXiv 1806.00582): in a real consortium these cases would leave
    their hospitals.

    Args:
        training: each site's training cases. Validation and test cases are not asked for, and so never shared.
        fraction: share of all training cases, 0 to 1; above 0 at least one case.
        seed: of the draw, whatever the order in which the files were found.

    Returns:
        site -> positions of those of its own training cases that go to all others.

    Raises:
        UsageError: the fraction is outside 0 to 1, or there is only one site.
    """
    if not 0 <= fraction <= 1:
        raise UsageError(f"--shared is {fraction}, but must be a fraction from 0 to 1.")
    if fraction == 0:
        return dict.fromkeys(training, ())
    if len(training) < 2:
        raise UsageError("--shared needs at least two sites: with one there is nobody to share cases with.")
    pool = sorted((c.patient, c.id, c.images, site, i) for site, cases in training.items() for i, c in enumerate(cases))
    count = max(1, round(fraction * len(pool)))
    drawn = [pool[i][-2:] for i in np.random.default_rng([seed, 3]).permutation(len(pool))[:count]]
    return {site: tuple(sorted(position for owner, position in drawn if owner == site)) for site in training}


def add_shared(
    datalists: Mapping[str, Datalist],
    given: Mapping[str, Sequence[int]],
    fraction: float,
    place: Callable[[Case], Case] = lambda case: case,
) -> dict[str, Datalist]:
    """Add the shared cases of all other sites at the end of each site's training cases, and note them.

    Args:
        datalists: of all sites.
        given: what ``draw_shared`` gave.
        fraction: for the note.
        place: turns a case of one site into what another site's datalist names.
    """
    result = {}
    for site, datalist in datalists.items():
        received = {other: [datalists[other].training[i] for i in given[other]] for other in given if other != site}
        note = {
            "fraction": fraction,
            "given": [datalist.training[i].patient for i in given[site]],
            "received": {other: [case.patient for case in cases] for other, cases in received.items() if cases},
        }
        added = tuple(place(case) for cases in received.values() for case in cases)
        result[site] = replace(datalist, training=datalist.training + added, notes={**datalist.notes, NOTE: note})
    return result
