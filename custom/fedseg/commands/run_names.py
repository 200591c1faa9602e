"""How commands that take several runs call them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedseg.errors import UsageError


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
