"""Phantoms: simulated sites with images, labels and datalists, so that everything can be tried without patients."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from fedseg.data.datalist import FILE_NAME, Case, Datalist, read_datalist, write_datalist
from fedseg.data.label_noise import NOTE, LabelNoise, check_sites
from fedseg.data.phantoms.brats import CHANNELS, make_brats_case
from fedseg.data.phantoms.pancreas import make_pancreas_case
from fedseg.data.phantoms.sites import MINIMUM_CASES, SiteStyle, case_counts, site_style, split_counts
from fedseg.data.progress import Progress, silent
from fedseg.data.simulated_labels import simulate_labels
from fedseg.data.undrawn_labels import PartialLabels
from fedseg.data.weak_labels import WeakLabels
from fedseg.errors import UsageError
from fedseg.files.documents import write_json
from fedseg.files.folders import new_folder
from fedseg.tasks.registry import get_task

ABDOMEN = ("ct", "mr")
"""Channels of the phantoms of CT and MR; each case has one of them."""
MAXIMUM_SITES, MAXIMUM_CASES = 99, 200  # so that case numbers have three digits even at the largest site


@dataclass(frozen=True)
class PhantomPlan:
    """What to make: the arguments of ``make_phantoms``, checked."""

    task: str
    sites: int
    cases: int
    seed: int = 0
    heterogeneity: float = 0.5
    test_fraction: float = 0.0

    def __post_init__(self) -> None:
        _require(self.task in _WRITERS, "TASK", self.task, f"one of {', '.join(_WRITERS)}")
        _require(1 <= self.sites <= MAXIMUM_SITES, "--sites", self.sites, f"a whole number from 1 to {MAXIMUM_SITES}")
        _require(
            MINIMUM_CASES <= self.cases <= MAXIMUM_CASES,
            "--cases",
            self.cases,
            f"a whole number from {MINIMUM_CASES} to {MAXIMUM_CASES}, so that every site can train and validate",
        )
        _require(self.seed >= 0, "--seed", self.seed, "a whole number from 0")
        _require(0 <= self.heterogeneity <= 1, "--heterogeneity", self.heterogeneity, "a number from 0 to 1")
        _require(0 <= self.test_fraction <= 0.5, "--test-fraction", self.test_fraction, "a number from 0 to 0.5")


def make_phantoms(
    task: str,
    sites: int,
    cases: int,
    out: Path | str,
    seed: int = 0,
    heterogeneity: float = 0.5,
    test_fraction: float = 0.0,
    progress: Progress = silent,
    partial: PartialLabels | None = None,
    weak: WeakLabels | None = None,
    label_noise: Mapping[str, LabelNoise] | None = None,
) -> list[Path]:
    """Make simulated sites ``out/site-1``, ``out/site-2``... with images, labels and a datalist each.

    The same arguments give the same bytes. A case depends on the seed, its site and its number only, so that more
    sites or more cases leave those that were there as they were.

    Args:
        task: ``brats``, ``pancreas``, or ``abdomen``: the pancreas in CT at sites of odd numbers, in MR at the others.
        sites: number of sites, 1 to 99.
        cases: mean number of cases of a site, 3 to 200; no site has fewer than 3.
        out: a folder that does not exist or is empty; it appears as a whole or not at all.
        seed: from 0.
        heterogeneity: from 0 (sites alike, equally many cases) to 1 (scanner, voxel size, tumour size and number of
            cases differ strongly).
        test_fraction: part of the cases that is set apart as ``test``, 0 to 0.5.
        progress: shows how far the work is.
        partial: which regions stay drawn, and where; None: all.
        weak: what cases have in the place of masks, and where; None: all have masks.
        label_noise: by site, how its simulated annotator draws; at other sites labels are those of the phantom.

    Returns:
        The datalists, one per site.

    Raises:
        UsageError: an argument is out of range, or ``out`` is not empty.
    """
    plan = PhantomPlan(task, sites, cases, seed, heterogeneity, test_fraction)
    noise = label_noise or {}
    check_sites(noise, [site_name(site) for site in range(1, sites + 1)])
    counts = case_counts(seed, sites, cases, heterogeneity)
    with new_folder(Path(out)) as folder:
        jobs = [(site, number) for site, count in enumerate(counts, 1) for number in range(1, count + 1)]
        made: dict[int, list[Case]] = {site: [] for site in range(1, sites + 1)}
        for site, number in progress(jobs, f"Making {task} phantoms"):
            rng = np.random.default_rng(np.random.SeedSequence([seed, site, number]))
            style = site_style(seed, site, heterogeneity)
            made[site].append(_WRITERS[task](rng, style, folder / site_name(site), site * 1000 + number))
        for site, done in made.items():
            _describe_site(plan, site, done, folder / site_name(site))
        if noise or partial is not None or weak is not None:
            _simulate_labels(plan, folder, noise, partial, weak)
    return [Path(out) / site_name(site) / FILE_NAME for site in made]


def _simulate_labels(
    plan: PhantomPlan,
    folder: Path,
    noise: Mapping[str, LabelNoise],
    partial: PartialLabels | None,
    weak: WeakLabels | None,
) -> None:
    """Change what the datalists say of labels; the whole ones stay beside them."""
    lists = {name: read_datalist(folder / name) for name in map(site_name, range(1, plan.sites + 1))}
    found = simulate_labels(lists, get_task(_LABELS[plan.task]), folder, plan.seed, noise, partial, weak)
    for site, datalist in found.items():
        more = {NOTE: noise[site].to_dict()} if site in noise else {}
        write_datalist(replace(datalist, notes={**datalist.notes, **more}), folder / site / FILE_NAME)


def site_name(site: int) -> str:
    """Name of the site with this number (from 1), as FLARE's simulator counts them."""
    return f"site-{site}"


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise UsageError(f"{name} is {value}, but must be {allowed}.")


