"""Deterministic preprocessing of one case: done once, then cached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing
from monai.transforms.utils import generate_spatial_bounding_box

from fedseg.data.case_reading import read_case
from fedseg.data.datalist import Case
from fedseg.data.grid import Grid
from fedseg.errors import DataError
from fedseg.tasks.drawn import drawn_outputs
from fedseg.tasks.normalisation import normalise
from fedseg.tasks.objective import objective_of
from fedseg.tasks.task import Task
from fedseg.training.resampling import resample_classes

INDICES_PER_CLASS = 4000


@dataclass(frozen=True)
class PreparedCase:
    """A case as the network sees it.

    Attributes:
        id: name of the case.
        image: normalised channels [C, X, Y, Z], float32, in RAS orientation and the task's spacing.
        classes: the reference [1, X, Y, Z] on the grid of ``image``: internal class values, uint8, in segmentation;
            None without one.
        grid: grid of ``image``.
        original: grid of the files.
        reference: the same on the original grid [X, Y, Z]; kept for cases that are scored, else None.
        indices: for cases that are trained on: flat voxel indices of each class (background first), at most
            ``INDICES_PER_CLASS`` evenly taken ones each.
        voxels: for cases that are trained on: how many each class has (background first), before any padding.
        drawn: of each output, whether it is drawn; None: all are.
        possible: of cases with weak labels that are trained on: in which voxels each region may be, bool [R, X, Y, Z]
            on the grid of ``image``, or [R, 1, 1, 1] where the place makes no difference; else None.
        pseudo: whether ``classes`` were found by a network.
    """

    id: str
    image: torch.Tensor
    classes: torch.Tensor | None
    grid: Grid
    original: Grid
    reference: np.ndarray | None = None
    indices: tuple[torch.Tensor, ...] = ()
    voxels: tuple[int, ...] = ()
    drawn: tuple[bool, ...] | None = None
    possible: torch.Tensor | None = None
    pseudo: bool = False

    def batch(self) -> dict[str, torch.Tensor]:
        """The case as a batch of one: ``image``, ``classes`` where there are any, ``drawn`` where something is not, and
        ``pseudo`` of pseudo-labels."""
        drawn = None if self.drawn is None else torch.tensor(self.drawn)
        pseudo = torch.tensor([True]) if self.pseudo else None
        both = {"image": self.image, "classes": self.classes, "drawn": drawn, "pseudo": pseudo}
        return {name: values[None] for name, values in both.items() if values is not None}


def prepare_case(task: Task, case: Case, training: bool) -> PreparedCase:
    """Read and pre-process one case.

    Args:
        task: says how to normalise and resample.
        case: the files.
        training: also pad to at least one patch and collect the voxel indices of the classes for sampling; otherwise
            keep the reference on the original grid for scoring.

    Raises:
        DataError: files cannot be read, do not fit the task or each other.
    """
    array, original, label = read_case(task, case)
    kind = objective_of(task)
    try:
        drawn = drawn_outputs(kind, case.drawn)
        reference = kind.reference(array, label)
    except DataError as error:
        raise DataError(f"{case.label}: {error}") from None
    if drawn is not None and reference is not None:
        reference = kind.only_drawn(reference, drawn)
    image = resample(task, array, original)
    labels = None if reference is None else _resample_reference(task, reference[None], original)
    if training and case.supervision.weak:
        # A place is no class, but is cropped and padded as one.
        possible = case.supervision.possible(task.region_names, original.shape)
        labels = _nearest(task, possible, original) if possible[0].size > 1 else torch.from_numpy(possible)
    image.set_array(normalise(task, image.as_tensor(), case.missing))
    if task.crop_to_foreground:
        whole = labels is not None and labels[0].numel() == 1
        image, labels = (_crop(image, None)[0], labels) if whole else _crop(image, labels)
    x, y, z = (int(n) for n in image.shape[1:])
    grid = Grid((x, y, z), image.affine.numpy().astype(np.float64))
    values = image.as_tensor().float().contiguous()
    if not training:
        return PreparedCase(case.id, values, labels, grid, original, reference, drawn=drawn)
    values = _pad(values, task.patch_size)
    if case.supervision.weak:
        assert labels is not None
        padded = labels if labels[0].numel() == 1 else _pad(labels, task.patch_size)
        return PreparedCase(case.id, values, None, grid, original, possible=padded)
    if labels is None:
        if kind.needs_label:
            raise DataError(f"{case.images[0]} has no label, but is listed for training.")
        return PreparedCase(case.id, values, None, grid, original)
    count = len(task.classes) + 1 if task.classes and kind.discrete else 0
    voxels = tuple(torch.bincount(labels.flatten(), minlength=count).tolist()) if count else ()
    labels = _pad(labels, task.patch_size)
    return PreparedCase(case.id, values, labels, grid, original, None, class_indices(labels, count), voxels, drawn)


def _resample_reference(task: Task, reference: np.ndarray, grid: Grid) -> torch.Tensor:
    """The reference [1, X, Y, Z], in its own type, as the image is resampled; classes by their shares of a voxel."""
    values = torch.from_numpy(reference)

    def linear(part: torch.Tensor) -> torch.Tensor:
        return resample(task, part.numpy(), grid).as_tensor().contiguous()

    if task.spacing is None or not objective_of(task).discrete:
        return linear(values).to(values.dtype)
    return resample_classes(values, linear)


def _nearest(task: Task, masks: np.ndarray, grid: Grid) -> torch.Tensor:
    """Masks [R, X, Y, Z] as the image is resampled, bool: those of the voxel of the file that is nearest."""
    return resample(task, masks, grid, "nearest").as_tensor() > 0.5


def resample(task: Task, array: np.ndarray, grid: Grid, mode: str = "bilinear") -> MetaTensor:
    """Channels [C, X, Y, Z] in RAS orientation and the task's spacing."""
    steps: list[Any] = [Orientation(axcodes="RAS", labels=None)]
    if task.spacing is not None:
        steps.append(Spacing(pixdim=task.spacing, mode=mode, padding_mode="border", dtype=np.float32))
    image: Any = MetaTensor(torch.from_numpy(array.astype(np.float32)), affine=torch.from_numpy(grid.affine))
    for step in steps:
        image = step(image)
    assert isinstance(image, MetaTensor)
    return image


