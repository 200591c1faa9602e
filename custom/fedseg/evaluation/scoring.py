"""A saved model on a datalist: scores, or masks on each image's own grid."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from fedseg.data.datalist import SPLITS, Case, Datalist, case_names
from fedseg.data.grid import write_mask
from fedseg.errors import DataError, UsageError
from fedseg.evaluation.case_intervals import score_intervals
from fedseg.files.documents import whole_file, write_json, write_whole
from fedseg.models.model_file import ModelFile
from fedseg.tasks.objective import Objective, objective_of
from fedseg.tasks.segmentation.labels import to_values
from fedseg.tasks.task import Task
from fedseg.training.batch_statistics import adapt_statistics
from fedseg.training.inference import choose_device, decide_case, infer_logits, predict_values
from fedseg.training.prepare import PreparedCase, prepare_case

EVALUATION, EVALUATION_TABLE = "evaluation.json", "evaluation.csv"


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
    """Cases of a split, each once; ``final`` is the test split if it has cases, else validation; ``all`` is every case.

    Raises:
        DataError: there are none.
    """
    names = SPLITS if split == "all" else (datalist.final_split if split == "final" else split,)
    cases = tuple(dict.fromkeys(case for name in names for case in datalist.split(name)))
    if not cases:
        raise DataError(f"{datalist.path} has no case in the split '{split}'. Choose another with --split.")
    return cases


@dataclass(frozen=True)
class Predictor:
    """A saved model at work on one case after the other.

    Attributes:
        model: the model.
        device: torch device or ``auto``.
        overlap: overlap of the sliding windows.
        progress: wraps the cases, to show how far the work is.
        adapt: cases whose images give the statistics of batch normalisation; none: they stay those of training.
        network: what predicts in the place of the model's own network, in evaluation mode.
    """

    model: ModelFile
    device: str = "auto"
    overlap: float = 0.25
    progress: Callable[[Iterable[Case]], Iterable[Case]] = iter
    adapt: Sequence[Case] = ()
    network: nn.Module | None = None

    def predict(
        self, cases: Iterable[Case], with_labels: bool = True, failed: dict[Case, str] | None = None
    ) -> Iterator[tuple[Case, PreparedCase, np.ndarray]]:
        """The case, as prepared, and the prediction on its original grid; arguments as of ``activated``."""
        for case, prepared, values in self.activated(cases, with_labels, failed):
            yield case, prepared, decide_case(objective_of(self.model.task), prepared, values)

    def activated(
        self, cases: Iterable[Case], with_labels: bool = True, failed: dict[Case, str] | None = None
    ) -> Iterator[tuple[Case, PreparedCase, np.ndarray]]:
        """The case, as prepared, and the activated values [K, X, Y, Z] on its original grid.

        Args:
            cases: one after the other.
            with_labels: whether labels are read, too.
            failed: gets the cases that cannot be read, with the reason; without it they end everything.

        Raises:
            DataError: a case cannot be read, and nobody collects those that fail.
        """
        task, place = self.model.task, choose_device(self.device)
        network = (self.network or self.model.build()).to(place)
        if self.adapt:
            adapt_statistics(network, task, self._images(), self.overlap, place)
        for case in self.progress(cases):
            try:
                prepared = prepare_case(task, case if with_labels else replace(case, label=None), training=False)
            except DataError as error:
                if failed is None:
                    raise
                failed[case] = str(error)
                continue
            logits = infer_logits(network, task, prepared.image, self.overlap, place)
            yield case, prepared, predict_values(objective_of(task), prepared, logits)

    def _images(self) -> Iterator[torch.Tensor]:
        """The images of the cases that can be read; who predicts says of the others why."""
        for case in self.adapt:
            try:
                yield prepare_case(self.model.task, replace(case, label=None), training=False).image
            except DataError:
                continue


def evaluate(
    predictor: Predictor,
    cases: Sequence[Case],
    out: Path,
    empty: str = "brats",
    hd95: str = "larger",
    about: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Score a model and write ``evaluation.json`` and ``evaluation.csv`` into the folder ``out``; a case that cannot be
    read stops no other.

    Args:
        predictor: the model.
        cases: labelled cases.
        out: folder for the result.
        empty: convention for empty regions.
        hd95: one of ``HD95_FORMS``.
        about: what else the file is to say: of which model, which cases.

    Returns:
        The written content: ``cases[]`` with every score, ``mean``, ``intervals`` and ``spread`` of each, and
        ``cases_drawn``, in how many
        cases each region is drawn; ``failed``, the reason for each case that is left out.

    Raises:
        DataError: a case has no label, or none can be read; nothing is written.
    """
    kind, settings = objective_of(predictor.model.task), {"empty": empty, "hd95": hd95}
    scores, entries, failed = [], [], dict[Case, str]()
    names, drawn = dict(zip(cases, case_names(cases), strict=True)), dict.fromkeys(kind.outputs, 0)
    if kind.needs_label and (bare := [names[case] for case in cases if case.label is None]):
        raise DataError(f"{bare[0]} has no label; use `fedseg predict` for cases without one.")
    for case, prepared, values in predictor.activated(cases, failed=failed):
        predicted, spacing = decide_case(kind, prepared, values), prepared.original.spacing
        found = kind.score_drawn(prepared.drawn, predicted, prepared.reference, spacing, settings, values=values)
        scores.append(found)
        for position, output in enumerate(kind.outputs):
            drawn[output] += prepared.drawn is None or prepared.drawn[position]
        entries.append({"id": names[case], "patient": case.patient, **asdict(scores[-1])})
    reasons = _told(failed, cases, names)
    mean = kind.summarise(scores)
    content = {
        "schema": "fedseg-evaluation-1",
        **about,
        "task": predictor.model.task.name,
        "overlap": predictor.overlap,
    }
    intervals = score_intervals(kind, scores, [entry["patient"] for entry in entries])
    content |= {"cases": entries, "mean": mean, "intervals": intervals, "spread": _spread(kind, scores)}
    content |= {"cases_drawn": drawn} if kind.partial else {}
    content |= {"empty_convention": empty, "hd95_form": hd95, "failed": reasons}
    table = _case_table(kind, entries)
    write_json(out / EVALUATION, content)
    write_whole(out / EVALUATION_TABLE, table)
    return content


