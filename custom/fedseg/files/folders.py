"""A new folder that appears as a whole or not at all, one that takes a former one's place, and all files below one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedseg.errors import DataError, UsageError
from fedseg.files.locks import LOCK
from fedseg.files.outputs import check_new_folder


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


@contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """Remove what is made in a folder meanwhile, and the folder if it was not there, where the work fails."""
    before = set(folder.iterdir()) if folder.is_dir() else None
    try:
        yield
    except BaseException:
        for path in set(folder.iterdir()) - (before or set()) if folder.is_dir() else ():
            shutil.rmtree(path, ignore_errors=True)
        if before is None and folder.is_dir():
            folder.rmdir()
        raise


def clear_output(
    out: Path,
    kind: str,
    is_former: bool,
    overwrite: bool,
    parts: Sequence[str],
    needed: Mapping[str, Path | None] | None = None,
) -> None:
    """Make sure that ``--out`` is an empty folder, or that a former one's parts are gone from it.

    Args:
        out: the folder, made where it is missing.
        kind: what it will be the folder of, such as ``run``.
        is_former: whether it is the folder of a former one.
        overwrite: whether that may be replaced.
        parts: names of the files and folders in it that are removed; what else lies there stays.
        needed: what the command reads, by the option that named it.

    Raises:
        UsageError: it is a file, holds something else, a former one that may not be replaced, or what the command
            reads.
    """
    check_new_folder("--out", out, needed or {})
    if out.is_dir() and any(path.name != LOCK for path in out.iterdir()):
        if not is_former:
            raise UsageError(f"--out {out} is not empty and no former {kind}. Name a new folder.")
        if not overwrite:
            raise UsageError(f"--out {out} holds a former {kind}. Name a new folder, or add --overwrite to replace it.")
        for name in parts:
            if (out / name).is_dir():
                shutil.rmtree(out / name, ignore_errors=True)
            else:
                (out / name).unlink(missing_ok=True)
    elif out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file. Name a folder.")
    out.mkdir(parents=True, exist_ok=True)


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Every folder below ``folder`` with the names of its folders and files, in sorted order.

    Links to folders are followed, but no folder is entered twice.

    Raises:
        DataError: a folder cannot be listed, so that what lies in it would be left out.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}. Get the right to read it, or move it.")

    entered = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        whole = sorted(folders)
        folders.clear()
        for name in whole:
            real = os.path.realpath(os.path.join(place, name))
            if real not in entered:
                entered.add(real)
                folders.append(name)
        yield Path(place), folders, sorted(names)
