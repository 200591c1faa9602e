"""Nothing that a command writes may replace what it reads: places for results, compared with all inputs before work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fedseg.errors import UsageError

_Identity = str | tuple[int, int]


def check_outputs(option: str, outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse files that could not be written, or would take the place of one that is read.

    A file is one by whatever name: links, hard links and the case of letters count as they do for the system.

    Args:
        option: that named the place, for messages.
        outputs: files that will be written.
        inputs: files and folders that are read; of a folder every file counts.

    Raises:
        UsageError: names the file, and what to do.
    """
    read = {identity for path in inputs for identity in _with_content(path)}
    for output in outputs:
        if not read.isdisjoint(_identities(output)):
            raise UsageError(f"{option}: {output} is a file that this command reads. Choose another place.")
        _check_place(option, output)


def check_new_folder(option: str, out: Path, inputs: Mapping[str, Path | None]) -> None:
    """Refuse a folder that is made anew, where that would remove something that is read.

    Args:
        option: that named the folder, for messages.
        out: the folder.
        inputs: what is read, by the option that named it; None where the option was not given.

    Raises:
        UsageError: names both.
    """
    for name, path in inputs.items():
        if path is not None and is_inside(path, out):
            raise UsageError(f"{name} {path} lies inside {option} {out}, which is made new. Name another {option}.")


def check_copied_folder(option: str, out: Path, folder: Path) -> None:
    """Refuse a place inside a folder that is copied there, which would have no end.

    Raises:
        UsageError: names both.
    """
    if is_inside(out, folder):
        raise UsageError(f"{option} {out} lies inside {folder}, which is copied there. Name another {option}.")


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is a folder, or lies in it, once all links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _with_content(path: Path) -> Iterator[_Identity]:
    yield from _identities(path)
    for place, _, names in os.walk(path):
        for name in names:
            yield from _identities(Path(place, name))


def _identities(path: Path) -> Iterator[_Identity]:
    """What is equal for two names of one file."""
    yield os.path.realpath(path)
    try:
        facts = os.stat(path)
    except OSError:
        return
    yield facts.st_dev, facts.st_ino


def _check_place(option: str, output: Path) -> None:
    """Refuse what the system would refuse after all the work."""
    if output.is_dir():
        raise UsageError(f"{option}: {output} is a folder, but a file is to be written there. Choose another place.")
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise UsageError(f"{option}: {folder} is a file, so nothing can be written below it. Choose another place.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{option}: nothing can be written in {folder}. Choose another place, or ask for the right.")
