"""Files that are there as a whole or not at all, and JSON: read with a reason where it cannot be."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedseg.errors import ConfigurationError, DataError

LEFTOVER = ".tmp-"
DEEPEST = 100
_NESTED = "its brackets are nested too deeply"


def parse_json(content: bytes | str) -> Any:
    """What a JSON text says.

    Args:
        content: text, or its bytes in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        ValueError: it is not JSON, or JSON that means nothing definite: a name twice in one object, NaN, half a letter,
            a number of thousands of digits, or more than ``DEEPEST`` brackets in each other. The text says which.
    """
    try:
        text = content if isinstance(content, str) else content.decode(json.detect_encoding(content))
        found = json.loads(text, object_pairs_hook=_each_name_once, parse_constant=_infinity)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(_NESTED) from None
    except UnicodeDecodeError:
        raise ValueError("it is not text in UTF-8") from None
    except UnicodeEncodeError:
        raise ValueError("it has half of a surrogate pair where a letter should be") from None
    _refuse_depth(found)
    return found


def _refuse_depth(found: Any) -> None:
    """Refuse what later recursion over the content, as of a copy, could not bear."""
    level = [found]
    for _ in range(DEEPEST + 1):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _inside(outer)]
        if not level:
            return
    raise ValueError(_NESTED)


def _inside(outer: dict[str, Any] | list[Any]) -> list[Any]:
    return list(outer.values()) if isinstance(outer, dict) else outer


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {name!r} stands twice in one object")
    return found


def _infinity(word: str) -> float:
    if word == "NaN":
        raise ValueError("NaN is no number")
    return float(word)


def load_json(path: Path) -> Any:
    """The content of a JSON file, for callers that say themselves what is wrong with it.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: as of ``parse_json``.
    """
    return parse_json(path.read_bytes())


def load_data(path: Path, missing: str, unreadable: str) -> Any:
    """The content of a JSON file that holds data.

    Args:
        path: of the file.
        missing: what is said after its path where there is no such file, with what to do.
        unreadable: what is said after its path, and before the cause, where it cannot be read.

    Raises:
        DataError: it is missing or cannot be read.
    """
    try:
        return load_json(path)
    except FileNotFoundError:
        raise DataError(f"{path} {missing}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} {unreadable}: {error}.") from None


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file.

    Args:
        path: of the file.
        what: what the file is, as messages name it, e.g. ``the plan of a job``.

    Raises:
        ConfigurationError: it is missing, cannot be read, or is not JSON.
    """
    try:
        return load_json(path)
    except (OSError, ValueError) as error:
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


@contextmanager
def private_files() -> Iterator[None]:
    """Nobody but their owner can read the files that this process makes meanwhile, from the first byte on."""
    former = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(former)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
