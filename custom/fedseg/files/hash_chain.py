"""A file that only grows: numbered lines of JSON, each with the hash of the one before, so that changes are found.

Beside ``FILE`` lies ``FILE.head`` with the number of lines and the last hash. The line is written first, then the
head, each forced to the disk before ``append`` returns. What a reader finds, and what it means:

===========================================  =======================================================================
a line changed, removed, moved or foreign    ``ChainError`` that names the line
the head counts more lines than there are    ``ChainError``: lines were cut off the end
the head counts one line less                killed between the two writes, or no room for the second; the line counts,
                                             and the head is repaired before the next line
the head counts fewer than that              ``ChainError``: the head is an older copy
a last line without its end                  killed in the middle of a write. If the line is complete it counts. If
                                             not, ``append`` had not returned, so nothing was done on its strength: it
                                             is moved to ``FILE.torn``, and the next line says how many bytes it had
===========================================  =======================================================================

The chain has no key. A user who may write both files can replace them by an older pair or by an invented chain, and
only a copy of the head that is kept elsewhere shows it. A user who may only append, or only read, cannot.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedseg.errors import ConfigurationError
from fedseg.files.documents import sync, whole_file
from fedseg.files.hash_chain_check import Beginning, Entry, canonical, digest, head_path, verified, verify

RESERVED = ("number", "time", "previous", "hash", "torn_bytes")

logger = logging.getLogger(__name__)


class HashChain:
    """Append-only JSON lines; processes and threads wait for each other. Needs a file system with ``flock``."""

    def __init__(self, path: Path) -> None:
        """Name the file.

        Args:
            path: made, with its folder, at the first ``append``.
        """
        self.path = path
        # Read and replaced only inside ``exclusive``.
        self._known = Beginning()

    def append(self, entry: Mapping[str, Any]) -> Entry:
        """Add a line, and return once it is on the disk.

        Args:
            entry: JSON values by name; none of ``RESERVED``.

        Returns:
            The line: the entry with its number, time, previous hash and hash.

        Raises:
            ChainError: the chain was changed; nothing is added.
            ConfigurationError: the entry cannot be a line.
        """
        with self.exclusive() as writer:
            return writer.append(entry)

    def read(self) -> list[Entry]:
        """All lines, verified, oldest first; an incomplete last line is left out with a warning.

        Raises:
            ChainError: the chain was changed.
        """
        chain = verify(self.path)
        if chain.torn:
            logger.warning("%s ends with %d bytes of an incomplete line.", self.path, len(chain.torn))
        return chain.entries

    @contextmanager
    def exclusive(self) -> Iterator[ChainWriter]:
        """Hold the chain alone: what is read and what is appended inside belongs together.

        Raises:
            ChainError: the chain was changed.
        """
        if not self.path.parent.is_dir():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            sync(self.path.parent.parent)
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            writer = ChainWriter(self.path, handle, self._known)
            self._known = writer.beginning
            yield writer
        finally:
            os.close(handle)


class ChainWriter:
    """The chain, while ``HashChain.exclusive`` holds it.

    Attributes:
        entries: all lines so far, verified.
        beginning: the complete ones among those that were found.
    """

    def __init__(self, path: Path, handle: int, known: Beginning) -> None:
        self._path, self._handle = path, handle
        content = path.read_bytes()
        self._chain = verified(path, content, known)
        self.entries = self._chain.entries
        complete = content[: content.rfind(b"\n") + 1]
        self.beginning = Beginning(complete, tuple(self.entries[: len(self.entries) - self._chain.open_line]))

    def append(self, entry: Mapping[str, Any]) -> Entry:
        """As ``HashChain.append``."""
        reserved = sorted(set(entry) & set(RESERVED))
        if reserved:
            raise ConfigurationError("entry", reserved[0], "free of the chain's own names", f"They are {RESERVED}.")
        count, previous = self._chain.head
        line: Entry = {**entry, "number": count + 1, "time": _now(), "previous": previous}
        if self._chain.torn:
            line["torn_bytes"] = len(self._chain.torn)
        line["hash"] = digest(line)
        text = canonical(line) + b"\n"
        self._repair()
        if os.write(self._handle, text) != len(text):
            raise OSError(errno.EIO, "the line was not written completely", str(self._path))
        os.fsync(self._handle)
        # As it will be read: tuples have become lists.
        written: Entry = json.loads(text)
        self.entries.append(written)
        self._chain.unnoted = True
        self._write_head()
        return written

    def _repair(self) -> None:
        """Finish or move away what a killed process or a full disk left at the end of the file."""
        if self._chain.open_line:
            os.write(self._handle, b"\n")
            self._chain.open_line = False
        if self._chain.unnoted:
            # Before the next line: a head that is two lines behind would be taken for an older copy.
            self._write_head()
        if self._chain.torn:
            with open(self._path.with_name(self._path.name + ".torn"), "ab") as file:
                file.write(self._chain.torn + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.ftruncate(self._handle, os.fstat(self._handle).st_size - len(self._chain.torn))
            self._chain.torn = b""

    def _write_head(self) -> None:
        count, last = self._chain.head
        with whole_file(head_path(self._path)) as temporary:
            temporary.touch(0o600)
            temporary.write_bytes(canonical({"count": count, "hash": last}) + b"\n")
        self._chain.unnoted = False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
