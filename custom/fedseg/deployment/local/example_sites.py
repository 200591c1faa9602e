"""Sites to try a federation with, for whoever has none: real hippocampi where they are at hand, else phantoms."""

from __future__ import annotations

import os
from pathlib import Path

from fedseg.data.intake.sources import origin_note, read_source
from fedseg.data.partition import partition_by_sizes
from fedseg.data.phantoms.phantoms import PHANTOM_TASKS, make_phantoms
from fedseg.data.progress import Progress, silent
from fedseg.data.site_folders import write_sites
from fedseg.errors import UsageError
from fedseg.tasks.task import Task

IMAGES_VARIABLE = "FEDSEG_TEST_DATA"
HIPPOCAMPI = "Task04_Hippocampus"
SIZES = {"hospital-a": 40, "hospital-b": 30, "hospital-c": 20}
PHANTOM_CASES = 6


def hippocampi() -> Path | None:
    """The Decathlon's hippocampi in the folder that ``FEDSEG_TEST_DATA`` names; None without them."""
    folder = Path(os.environ.get(IMAGES_VARIABLE, "")) / HIPPOCAMPI
    return folder if os.environ.get(IMAGES_VARIABLE) and folder.is_dir() else None


def make_example_sites(task: Task, out: Path, seed: int, progress: Progress = silent) -> Path:
    """Write three sites for a task and return their folder.

    Args:
        task: of the job.
        out: a new folder.
        seed: of every draw.
        progress: shows how far the phantoms are.

    Raises:
        UsageError: there are neither real images nor phantoms for this task.
    """
    source = hippocampi()
    if task.name == "hippocampus" and source is not None:
        cases = read_source(source, task)
        sites = partition_by_sizes(cases, SIZES, seed)
        notes = {"origin": origin_note(source), "partition": {"method": "sizes", "value": SIZES, "seed": seed}}
        write_sites(sites, out, task, {"validation": 0.2, "test": 0.0}, seed, notes=notes)
    elif task.name in PHANTOM_TASKS:
        make_phantoms(task.name, len(SIZES), PHANTOM_CASES, out, seed, progress=progress)
    else:
        raise UsageError(
            f"There are no example images for the task {task.name}: name a folder with <site>/datalist.json by --data."
        )
    return out
