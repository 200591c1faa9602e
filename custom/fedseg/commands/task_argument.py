"""What people may write for a task on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedseg.errors import DataError, UsageError
from fedseg.tasks.registry import get_task, resolve_task, task_names
from fedseg.tasks.task import Task

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
