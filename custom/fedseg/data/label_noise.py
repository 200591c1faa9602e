"""Simulated annotators who draw otherwise than the labels say, for experiments with wrong labels."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from fedseg.allowed import number, setting, settings
from fedseg.data.datalist import Case, Datalist, case_names
from fedseg.data.label_convention import with_convention
from fedseg.data.reading import read_label
from fedseg.errors import ConfigurationError, DataError, UsageError
from fedseg.files.names import SITE
from fedseg.tasks.segmentation.labels import paint_regions, recognise_convention, to_classes, to_regions, to_values
from fedseg.tasks.task import Task

LABELS = "noisy-labels"
"""Folder of a site with the labels of its simulated annotator."""
NOTE = "simulated_label_noise"
"""Where a datalist says how its annotator draws."""
MOST_MM = 100.0
_NEIGHBOURS = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class LabelNoise:
    """How the annotator of a site draws; several habits act in the order of the attributes.

    Attributes:
        flipped: probability from 0 to 1 with which each connected part of a class is taken for another class or for
            background, all of these alike likely: symmetric noise (Zhang and Sabuncu, 2018), of parts, not voxels.
        eroded_mm: everything is drawn too small: voxels within this distance of the outside are left out.
        dilated_mm: everything is drawn too large: voxels within this distance are drawn, too.
        shifted_mm: the drawing of a case lies this far from where it belongs, in a direction drawn for each case; to
            the nearest voxel.
        share: of the patients with training or validation cases, above 0 to 1, whose labels are drawn so.
    """

    flipped: float = setting(0.0, number, least=0, most=1)
    eroded_mm: float = setting(0.0, number, least=0, most=MOST_MM)
    dilated_mm: float = setting(0.0, number, least=0, most=MOST_MM)
    shifted_mm: float = setting(0.0, number, least=0, most=MOST_MM)
    share: float = setting(1.0, number, above=0, most=1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form, for the notes of a datalist."""
        return asdict(self)


def parse_label_noise(name: str, value: Any) -> dict[str, LabelNoise]:
    """Annotators by site, from ``{site: {habit: strength}}``.

    Raises:
        ConfigurationError: a site or a habit cannot be, or a site has none.
    """
    if not isinstance(value, Mapping) or not value:
        raise ConfigurationError(name, value, "an object with the habits of an annotator for each site, at least one")
    found = {}
    for site, habits in value.items():
        SITE.check(f"{name}: site", site)
        noise = settings(LabelNoise, habits, f"{name}.{site}")
        if noise.eroded_mm and noise.dilated_mm:
            raise ConfigurationError(f"{name}.{site}", habits, "either eroded_mm or dilated_mm")
        if not (noise.flipped or noise.eroded_mm or noise.dilated_mm or noise.shifted_mm):
            raise ConfigurationError(
                f"{name}.{site}", habits, "one at least of flipped, eroded_mm, dilated_mm and shifted_mm, above 0"
            )
        found[site] = noise
    return found


def check_sites(noise: Mapping[str, LabelNoise], sites: Sequence[str]) -> None:
    """Refuse an annotator of a site that there is not.

    Raises:
        UsageError: there is one.
    """
    if unknown := [site for site in noise if site not in sites]:
        raise UsageError(f"Label noise is asked for at {unknown[0]}, but the sites are {', '.join(sites)}.")


def disturb(
    task: Task, classes: np.ndarray, spacing: Sequence[float], noise: LabelNoise, draw: np.random.Generator
) -> np.ndarray:
    """A label as the annotator draws it.

    Overlapping regions become smaller and larger one by one; of regions that exclude each other their union does, so
    that no gap opens between them, and a voxel that is gained takes the class of the nearest drawn one.

    Args:
        task: says which regions there are.
        classes: internal class values [X, Y, Z]; it is not changed.
        spacing: size of a voxel in mm.
        noise: the habits.
        draw: of classes and directions.
    """
    if noise.flipped:
        classes = _flipped(classes, len(task.classes), noise.flipped, draw)
    if noise.eroded_mm or noise.dilated_mm:
        classes = _resized(task, classes, spacing, noise.dilated_mm - noise.eroded_mm)
    return _shifted(classes, spacing, noise.shifted_mm, draw) if noise.shifted_mm else classes


