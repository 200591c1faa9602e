"""Checks of what the voxels of one file hold: intensities of an image, values of a label."""

from __future__ import annotations

import hashlib

import numpy as np

from fedseg.data.problems import Report
from fedseg.errors import DataError
from fedseg.tasks.segmentation.labels import recognise_convention
from fedseg.tasks.task import Task

# Scanners store -1024..3071; some pad outside the field of view with -2000 or -3024, and metal reaches far above.
HU_USUAL = (-2048.0, 4096.0)
HU_PADDING = -3100.0


def content_hash(voxels: np.ndarray) -> str:
    """A key that is equal for equal voxel values, whatever the stored type or file name."""
    values = np.ascontiguousarray(voxels, np.float32)
    return hashlib.blake2b(values.tobytes() + repr(values.shape).encode(), digest_size=16).hexdigest()


def check_image(task: Task, voxels: np.ndarray, report: Report) -> bool:
    """Report what is wrong with the intensities of an image, shape [C, X, Y, Z], float32.

    Returns:
        whether the image holds something.
    """
    broken = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
    if broken:
        message = f"{broken} voxels are not numbers (NaN or infinite)."
        report("not-finite", "error", message, "Find out which step made them; replace them or convert again.")
        return False
    constant = [i for i, part in enumerate(voxels) if part.min() == part.max()]
    if constant:
        where = f"Channel {constant} of the image" if len(voxels) > 1 else "The image"
        remedy = "Replace it by the real image, or write null if there is none."
        report("constant", "error", f"{where} has one value everywhere.", remedy)
        return False
    if task.modality == "CT":
        _check_hounsfield(voxels, report)
    return True


def _check_hounsfield(voxels: np.ndarray, report: Report) -> None:
    low, high = float(voxels.min()), float(voxels.max())
    found = f"The values reach from {low:g} to {high:g}"
    outside = float(np.mean((voxels < HU_PADDING) | (voxels > HU_USUAL[1])))
    if low >= 0:
        report(
            "hu-range",
            "error",
            f"{found}; a CT in Hounsfield units has air and fat below 0.",
            "Apply the rescale slope and intercept (usually -1024) when converting; do not window or normalise.",
        )
    elif outside > 0.01:
        report(
            "hu-range",
            "error",
            f"{found}, {outside:.0%} of them impossible as Hounsfield units.",
            "Apply the rescale slope and intercept exactly once when converting.",
        )
    elif low < HU_USUAL[0] or high > HU_USUAL[1]:
        message = f"{found}, outside the usual {HU_USUAL[0]:g} to {HU_USUAL[1]:g} Hounsfield units."
        report("hu-range", "warning", message, "Fine if this is padding or metal: a window clips it.")


def check_label(task: Task, voxels: np.ndarray, report: Report) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Report what is wrong with a label of whole numbers, shape [X, Y, Z].

    Returns:
        the conventions that its values fit (None: none), and the classes that occur in it.
    """
    found = {int(v) for v in np.unique(voxels)}
    fitting = [c for c in task.conventions if found <= c.allowed]
    if not fitting:
        _report_values(task, found, report)
        return None, ()
    classes = tuple(name for name in task.classes if fitting[0].values[name] in found)
    if not classes:
        report("empty-label", "warning", "The label is empty.", "Fine if nothing is to be found here; else segment it.")
    return tuple(c.name for c in fitting), classes


def _report_values(task: Task, found: set[int], report: Report) -> None:
    if found <= frozenset().union(*(c.allowed for c in task.conventions)):
        names = " and ".join(c.name for c in task.conventions)
        message = f"The label mixes conventions ({names}): it holds {sorted(found)}."
        report("label-values", "error", message, "Find out which value means what, and map them to one convention.")
        return
    try:
        recognise_convention(task, found)
    except DataError as error:
        text, _, remedy = str(error).rstrip(".").rpartition(". ")
        report("label-values", "error", f"The {text}.", f"{remedy}.")