def _describe_site(plan: PhantomPlan, site: int, cases: list[Case], folder: Path) -> None:
    """Write the datalist of one site, and the Decathlon's own description next to its images."""
    training, validation, _ = split_counts(len(cases), plan.test_fraction)
    notes = {
        "origin": "phantom",
        "seed": plan.seed,
        "heterogeneity": plan.heterogeneity,
        "simulated": site_style(plan.seed, site, plan.heterogeneity).to_dict(),
    }
    datalist = Datalist(
        training=tuple(cases[:training]),
        validation=tuple(cases[training : training + validation]),
        test=tuple(cases[training + validation :]),
        task=plan.task,
        notes=notes,
    )
    write_datalist(datalist, folder / FILE_NAME)
    if plan.task == "pancreas":
        _write_decathlon_description(cases, folder)


def _write_decathlon_description(cases: list[Case], folder: Path) -> None:
    entries = [{"image": f"./imagesTr/{c.images[0].name}", "label": f"./labelsTr/{c.id}.nii.gz"} for c in cases]
    content = {
        "name": "Pancreas",
        "description": "Simulated pancreas and pancreatic tumour: phantoms, no patients",
        "reference": "fedseg phantom",
        "licence": "Apache-2.0",
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "pancreas", "2": "cancer"},
        "numTraining": len(entries),
        "numTest": 0,
        "training": entries,
        "test": [],
    }
    write_json(folder / "dataset.json", content)


def _write_brats_case(rng: np.random.Generator, style: SiteStyle, folder: Path, number: int) -> Case:
    case = make_brats_case(rng, style)
    patient = f"BraTSphantom_{number:05d}"
    paths = [folder / patient / f"{patient}_{name}.nii.gz" for name in (*CHANNELS, "seg")]
    for path, volume in zip(paths, (*case.images, case.label), strict=True):
        _write_image(path, volume, case.grid.affine)
    return Case(tuple(paths[:-1]), paths[-1], patient)


def _write_pancreas_case(rng: np.random.Generator, style: SiteStyle, folder: Path, number: int) -> Case:
    case = make_pancreas_case(rng, style)
    patient = f"pancreas_{number}"
    image, label = (folder / part / f"{patient}.nii.gz" for part in ("imagesTr", "labelsTr"))
    _write_image(image, case.image, case.grid.affine)
    _write_image(label, case.label, case.grid.affine)
    return Case((image,), label, patient)


def _write_abdomen_case(rng: np.random.Generator, style: SiteStyle, folder: Path, number: int) -> Case:
    """A CT or an MR by the number of the site; the case lacks the other channel of ``ABDOMEN``."""
    place = (number // 1000 - 1) % len(ABDOMEN)
    case = make_pancreas_case(rng, style, ABDOMEN[place].upper())
    patient = f"abdomen_{number}"
    image, label = (folder / part / f"{patient}.nii.gz" for part in ("images", "labels"))
    _write_image(image, case.image, case.grid.affine)
    _write_image(label, case.label, case.grid.affine)
    return Case((image,), label, patient, tuple({*range(len(ABDOMEN))} - {place}))


def _write_image(path: Path, volume: np.ndarray, affine: np.ndarray) -> None:
    """Write NIfTI without the time stamp and file name that gzip would add, so that equal images are equal bytes."""
    image = nib.Nifti1Image(volume, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, gzip.GzipFile("", "wb", compresslevel=4, fileobj=file, mtime=0) as packed:
        packed.write(image.to_bytes())


_WRITERS: dict[str, Callable[[np.random.Generator, SiteStyle, Path, int], Case]] = {
    "brats": _write_brats_case,
    "pancreas": _write_pancreas_case,
    "abdomen": _write_abdomen_case,
}
PHANTOM_TASKS = tuple(_WRITERS)
# The built-in task with the labels of a phantom's.
_LABELS = {"brats": "brats", "pancreas": "pancreas", "abdomen": "pancreas"}
