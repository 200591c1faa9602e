"""A saved model on a datalist: scores, or masks on each image's own grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedseg.data.datalist import SPLITS, Case, Datalist, case_names
from fedseg.data.grid import write_mask
from fedseg.data.splits import require_files
from fedseg.errors import DataError, UsageError
from fedseg.files.documents import whole_file, write_json
from fedseg.models.model_file import ModelFile
from fedseg.tasks.segmentation.labels import to_values
from fedseg.tasks.segmentation.metrics import CaseScore, score_case, summarise
from fedseg.tasks.task import Task
from fedseg.training.inference import choose_device, infer_logits, segment
from fedseg.training.prepare import PreparedCase, prepare_case


def check_model_task(model: ModelFile, task: Task) -> None:
    """Refuse a model that was trained for something else.

    Raises:
        UsageError: channels, classes or regions differ.
    """
    for name in ("channels", "classes", "regions"):
        if getattr(model.task, name) != getattr(task, name):
            raise UsageError(
                f"The model was trained for the task {model.task.name} ({name} {_shown(model.task, name)}), "
                f"but --task is {task.name} ({_shown(task, name)})."
            )


def _shown(task: Task, name: str) -> str:
    return ", ".join(task.region_names if name == "regions" else getattr(task, name))


def choose_cases(datalist: Datalist, split: str) -> tuple[Case, ...]:
    """Cases of a split; ``final`` is the test split if it has cases, else validation; ``all`` is every case.

    Raises:
        DataError: there are none.
    """
    if split == "all":
        cases = tuple(case for name in SPLITS for case in datalist.split(name))
    else:
        cases = datalist.split(datalist.final_split if split == "final" else split)
    if not cases:
        raise DataError(f"{datalist.path} has no case in the split '{split}'. Choose another with --split.")
    require_files([replace(case, label=None) for case in cases])
    return cases


def segment_cases(
    model: ModelFile, cases: Iterable[Case], device: str, overlap: float, with_labels: bool = True
) -> Iterator[tuple[Case, PreparedCase, np.ndarray]]:
    """Segment cases one after the other: the case, as prepared, and class values on its original grid."""
    place = choose_device(device)
    network = model.build().to(place)
    for case in cases:
        prepared = prepare_case(model.task, case if with_labels else replace(case, label=None), training=False)
        logits = infer_logits(network, model.task, prepared.image, overlap, place)
        yield case, prepared, segment(model.task, prepared, logits)


def evaluate(
    model: ModelFile,
    cases: Sequence[Case],
    out: Path,
    *,
    progress: Callable[[Iterable[Case]], Iterable[Case]] = iter,
    device: str = "auto",
    overlap: float = 0.25,
    empty: str = "brats",
) -> dict[str, Any]:
    """Score a model and write ``evaluation.json``.

    Args:
        model: the model.
        cases: labelled cases.
        out: folder for the result.
        progress: wraps the cases, to show how far the work is.
        device: torch device or ``auto``.
        overlap: overlap of the sliding windows.
        empty: convention for empty regions.

    Returns:
        The written content: ``cases[]{id, dice, hd95, empty}`` and ``mean{dice, hd95}``.
    """
    scores: list[CaseScore] = []
    entries = []
    names = dict(zip(cases, case_names(cases), strict=True))
    for case, prepared, predicted in segment_cases(model, progress(cases), device, overlap):
        if prepared.reference is None:
            raise DataError(f"{names[case]} has no label; use `fedseg predict` for cases without one.")
        score = score_case(model.task, predicted, prepared.reference, prepared.original.spacing, empty)
        scores.append(score)
        entries.append({"id": names[case], "dice": score.dice, "hd95": score.hd95, "empty": score.empty})
    content = {"schema": "fedseg-evaluation-1", "cases": entries, "mean": summarise(scores), "empty_convention": empty}
    write_json(out / "evaluation.json", content)
    return content


def predict(
    model: ModelFile,
    cases: Sequence[Case],
    out: Path,
    *,
    progress: Callable[[Iterable[Case]], Iterable[Case]] = iter,
    device: str = "auto",
    overlap: float = 0.25,
    convention: int = 0,
) -> list[Path]:
    """Write one mask per case, ``<case>.nii.gz``, on the grid of its images, with the task's label values.

    Labels are not looked at. A mask of the same name is replaced.
    """
    written = []
    chosen = model.task.conventions[convention]
    names = dict(zip(cases, case_names(cases), strict=True))
    for case, prepared, predicted in segment_cases(model, progress(cases), device, overlap, with_labels=False):
        written.append(out / f"{names[case]}.nii.gz")
        with whole_file(written[-1]) as temporary:
            write_mask(to_values(model.task, predicted, chosen), prepared.original, temporary)
    return written
