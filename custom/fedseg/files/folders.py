"""A new folder that appears as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedseg.errors import UsageError


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary sibling of ``folder`` to write into; it takes its name at the end, or vanishes on failure.

    Raises:
        UsageError: ``folder`` is a file, or has something in it already.
    """
    folder = Path(os.path.abspath(folder))
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty. Name a new folder, or empty this one first.")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. Name a new folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        inner = temporary / folder.name  # mkdtemp makes its folder private; this one has the user's usual rights
        inner.mkdir()
        yield inner
        os.replace(inner, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
