"""Prepared cases, read from image files once: kept in memory, or on the site's disk for large data sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fedseg.data.datalist import Case
from fedseg.data.grid import Grid
from fedseg.files.documents import whole_file
from fedseg.tasks.task import Task
from fedseg.training.prepare import PreparedCase, prepare_case
from fedseg.version import __version__


class CaseCache:
    """The prepared cases of one split, by index.

    The first access to a case reads and pre-processes its files, all later ones do not touch an image file.
    """

    def __init__(self, task: Task, cases: Sequence[Case], training: bool, folder: Path | None = None) -> None:
        """Nothing is read yet.

        Args:
            task: how to pre-process.
            cases: the cases of the split.
            training: see ``prepare_case``.
            folder: where prepared cases are stored; None keeps them in memory.
        """
        self.task, self.cases, self.training, self.folder = task, tuple(cases), training, folder
        self.reads = 0
        self._memory: dict[int, PreparedCase] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> PreparedCase:
        if self.folder is None:
            if index not in self._memory:
                self._memory[index] = self._prepare(index)
            return self._memory[index]
        path = self.folder / f"{self._key(self.cases[index])}.pt"
        if not path.exists():
            _store(self._prepare(index), path)
        return _load(path)

    def _prepare(self, index: int) -> PreparedCase:
        self.reads += 1
        return prepare_case(self.task, self.cases[index], self.training)

    def _key(self, case: Case) -> str:
        """Changes with the files' content (as size and time tell), the task, the use and the version."""
        files = [*case.images, *([case.label] if case.label else [])]
        text = json.dumps(
            [
                [_stamp(file) for file in files],
                case.missing,
                case.drawn,
                case.supervision.to_entry(),
                self.task.to_dict(),
                self.training,
                __version__,
            ],
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _stamp(file: Path) -> tuple[str, int, int]:
    try:
        state = file.stat()
    except (OSError, ValueError):  # whoever prepares the case says why
        return str(file), 0, 0
    return str(file), state.st_size, state.st_mtime_ns


def _store(case: PreparedCase, path: Path) -> None:
    content = {
        "id": case.id,
        "image": case.image,
        "classes": case.classes,
        "grid": (list(case.grid.shape), torch.from_numpy(case.grid.affine)),
        "original": (list(case.original.shape), torch.from_numpy(case.original.affine)),
        "reference": None if case.reference is None else torch.from_numpy(case.reference),
        "indices": list(case.indices),
        "voxels": list(case.voxels),
        "drawn": None if case.drawn is None else list(case.drawn),
        "possible": case.possible,
    }
    with whole_file(path) as temporary:
        torch.save(content, temporary)


def _load(path: Path) -> PreparedCase:
    content = torch.load(path, weights_only=True, mmap=True)

    def grid(part: tuple[list[int], torch.Tensor]) -> Grid:
        x, y, z = part[0]
        return Grid((x, y, z), np.array(part[1].numpy()))

    reference = content["reference"]
    return PreparedCase(
        content["id"],
        content["image"],
        content["classes"],
        grid(content["grid"]),
        grid(content["original"]),
        None if reference is None else np.array(reference.numpy()),
        tuple(content["indices"]),
        tuple(content["voxels"]),
        None if content["drawn"] is None else tuple(content["drawn"]),
        content["possible"],
    )