def _crop(image: MetaTensor, classes: torch.Tensor | None) -> tuple[MetaTensor, torch.Tensor | None]:
    """Cut away the border in which every channel is 0."""
    start, end = generate_spatial_bounding_box(image, select_fn=lambda x: x != 0)
    if all(s == 0 for s in end):
        return image, classes
    window = (slice(None), *(slice(int(a), int(b)) for a, b in zip(start, end, strict=True)))
    affine = image.affine.clone()
    affine[:3, 3] += affine[:3, :3] @ torch.tensor([float(s) for s in start], dtype=affine.dtype)
    cropped = MetaTensor(image.as_tensor()[window].clone(), affine=affine)
    return cropped, None if classes is None else classes[window].clone()


def _pad(values: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """Pad [C, X, Y, Z] with zeros on both sides to at least ``size``."""
    pads: list[int] = []
    for have, want in zip(reversed(values.shape[1:]), reversed(size), strict=True):
        missing = max(0, want - have)
        pads += [missing // 2, missing - missing // 2]
    return torch.nn.functional.pad(values, pads)


def class_indices(classes: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """Flat indices of the voxels of each class in a label map [1, X, Y, Z], at most ``INDICES_PER_CLASS`` each.

    Args:
        classes: internal class values.
        count: of classes, the background included.
    """
    flat = classes.flatten()
    result = []
    for value in range(count):
        found = torch.nonzero(flat == value).flatten()
        if len(found) > INDICES_PER_CLASS:
            found = found[torch.linspace(0, len(found) - 1, INDICES_PER_CLASS).long()]
        result.append(found.to(torch.int32))
    return tuple(result)
