"""A task as people name it: by a built-in name, a JSON file that declares one, or a job folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedseg.errors import DataError, UsageError
from fedseg.files.documents import load_json
from fedseg.tasks.registry import resolve_task, task_names
from fedseg.tasks.task import Task

TASK_HELP = f"one of {', '.join(task_names())}; or a JSON file with a task's declaration; or a job folder"
JOB_CONFIGURATION = Path("app", "config", "fedseg.json")


def task_declaration(argument: str) -> Any:
    """What a plan says of the task that is meant: a built-in name, or the content of a declaration.

    Raises:
        UsageError: it is no name, no file and no job folder.
        DataError: the file is not JSON, or the job states no task.
    """
    if argument in task_names():
        return argument
    path = Path(argument)
    if path.is_dir():
        content = _read(path / JOB_CONFIGURATION)
        if not isinstance(content, dict) or "task" not in content:
            raise DataError(f"{path / JOB_CONFIGURATION} states no task.")
        return content["task"]
    if path.is_file():
        return _read(path)
    raise UsageError(f"{argument!r} is no task: name {TASK_HELP}.")


def task_from_argument(argument: str) -> Task:
    """The task that is meant.

    Raises:
        UsageError, DataError: as of ``task_declaration``.
        ConfigurationError: the declaration is not valid.
    """
    return resolve_task(task_declaration(argument))


def task_files(argument: str) -> tuple[Path, ...]:
    """The file that ``task_declaration`` reads, where it reads one."""
    path = Path(argument)
    path = path / JOB_CONFIGURATION if path.is_dir() else path
    return (path,) if argument not in task_names() and path.is_file() else ()


def _read(path: Path) -> Any:
    try:
        return load_json(path)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist, so {path.parents[2]} is no job folder of fedseg.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not JSON: {error}.") from None
