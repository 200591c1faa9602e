"""ZIP files and folders of others, looked at before they are unpacked or copied: how much, how many, and where to."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile, ZipInfo

from fedseg.errors import ConfigurationError

DEEPEST, LONGEST_NAME = 20, 1000
# What packs text packs it tighter than this seldom; what unpacks to more than 20 times its size would fill a disk.
_TIGHTEST, _SMALL = 20, 2**20
_SHOWN = 60


@dataclass(frozen=True)
class Limits:
    """How much a folder or an archive may hold.

    Attributes:
        what: it is, as the subject of a refusal.
        files: most files and folders in it.
        size: most bytes of all files together, unpacked; None for what the size of the archive allows.
    """

    what: str
    files: int
    size: int | None = None

    def check_count(self, count: int) -> None:
        """Refuse more files and folders than there may be."""
        if count > self.files:
            raise ConfigurationError(
                f"The number of files in {self.what}", f"more than {self.files}", f"{self.files} at most"
            )

    def check_size(self, size: int) -> None:
        """Refuse more bytes than there may be."""
        if self.size is not None and size > self.size:
            raise ConfigurationError(f"The size of {self.what}", size, f"{self.size} bytes at most")

    def check_place(self, name: str, is_file: bool) -> None:
        """Refuse a name, with ``/``, that leads out of its folder, means the same as another name, or is beyond use."""
        parts = name.rstrip("/").split("/")
        # A folder without files would otherwise be made unseen, wherever its name leads.
        if "\\" in name or any(part in ("", ".", "..") for part in parts) or (is_file and name.endswith("/")):
            raise ConfigurationError(f"A name in {self.what}", shortened(name), "that of a place inside of it")
        if len(parts) > DEEPEST or len(name) > LONGEST_NAME:
            allowed = f"at most {DEEPEST} folders deep and {LONGEST_NAME} letters long"
            raise ConfigurationError(f"A name in {self.what}", shortened(name), allowed)


def check_archive(archive: ZipFile, limits: Limits) -> list[ZipInfo]:
    """Look at the table of an archive, which bounds what Python unpacks of it.

    Args:
        archive: opened for reading.
        limits: of its content.

    Returns:
        Its entries.

    Raises:
        ConfigurationError: it holds too much, too many, a link, a name twice, or a name that leads elsewhere.
    """
    entries = archive.infolist()
    limits.check_count(len(entries))
    total, names = 0, set()
    for entry in entries:
        limits.check_place(entry.filename, not entry.is_dir())
        plain = entry.filename.rstrip("/")
        if stat.S_ISLNK(entry.external_attr >> 16) or plain in names:
            raise ConfigurationError(
                f"The file in {limits.what}", shortened(entry.filename), "a plain file, and there once"
            )
        names.add(plain)
        total += entry.file_size
        _check_ratio(f"The size of {shortened(entry.filename)}", entry.file_size, entry.compress_size)
    # Entries may share the same packed bytes, and many small ones are as large as a great one.
    assert archive.fp is not None
    archive.fp.seek(0, os.SEEK_END)
    _check_ratio(f"The size of {limits.what}", total, archive.fp.tell())
    limits.check_size(total)
    return entries


def files_below(folder: Path, limits: Limits) -> list[tuple[str, Path, int]]:
    """The files below a folder, in sorted order: name with ``/``, path, and bytes.

    Raises:
        ConfigurationError: there is too much, too many, a link, no usual file, or a folder too deep.
    """
    found: list[tuple[str, Path, int]] = []
    waiting, count, total = [""], 0, 0
    while waiting:
        inside = waiting.pop()
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                count += 1
                limits.check_count(count)
                name = f"{inside}/{entry.name}" if inside else entry.name
                if entry.is_symlink():
                    # What it points to would be sent along, from wherever it lies.
                    raise ConfigurationError(
                        f"The file in {limits.what}", shortened(name), "a file of its own, and no link to another place"
                    )
                limits.check_place(name, True)
                if entry.is_dir():
                    waiting.append(name)
                    continue
                if not entry.is_file():  # a pipe would be waited for
                    raise ConfigurationError(f"The file in {limits.what}", shortened(name), "a usual file")
                size = entry.stat().st_size
                total += size
                found.append((name, Path(entry.path), size))
    limits.check_size(total)
    return sorted(found)


def shortened(text: str) -> str:
    """A text of others, as long as it may stand in a message."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _check_ratio(what: str, unpacked: int, packed: int) -> None:
    if unpacked > _SMALL and unpacked > _TIGHTEST * packed:
        raise ConfigurationError(what, unpacked, f"at most {_TIGHTEST} times what it takes in the archive")
