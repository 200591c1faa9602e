"""Reading a hash chain: its form on the disk, and what is wrong with it; ``hash_chain`` says what it means."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedseg.errors import ConfigurationError, FedsegError

ORIGIN = "0" * 64

Entry = dict[str, Any]


class ChainError(FedsegError):
    """A chain is not what was written. The text names a line and no file.

    Attributes:
        line: number of the first line that is wrong, from 1.
    """

    def __init__(self, line: int, text: str) -> None:
        super().__init__(f"Line {line} {text}")
        self.line, self._text = line, text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.line, self._text)


@dataclass
class Chain:
    """A verified chain as it lies on the disk.

    Attributes:
        entries: all lines, oldest first, each with what was appended and ``number`` (from 1), ``time`` (UTC),
            ``previous`` and ``hash``.
        torn: bytes of an incomplete last line.
        open_line: whether the last line is complete, but for the sign of its end.
        unnoted: whether the head does not know the last line yet.
    """

    entries: list[Entry] = field(default_factory=list)
    torn: bytes = b""
    open_line: bool = False
    unnoted: bool = False

    @property
    def head(self) -> tuple[int, str]:
        """The number of lines, and the hash of the last one: what to note elsewhere."""
        return len(self.entries), self.entries[-1]["hash"] if self.entries else ORIGIN


@dataclass(frozen=True)
class Beginning:
    """Complete lines that were verified before; while a file still begins with them, byte for byte, they are sound.

    Attributes:
        content: the lines as they lay on the disk.
        entries: what they say.
    """

    content: bytes = b""
    entries: tuple[Entry, ...] = ()


def verify(path: Path) -> Chain:
    """Check a chain without changing anything.

    Returns:
        The chain; empty where neither the file nor its head exists.

    Raises:
        ChainError: the chain was changed.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return verified(path, b"")
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        return verified(path, path.read_bytes())
    finally:
        os.close(handle)


def verified(path: Path, content: bytes, known: Beginning = Beginning()) -> Chain:
    """As ``verify``, for content that was read while no other process could write.

    Args:
        path: of the chain.
        content: of its file.
        known: what was verified before, so that a long chain is not taken apart again for each line that is added.
    """
    chain = Chain()
    if content.startswith(known.content):
        chain.entries += known.entries
        content = content[len(known.content) :]
    *lines, rest = content.split(b"\n")
    for line in lines:
        chain.entries.append(_checked(line, len(chain.entries) + 1, chain.head[1]))
    if rest:
        try:
            chain.entries.append(_checked(rest, len(chain.entries) + 1, chain.head[1]))
            chain.open_line = True
        except ChainError:
            chain.torn = rest
    _check_head(path, chain)
    return chain


def _checked(line: bytes, number: int, previous: str) -> Entry:
    """The entry of a line, or what is wrong with it."""
    try:
        entry = json.loads(line)
        body = {name: value for name, value in entry.items() if name != "hash"}
        sound = canonical(entry) == line and entry["hash"] == digest(body)
        position, before = entry["number"], entry["previous"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigurationError):
        raise ChainError(number, "is not a line of a chain; it was changed or damaged.") from None
    if not sound:
        raise ChainError(number, "was changed: its hash does not fit its content.")
    if position != number:
        raise ChainError(number, f"has the number {position}: lines were removed, moved or added before it.")
    if before != previous:
        raise ChainError(number, "does not follow the line before it: one of the two belongs to another chain.")
    return dict(entry)


def _check_head(path: Path, chain: Chain) -> None:
    count = len(chain.entries)
    noted, last = _read_head(path, count)
    if noted > count:
        raise ChainError(count + 1, f"is missing: {noted} lines were written and {count} are left.")
    if noted < count - 1:
        raise ChainError(noted + 1, f"is not known to the head, which counts {noted} of {count} lines.")
    if last != (chain.entries[noted - 1]["hash"] if noted else ORIGIN):
        raise ChainError(max(noted, 1), "is not the line that the head names: the file or its head was replaced.")
    chain.unnoted = noted < count


def _read_head(path: Path, count: int) -> tuple[int, str]:
    try:
        content = json.loads(head_path(path).read_bytes())
        noted, last = int(content["count"]), str(content["hash"])
        if noted < 0:
            raise ValueError(noted)
        return noted, last
    except FileNotFoundError:
        if count > 1:
            raise ChainError(count, "has no head beside it: the file that counts the lines was removed.") from None
        return 0, ORIGIN
    except (ValueError, TypeError, KeyError):
        raise ChainError(max(count, 1), "has a damaged head: the file that counts the lines cannot be read.") from None


def head_path(path: Path) -> Path:
    """The file that counts the lines of the chain at ``path``."""
    return path.with_name(path.name + ".head")


def digest(body: Mapping[str, Any]) -> str:
    """The hash of a line without its ``hash``: SHA-256 of its canonical form, in hexadecimal digits."""
    return hashlib.sha256(canonical(body)).hexdigest()


def canonical(value: Mapping[str, Any]) -> bytes:
    """One spelling for each value: sorted names, no spaces, ASCII only.

    Raises:
        ConfigurationError: it holds what JSON does not know.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    except (TypeError, ValueError):
        raise ConfigurationError("entry", type(value).__name__, "values of JSON, with finite numbers") from None
