"""A saved model on a datalist: scores, or masks on each image's own grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedseg.data.datalist import SPLITS, Case, Datalist, case_names
from fedseg.data.grid import write_mask
from fedseg.data.splits import require_files
from fedseg.errors import DataError, UsageError
from fedseg.files.documents import whole_file, write_json
from fedseg.models.model_file import ModelFile
from fedseg.tasks.objective import objective_of
from fedseg.tasks.segmentation.labels import to_values
from fedseg.tasks.task import Task
from fedseg.training.inference import choose_device, infer_logits, predict_case
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


@dataclass(frozen=True)
class Predictor:
    """A saved model at work on one case after the other.

    Attributes:
        model: the model.
        device: torch device or ``auto``.
        overlap: overlap of the sliding windows.
        progress: wraps the cases, to show how far the work is.
    """

    model: ModelFile
    device: str = "auto"
    overlap: float = 0.25
    progress: Callable[[Iterable[Case]], Iterable[Case]] = iter

    def predict(
        self, cases: Iterable[Case], with_labels: bool = True
    ) -> Iterator[tuple[Case, PreparedCase, np.ndarray]]:
        """The case, as prepared, and the prediction on its original grid."""
        task, place = self.model.task, choose_device(self.device)
        network = self.model.build().to(place)
        for case in self.progress(cases):
            prepared = prepare_case(task, case if with_labels else replace(case, label=None), training=False)
            logits = infer_logits(network, task, prepared.image, self.overlap, place)
            yield case, prepared, predict_case(objective_of(task), prepared, logits)


def evaluate(predictor: Predictor, cases: Sequence[Case], out: Path, empty: str = "brats") -> dict[str, Any]:
    """Score a model and write ``evaluation.json`` into the folder ``out``.

    Args:
        predictor: the model.
        cases: labelled cases.
        out: folder for the result.
        empty: convention for empty regions.

    Returns:
        The written content: ``cases[]{id, dice, hd95, empty}`` and ``mean{dice, hd95}``, or the scores of another kind.
    """
    kind, settings = objective_of(predictor.model.task), {"empty": empty}
    scores, entries = [], []
    names = dict(zip(cases, case_names(cases), strict=True))
    for case, prepared, predicted in predictor.predict(cases):
        if prepared.reference is None and kind.needs_label:
            raise DataError(f"{names[case]} has no label; use `fedseg predict` for cases without one.")
        scores.append(kind.score(predicted, prepared.reference, prepared.original.spacing, settings))
        entries.append({"id": names[case], **asdict(scores[-1])})
    mean = kind.summarise(scores)
    content = {"schema": "fedseg-evaluation-1", "cases": entries, "mean": mean, "empty_convention": empty}
    write_json(out / "evaluation.json", content)
    return content


def write_masks(predictor: Predictor, cases: Sequence[Case], out: Path, convention: int = 0) -> list[Path]:
    """Write one mask per case, ``<case>.nii.gz``, on the grid of its images, with the task's label values.

    Labels are not looked at. A mask of the same name is replaced.

    Raises:
        UsageError: the model's predictions are no masks.
    """
    task, written = predictor.model.task, []
    if not objective_of(task).masks:
        raise UsageError(f"The model is one of {objective_of(task).title}; its predictions are no masks.")
    names = dict(zip(cases, case_names(cases), strict=True))
    for case, prepared, predicted in predictor.predict(cases, with_labels=False):
        written.append(out / f"{names[case]}.nii.gz")
        with whole_file(written[-1]) as temporary:
            write_mask(to_values(task, predicted, task.conventions[convention]), prepared.original, temporary)
    return written
