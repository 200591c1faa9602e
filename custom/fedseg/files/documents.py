"""Files that are there as a whole or not at all, and JSON: read with a reason where it cannot be."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedseg.errors import ConfigurationError

LEFTOVER = ".tmp-"


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file.

    Args:
        path: of the file.
        what: what the file is, as messages name it, e.g. ``the plan of a job``.

    Raises:
        ConfigurationError: it is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigurationError(path.name, str(path), f"{what}, a readable JSON file ({error})") from None


def write_json(path: Path, content: Any, sort_keys: bool = False) -> Path:
    """Write JSON as ``write_whole`` writes it, one value a line."""
    return write_whole(path, json.dumps(content, indent=1, sort_keys=sort_keys) + "\n")


def write_whole(path: Path, content: bytes | str) -> Path:
    """Write a file in place of the one before: forced to the disk before it takes its name, or not there at all.

    Args:
        path: where to; its folder is made if it is missing.
        content: bytes, or text that is written as UTF-8.

    Returns:
        The path.

    Raises:
        OSError: it cannot be written; the file before it, if any, is unchanged.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` under which to write a file; it takes its name at the end, or vanishes on failure.

    It is for writers that want a path; the name has the endings of ``path``, begins with ``LEFTOVER`` and is no other
    thread's. A process that is killed leaves it behind.

    Raises:
        OSError: as of ``write_whole``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{LEFTOVER}{os.getpid()}-{threading.get_ident()}-{path.name}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
