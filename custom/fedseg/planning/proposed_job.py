"""What a job for a federation may say, from what its cases are like: the rules of nnU-Net over merged statistics.

Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation" (Nature
Methods 2021), supplementary note 2. Its fingerprint needs all images in one place; here it comes from histograms that
merge exactly, so that it is the same up to the width of their bins, whose error is stated with each number.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from fedseg.contract.proposal import VOXELS, Fingerprint, propose_for
from fedseg.errors import DataError
from fedseg.evaluation.report.text_tables import counted
from fedseg.statistics import quantities as q
from fedseg.statistics.document import FederationStatistics
from fedseg.statistics.histogram import Estimate
from fedseg.statistics.quantities import named
from fedseg.statistics.site_statistics import Statistics
from fedseg.tasks.task import Task
from fedseg.version import __version__

THIN_LEVEL = 0.1
LOWEST, HIGHEST = 0.005, 0.995
_CROPPED = 0.75  # of an image, below which its empty border is worth cutting away
_SHARE_OF_DATA = 0.05  # of all voxels that a batch may hold at most
_STEPS = 10  # that the smallest site shall have in a pass over its cases
_SMALLEST_BATCH = 2
_TITLES = {q.SPACING: "voxel size", q.SHAPE: "image size", q.EXTENT: "image size"}
_VAGUE = 0.1  # of a value, from which an error is worth a word


@dataclass(frozen=True)
class ProposedJob:
    """A plan, and why it says what it says.

    Attributes:
        plan: content of the plan file ``fedseg.json``.
        reasons: what was chosen, from which number, with its error; a sentence each.
        warnings: what a person should look at before the job is submitted.
    """

    plan: dict[str, Any]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]


def propose_job(statistics: FederationStatistics, voxels: int = VOXELS) -> ProposedJob:
    """A job for the task of these statistics.

    Args:
        statistics: of the federation.
        voxels: the most that a patch may have; memory and time of a step grow with it.

    Raises:
        DataError: they tell nothing of shapes or voxel sizes.
    """
    pooled, task = statistics.pooled, statistics.task
    fingerprint, vague = read_fingerprint(pooled)
    proposal = propose_for(fingerprint, voxels)
    patch = proposal["task"]["patch_size"]
    normalisation, told, doubts = _normalisation(task, pooled)
    uniform = _is_uniform(pooled) and task.spacing is None
    spacing = None if uniform else proposal["task"]["spacing"]
    batch, batch_words = _batch(statistics, fingerprint, proposal["task"]["spacing"], patch, voxels)
    changed = {"spacing": spacing, "patch_size": patch, **normalisation}
    plan = {
        "fedseg_version": __version__,
        "method": "fedavg",
        "task": _declaration(task, changed),
        "network": proposal["network"],
        "training": {"local_epochs": 2, "batch_size": batch},
    }
    reasons = (
        _spacing_words(fingerprint, proposal["task"]["spacing"], uniform),
        f"patch_size {_times(patch)}: images are {_times(fingerprint.extent)} mm large in the median; a patch has "
        f"{prod(patch)} voxels, at most {voxels}.",
        f"network dynunet with strides {proposal['network']['strides']} and kernels {proposal['network']['kernels']}: "
        "an axis is halved while the patch has 8 voxels along it and its voxels are less than twice as long as the "
        "shortest.",
        told,
        batch_words,
    )
    return ProposedJob(plan, reasons, (*vague, *doubts, *_noise_words(statistics)))


def read_fingerprint(statistics: Statistics) -> tuple[Fingerprint, tuple[str, ...]]:
    """The fingerprint of merged statistics, and warnings about numbers whose bins are wide.

    Raises:
        DataError: a number is missing.
    """
    warnings: list[str] = []

    def along_axes(what: str, level: float) -> tuple[float, ...]:
        found = [_quantile(statistics, named(what, axis), level) for axis in q.AXES]
        for axis, estimate in zip(q.AXES, found, strict=True):
            if estimate.error > _VAGUE * estimate.value:
                warnings.append(_vague_words(what, level, axis, estimate))
        return tuple(estimate.value for estimate in found)

    spacing, thin = along_axes(q.SPACING, 0.5), along_axes(q.SPACING, THIN_LEVEL)
    return Fingerprint(spacing, thin, along_axes(q.SHAPE, 0.5), along_axes(q.EXTENT, 0.5)), tuple(warnings)


def _vague_words(what: str, level: float, axis: str, estimate: Estimate) -> str:
    """Between which two values a number lies, and why nobody knows it better."""
    rank = "median" if level == 0.5 else "tenth percentile of the"
    low, high = max(0.0, estimate.value - estimate.error), estimate.value + estimate.error
    return (
        f"The {rank} {_TITLES[what]} along {axis} is not known well: it lies between {low:.4g} and {high:.4g} "
        f"{q.UNITS[what]}. Sites put the values of too few patients together, or counted coarsely. Ask the sites what "
        "they know of it."
    )


def _quantile(statistics: Statistics, name: str, level: float) -> Estimate:
    histogram = statistics.histograms.get(name)
    found = None if histogram is None else histogram.quantile(level, linear=True)
    if found is None or found.value <= 0:
        raise DataError(f"The statistics tell nothing of {name}, without which no job can be proposed.")
    return found


def _is_uniform(statistics: Statistics) -> bool:
    """Whether all images have voxels of one size, so that none needs to be resampled."""
    for axis in q.AXES:
        histogram = statistics.histograms[named(q.SPACING, axis)]
        if len(histogram.bins) != 1 or not statistics.fine:
            return False
        ((first, last),) = histogram.bins
        if first != last:
            return False
    return True


def _normalisation(task: Task, statistics: Statistics) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    """Fields of the task, why, and what is doubtful; CT by a window, everything else by mean and deviation."""
    if task.modality == "CT":
        return _window(task, statistics)
    kept = _quantile(statistics, q.KEPT, 0.5)
    crop = kept.value < _CROPPED
    chosen = "zscore_nonzero" if crop else "zscore"
    why = "less" if crop else "not less"
    text = (
        f"normalisation {chosen}: without its empty border an image keeps {kept.value:.0%} of its voxels in the "
        f"median, {why} than {_CROPPED:.0%}."
    )
    return {"normalisation": chosen, "window": None, "crop_to_foreground": crop}, text, ()


def _window(task: Task, statistics: Statistics) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    """From the 0.5 to the 99.5 percentile of what is labelled; of all voxels where nothing is."""
    (channel, *others), what = task.channels, q.STRUCTURE if task.classes else q.INTENSITY
    histogram = statistics.histograms.get(named(what, channel))
    ends = None if histogram is None else (histogram.quantile(LOWEST), histogram.quantile(HIGHEST))
    if ends is None or ends[0] is None or ends[1] is None or not ends[0].value < ends[1].value:
        raise DataError(f"The statistics tell nothing of the intensities of {channel}, which a CT window needs.")
    window = [round(ends[0].value, 1), round(ends[1].value, 1)]
    text = (
        f"normalisation window {window[0]:g} to {window[1]:g}: the 0.5 and 99.5 percentiles of the labelled voxels, "
        f"known to {ends[0].error:.2g} and {ends[1].error:.2g}."
    )
    doubts = (f"The window follows from {channel} alone; look whether it fits {', '.join(others)}.",) if others else ()
    return {"normalisation": "window", "window": window, "crop_to_foreground": False}, text, doubts


def _batch(
    statistics: FederationStatistics, fingerprint: Fingerprint, spacing: list[float], patch: list[int], voxels: int
) -> tuple[int, str]:
    """Patches of a step: what the voxels of two largest patches allow, 5 % of all data at most, and steps enough."""
    cases = prod(size / step for size, step in zip(fingerprint.extent, spacing, strict=True)) * statistics.pooled.cases
    smallest = min(part.cases for part in statistics.sites.values())
    share, counted_cases = f"{_SHARE_OF_DATA:.0%} of the voxels of all cases", counted(smallest, "case")
    fewest = -(-smallest // _SMALLEST_BATCH)
    # The largest batch by each bound, why it is the largest, and what the smallest one that is proposed does instead.
    bounds = (
        (2 * voxels // prod(patch), f"a step has at most {2 * voxels} voxels, as many as two largest patches", ""),
        (
            round(cases * _SHARE_OF_DATA / prod(patch)),
            f"a larger batch would have more than {share}",
            f"it has more than {share}, because the sites have few cases",
        ),
        (
            smallest // _STEPS,
            f"the smallest site, with {counted_cases}, has at least {_STEPS} steps in a pass over its cases",
            f"the smallest site, with {counted_cases}, has {counted(fewest, 'step')} in a pass over its cases; "
            f"{_STEPS} are the aim",
        ),
    )
    most, why, instead = min(bounds, key=lambda bound: bound[0])
    if most >= _SMALLEST_BATCH:
        return most, f"batch_size {most}: {why}."
    return _SMALLEST_BATCH, f"batch_size {_SMALLEST_BATCH}, the smallest that is proposed: {instead}."


def _declaration(task: Task, changed: dict[str, Any]) -> dict[str, Any]:
    """The whole task as the job declares it, with what was proposed; what is None is left out."""
    content = {**task.to_dict(), **changed}
    return {name: value for name, value in content.items() if value is not None}


def _spacing_words(fingerprint: Fingerprint, spacing: list[float], uniform: bool) -> str:
    if uniform:
        return f"no spacing: all images have voxels of {_times(fingerprint.spacing)} mm, and keep them."
    thin = [round(s, 3) != round(m, 3) for s, m in zip(spacing, fingerprint.spacing, strict=True)]
    rule = "the medians"
    if any(thin):
        axis = q.AXES[thin.index(True)]
        rule += f", and along {axis}, where slices are thick, the tenth percentile"
    return f"spacing {_times(spacing)} mm: {rule}."


def _noise_words(statistics: FederationStatistics) -> tuple[str, ...]:
    noisy = [site for site, part in sorted(statistics.sites.items()) if part.noise is not None]
    if not noisy:
        return ()
    return (f"{', '.join(noisy)} counted in coarse bins with noise: take every number as a first guess.",)


def _times(values: Any) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
