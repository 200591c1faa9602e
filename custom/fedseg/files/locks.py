"""A folder for one command at a time: a lock that ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from fedseg.errors import FedsegError
from fedseg.processes import living_commands

LOCK = ".fedseg-lock"
_HELD: list[int] = []


class LockedError(FedsegError):
    """Another process works in the folder."""


@contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Let no other process of this software work in a folder meanwhile.

    The lock is the system's (``flock``): it is gone with the process that took it, also with one that was killed, and
    with those that this one started with ``held_locks``. The file beside it only says who that is. A folder that is
    missing is made, and removed again if it is still empty.

    Args:
        folder: to work in; a path that is none is left to the caller.
        command: what is done there, for the message of others, such as ``fedseg simulate``.

    Raises:
        LockedError: another process is there; the text names it, and says what to do.
        OSError: the folder cannot be written into.
    """
    if folder.exists() and not folder.is_dir():
        yield
        return
    made = _make(folder)
    try:
        lock = _take(folder / LOCK)
        try:
            created = psutil.Process().create_time()
            note = {"pid": os.getpid(), "created": created, "command": command, "host": socket.gethostname()}
            os.ftruncate(lock, 0)
            os.pwrite(lock, json.dumps(note).encode(), 0)
            _HELD.append(lock)
            yield
        finally:
            # While the lock is held, so that nobody finds the file of a lock that is free.
            (folder / LOCK).unlink(missing_ok=True)
            with suppress(ValueError):
                _HELD.remove(lock)
            os.close(lock)
    finally:
        for each in made:
            with suppress(OSError):
                each.rmdir()


def held_locks() -> tuple[int, ...]:
    """The locks of this process, to be handed to processes that work in the same folders (``pass_fds``)."""
    return tuple(_HELD)


def _make(folder: Path) -> list[Path]:
    """Make a folder, and say what was missing of it, the innermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _take(path: Path) -> int:
    while True:
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        except BlockingIOError:
            said = os.pread(lock, 4096, 0)
            os.close(lock)
            raise LockedError(_who(path.parent, said)) from None
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # of a file that its owner has removed meanwhile


def _who(folder: Path, said: bytes) -> str:
    """Which process is in a folder, and what to do."""
    try:
        note = json.loads(said)
        who = f"{note['command']} (process {note['pid']} on {note['host']})"
        if note["host"] == socket.gethostname() and not _lives(note["pid"], note["created"]):
            left = [str(process.pid) for process, command in living_commands() if _names(command, folder)]
            who = f"what {who} left behind when it was killed: process {', '.join(left) or '?'}"
    except (ValueError, KeyError, TypeError):
        who = "another process, which has just begun"
    return f"In {folder} works {who}. Wait until it has ended, end it, or name another folder."


def _lives(pid: int, created: float) -> bool:
    try:
        return psutil.Process(pid).create_time() == created
    except psutil.Error:
        return False


def _names(command: list[str], folder: Path) -> bool:
    place = str(folder.resolve())
    return any(word == place or word.startswith(place + os.sep) for word in command)