def disturb_site(task: Task, datalist: Datalist, noise: LabelNoise, seed: int, folder: Path) -> Datalist:
    """Write the labels of the annotator of a site, and return the datalist that names them.

    Test cases keep their labels: they are to tell how well a model finds what is there.

    Args:
        task: what the cases are for.
        datalist: of one site; no file that it names is changed.
        noise: the habits.
        seed: of all draws, with the site's name, the patient and the name of the label.
        folder: of the site, whose name is the site's; labels go into ``noisy-labels`` in it.

    Raises:
        DataError: a label cannot be read, or regions are not drawn in it.
        UsageError: the task has no labels of voxels.
    """
    if not task.classes:
        raise UsageError(
            f"Label noise is for labels of voxels, which the task {task.name} does not have. Leave it out."
        )
    task = with_convention(task, datalist.convention)
    cases = (*datalist.training, *datalist.validation)
    patients = sorted({case.patient for case in cases})
    count = max(1, round(noise.share * len(patients)))
    chosen = {patients[i] for i in _generator(seed, folder.name).permutation(len(patients))[:count]}
    files = dict(zip(cases, (folder / LABELS / f"{name}.nii.gz" for name in case_names(cases)), strict=True))

    def drawn(case: Case) -> Case:
        if case.patient not in chosen or case.label is None:
            return case
        if case.drawn is not None:
            raise DataError(
                f"{case.label}: label noise is for labels in which all regions are drawn, and this one has "
                f"{', '.join(case.drawn)} alone. Name other sites, or take the case out."
            )
        draw = _generator(seed, f"{folder.name}/{case.patient}/{case.label.name}")
        _write(task, case.label, noise, draw, files[case])
        return replace(case, label=files[case])

    training, validation = (tuple(map(drawn, part)) for part in (datalist.training, datalist.validation))
    return replace(datalist, training=training, validation=validation)


def _write(task: Task, label: Path, noise: LabelNoise, draw: np.random.Generator, target: Path) -> None:
    values, grid = read_label(label)
    convention = recognise_convention(task, np.unique(values).tolist())
    classes = disturb(task, to_classes(task, values), grid.spacing, noise, draw)
    target.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(to_values(task, classes, convention), grid.affine), target)


def _flipped(classes: np.ndarray, count: int, probability: float, draw: np.random.Generator) -> np.ndarray:
    result = classes.copy()
    for value in range(1, count + 1):
        parts, number_of_parts = ndimage.label(classes == value, _NEIGHBOURS)
        others = [other for other in range(count + 1) if other != value]
        taken_for = np.full(number_of_parts + 1, value, classes.dtype)
        for part in range(1, number_of_parts + 1):
            if draw.random() < probability:
                taken_for[part] = others[draw.integers(len(others))]
        result = np.where(parts > 0, taken_for[parts], result)
    return result


def _resized(task: Task, classes: np.ndarray, spacing: Sequence[float], millimetres: float) -> np.ndarray:
    if not task.exclusive:
        masks = [_grown(mask, spacing, millimetres)[0] for mask in to_regions(task, classes)]
        return paint_regions(task, np.stack(masks))
    mask, nearest = _grown(classes > 0, spacing, millimetres)
    source = classes if nearest is None else classes[tuple(nearest)]
    return np.where(mask, source, 0).astype(classes.dtype)


def _grown(mask: np.ndarray, spacing: Sequence[float], millimetres: float) -> tuple[np.ndarray, np.ndarray | None]:
    """A mask made larger, or smaller for a negative number, and the indices [3, X, Y, Z] of the nearest voxels of the
    former mask where it grew. Distances are those between the middles of voxels; the image's edge is no outside.
    """
    if not mask.any() or (millimetres < 0 and mask.all()):
        return mask, None
    if millimetres < 0:
        return ndimage.distance_transform_edt(mask, spacing) > -millimetres, None
    distance, nearest = ndimage.distance_transform_edt(~mask, spacing, return_indices=True)
    return distance <= millimetres, nearest


def _shifted(
    classes: np.ndarray, spacing: Sequence[float], millimetres: float, draw: np.random.Generator
) -> np.ndarray:
    direction = draw.standard_normal(3)
    steps = np.rint(direction / np.linalg.norm(direction) * millimetres / np.asarray(spacing)).astype(int)
    result = np.zeros_like(classes)
    into = tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(steps, classes.shape, strict=True))
    out_of = tuple(slice(max(-s, 0), n - max(s, 0)) for s, n in zip(steps, classes.shape, strict=True))
    if all(abs(s) < n for s, n in zip(steps, classes.shape, strict=True)):
        result[into] = classes[out_of]
    return result


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, 5, zlib.crc32(name.encode())])
