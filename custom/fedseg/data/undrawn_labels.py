"""Partial labels for experiments: at some sites, or in a share of the cases, only named regions stay drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from fedseg.data.datalist import Case, Datalist, case_names, parse_drawn
from fedseg.data.label_convention import with_convention
from fedseg.data.reading import read_label
from fedseg.errors import DataError, UsageError
from fedseg.tasks.drawn import drawn_outputs
from fedseg.tasks.objective import objective_of
from fedseg.tasks.segmentation.labels import paint_regions, recognise_convention, to_classes, to_regions, to_values
from fedseg.tasks.task import Task

LABELS = "partial-labels"
"""Folder of a site with its labels of which regions were taken out."""


@dataclass(frozen=True)
class PartialLabels:
    """Which cases keep which regions. Test cases keep all: they are to tell how well the others are found, too.

    Attributes:
        drawn: names of the regions that stay.
        sites: where they alone stay; empty: everywhere.
        share: of the patients with training or validation cases of these sites, above 0 to 1, drawn at random.
    """

    drawn: tuple[str, ...]
    sites: tuple[str, ...] = ()
    share: float = 1.0

    def __post_init__(self) -> None:
        parse_drawn(list(self.drawn), "--drawn")
        if not 0 < self.share <= 1:
            raise UsageError(f"--drawn-share is {self.share}, but must be a number above 0, up to 1.")


def chosen_patients(partial: PartialLabels, datalists: Mapping[str, Datalist], seed: int) -> set[str]:
    """The patients whose labels lose regions.

    Args:
        partial: what is asked for.
        datalists: of all sites.
        seed: of the draw.

    Raises:
        UsageError: a site is none of them.
    """
    if unknown := [site for site in partial.sites if site not in datalists]:
        raise UsageError(f"--drawn-at names {unknown[0]}, but the sites are {', '.join(datalists)}.")
    lists = [datalists[site] for site in partial.sites or datalists]
    patients = sorted({case.patient for each in lists for case in (*each.training, *each.validation)})
    count = max(1, round(partial.share * len(patients)))
    return {patients[i] for i in np.random.default_rng([seed, 4]).permutation(len(patients))[:count]}


def take_out(partial: PartialLabels, task: Task, datalist: Datalist, patients: set[str], folder: Path) -> Datalist:
    """Write labels without the undrawn regions, and return the datalist that names them and says what is drawn.

    Args:
        partial: which regions stay.
        task: names the regions.
        datalist: of one site; no file that it names is changed.
        patients: whose labels lose regions.
        folder: of the site; labels go into ``partial-labels`` in it.

    Raises:
        DataError: a name is no region of the task, or a label cannot be read.
    """
    task = with_convention(task, datalist.convention)
    drawn = drawn_outputs(objective_of(task), partial.drawn)
    if drawn is None:
        raise DataError(f"drawn names all regions of the task {task.name}, so nothing is taken out. Name fewer.")
    cases = (*datalist.training, *datalist.validation)
    files = dict(zip(cases, (folder / LABELS / f"{name}.nii.gz" for name in case_names(cases)), strict=True))

    def without(case: Case) -> Case:
        if case.patient not in patients or case.label is None:
            return case
        _write(task, drawn, case.label, files[case])
        return replace(case, label=files[case], drawn=partial.drawn)

    training, validation = (tuple(map(without, part)) for part in (datalist.training, datalist.validation))
    return replace(datalist, training=training, validation=validation)


def _write(task: Task, drawn: Sequence[bool], label: Path, target: Path) -> None:
    values, grid = read_label(label)
    masks = to_regions(task, to_classes(task, values)) & np.reshape(drawn, (-1, 1, 1, 1))
    convention = recognise_convention(task, np.unique(values).tolist())
    target.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(to_values(task, paint_regions(task, masks), convention), grid.affine), target)