def _spread(kind: Objective, scores: Sequence[Any]) -> dict[str, Any]:
    """Of each score and output: ``median``, ``quartiles`` and ``weakest`` over the cases that have one."""
    found: dict[str, Any] = {}
    for score in kind.scores:
        for output in kind.outputs:
            values = [v for each in scores if (v := getattr(each, score.name).get(output)) is not None]
            quartiles = np.percentile(values, [25, 50, 75]) if values else [None] * 3
            low, median, high = (None if q is None else float(q) for q in quartiles)
            told = {"median": median, "quartiles": [low, high], "weakest": score.worst(values)}
            found.setdefault(score.name, {})[output] = told
    return found


def _case_table(kind: Objective, entries: Sequence[Mapping[str, Any]]) -> str:
    """One line per case and output, as comma-separated values."""
    scores = [score.name for score in kind.scores]
    more = [name for name in ("volumes", "lesions") if entries and entries[0].get(name)]
    facts = {name: list(next(iter(entries[0][name].values()))) for name in more}
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    units = {"volumes": "_ml"}
    header = [f"{key}{units.get(name, '')}" for name in more for key in facts[name]]
    table.writerow(["case", "patient", kind.output, *scores, *header])
    for entry in entries:
        for output in kind.outputs:
            values = [entry[name].get(output) for name in scores]
            values += [entry[name].get(output, {}).get(key) for name in more for key in facts[name]]
            table.writerow([entry["id"], entry["patient"], output, *values])
    return file.getvalue()


def _told(failed: Mapping[Case, str], cases: Sequence[Case], names: Mapping[Case, str]) -> dict[str, str]:
    """Why cases failed, by name.

    Raises:
        DataError: all of them did.
    """
    if failed and len(failed) == len(cases):
        raise DataError(f"None of the {len(cases)} case(s) can be used. The first: {next(iter(failed.values()))}")
    return {names[case]: reason for case, reason in failed.items()}


def mask_files(cases: Sequence[Case], out: Path) -> dict[Case, Path]:
    """The file of each case's mask."""
    return {case: out / f"{name}.nii.gz" for case, name in zip(cases, case_names(cases), strict=True)}


def write_masks(
    predictor: Predictor, cases: Sequence[Case], out: Path, convention: int = 0
) -> tuple[list[Path], dict[str, str]]:
    """Write one mask per case, ``<case>.nii.gz``, on the grid of its images, with the task's label values.

    Labels are not looked at. A mask of the same name is replaced. A case that cannot be read stops no other.

    Returns:
        The masks, and the reason for each case without one.

    Raises:
        UsageError: the model's predictions are no masks.
        DataError: no case can be read.
    """
    task, written, failed = predictor.model.task, [], dict[Case, str]()
    if not objective_of(task).masks:
        raise UsageError(f"The model is one of {objective_of(task).title}; its predictions are no masks.")
    files = mask_files(cases, out)
    for case, prepared, predicted in predictor.predict(cases, with_labels=False, failed=failed):
        written.append(files[case])
        with whole_file(written[-1]) as temporary:
            write_mask(to_values(task, predicted, task.conventions[convention]), prepared.original, temporary)
    return written, _told(failed, cases, {case: file.name.removesuffix(".nii.gz") for case, file in files.items()})
