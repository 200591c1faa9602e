"""The folder of a federation on one machine: what lies in it, and whether a former one may be replaced."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedseg.files.folders import clear_output

PROVISIONED, LOGS, STATE, STORAGE, PROCESSES_FILE = "provisioned", "logs", "state", "server", "processes.json"
_PARTS = (PROVISIONED, LOGS, STATE, STORAGE, "data", "models", "report", "workspace")


def prepare_output(out: Path, overwrite: bool, needed: Mapping[str, Path | None] | None = None) -> None:
    """Make sure that ``out`` can become the folder of a local federation.

    Args:
        out: the folder.
        overwrite: whether a former local federation in it may be replaced.
        needed: folders that the run reads, by the option that named them; None where an option names none.

    Raises:
        UsageError: it holds something else, a former one that may not be replaced, or a folder that the run reads.
    """
    former = (out / PROVISIONED).is_dir()
    clear_output(out, "local federation", former, overwrite, (*_PARTS, PROCESSES_FILE), needed)
