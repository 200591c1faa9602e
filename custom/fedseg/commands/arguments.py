"""Arguments that several commands have in common."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedseg.errors import DataError, UsageError
from fedseg.tasks.registry import get_task, resolve_task, task_names
from fedseg.tasks.task import Task


def add_kit(parser: argparse.ArgumentParser) -> None:
    """Add ``--kit``."""
    parser.add_argument("--kit", type=Path, required=True, metavar="DIR", help="your unpacked kit, of a person's role")


def run_names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names where these differ, else their paths.

    Raises:
        UsageError: a folder is named twice.
    """
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise UsageError("the same run is named twice.")
    names = [folder.name for folder in resolved]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


HELP = f"one of {', '.join(task_names())}; or a JSON file with a task's declaration; or a job folder"


JOB_CONFIGURATION = Path("app", "config", "fedseg.json")


def task_from_argument(argument: str) -> Task:
    """The task meant by a built-in name, a JSON file that declares one, or a job folder.

    Raises:
        UsageError: it is none of these.
        DataError: the file is not JSON, or the job states no task.
        ConfigurationError: the declaration is not valid.
    """
    if argument in task_names():
        return get_task(argument)
    path = Path(argument)
    if path.is_dir():
        content = _read(path / JOB_CONFIGURATION)
        if not isinstance(content, dict) or "task" not in content:
            raise DataError(f"{path / JOB_CONFIGURATION} states no task.")
        return resolve_task(content["task"])
    if path.is_file():
        return resolve_task(_read(path))
    raise UsageError(f"{argument!r} is no task: name {HELP}.")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist, so {path.parents[2]} is no job folder of fedseg.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not JSON: {error}.") from None
