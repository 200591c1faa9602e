"""The built-in tasks, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedseg.errors import ConfigurationError
from fedseg.tasks.task import LabelConvention, Region, Task, parse_task

# BraTS: Baid et al., 2021 (arXiv 2107.02314); the 2023 challenges write the enhancing tumour as 3 instead of 4.
BRATS = Task(
    name="brats",
    description="Brain tumour in four MR sequences, skull-stripped, 1 mm (BraTS)",
    modality="MR",
    channels=("t1", "t1ce", "t2", "flair"),
    classes=("necrosis", "oedema", "enhancing"),
    conventions=(
        LabelConvention("BraTS 2021", {"necrosis": 1, "oedema": 2, "enhancing": 4}),
        LabelConvention("BraTS 2023", {"necrosis": 1, "oedema": 2, "enhancing": 3}),
    ),
    regions=(
        Region("ET", ("enhancing",)),
        Region("TC", ("necrosis", "enhancing")),
        Region("WT", ("necrosis", "oedema", "enhancing")),
    ),
    normalisation="zscore_nonzero",
    patch_size=(128, 128, 128),
    spacing_range=(0.5, 4.0),
    crop_to_foreground=True,
    sampling={"background": 1, "necrosis": 1, "oedema": 1, "enhancing": 1},
    flip_axes=(0, 1, 2),
    # Where tumour borders are read: contrast-enhanced T1 for the core, FLAIR for the oedema.
    display=("t1ce", "flair"),
)

# Pancreas: Medical Segmentation Decathlon Task07 (Antonelli et al., Nat Commun 2022), portal-venous CT.
PANCREAS = Task(
    name="pancreas",
    description="Pancreas and pancreatic tumour in portal-venous CT (Decathlon Task07)",
    modality="CT",
    channels=("ct",),
    classes=("pancreas", "tumour"),
    conventions=(LabelConvention("Decathlon Task07", {"pancreas": 1, "tumour": 2}),),
    regions=(Region("pancreas", ("pancreas",)), Region("tumour", ("tumour",))),
    normalisation="window",
    window=(-100.0, 240.0),
    spacing=(1.5, 1.5, 2.5),
    spacing_range=(0.3, 10.0),
    patch_size=(96, 96, 64),
    sampling={"background": 1, "pancreas": 1, "tumour": 1},
    # That of FLARE 2022 (Ma et al., Lancet Digit Health 2024) for the pancreas; CT slices are up to 2.5 mm apart.
    tolerance=5.0,
)

# Hippocampus: Medical Segmentation Decathlon Task04; whole volumes fit in one patch.
HIPPOCAMPUS = Task(
    name="hippocampus",
    description="Anterior and posterior hippocampus in T1 MR, cropped, 1 mm (Decathlon Task04)",
    modality="MR",
    channels=("t1",),
    classes=("anterior", "posterior"),
    conventions=(LabelConvention("Decathlon Task04", {"anterior": 1, "posterior": 2}),),
    regions=(Region("anterior", ("anterior",)), Region("posterior", ("posterior",))),
    normalisation="zscore",
    spacing_range=(0.5, 4.0),
    patch_size=(40, 56, 40),
)

_TASKS = {task.name: task for task in (BRATS, PANCREAS, HIPPOCAMPUS)}


def task_names() -> tuple[str, ...]:
    """Names of the built-in tasks."""
    return tuple(_TASKS)


def get_task(name: str) -> Task:
    """The built-in task of this name.

    Raises:
        ConfigurationError: there is none.
    """
    if name not in _TASKS:
        raise ConfigurationError("task", name, f"one of {list(_TASKS)} or a declared task")
    return _TASKS[name]


def resolve_task(declaration: str | Mapping[str, Any]) -> Task:
    """The task that a job names or declares.

    Args:
        declaration: a built-in name; ``{"name": built-in, field: value...}`` to change single fields of a built-in
            task (e.g. its ``patch_size``); or a whole declaration as ``parse_task`` takes it.

    Raises:
        ConfigurationError: a field is wrong, or the kind of task cannot work with it.
    """
    if isinstance(declaration, str):
        return get_task(declaration)
    if not isinstance(declaration, Mapping):
        raise ConfigurationError("task", declaration, "a name or an object of the task's fields")
    whole = "labels" in declaration or "classes" in declaration
    base = None if whole else _TASKS.get(str(declaration.get("name")))
    task = parse_task({**base.to_dict(), **declaration} if base else declaration)
    # Imported here: kinds of tasks need torch, names of tasks do not.
    from fedseg.tasks.objective import objective_of

    objective_of(task)
    return task
