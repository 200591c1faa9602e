"""A full disk, whoever notices it and however deep: one sentence that says what to do."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WORDS = tuple(os.strerror(number) for number in _FULL)
# With less no file of a run could be written.
_LEAST = 2**20


def is_full(error: BaseException | None) -> bool:
    """Whether there was no room on a disk: this error says so, or one that led to it.

    >>> is_full(OSError(errno.ENOSPC, "No space left on device")), is_full(OSError(errno.EIO, "Input/output error"))
    (True, False)
    """
    while error is not None:
        # Libraries in other languages raise errors of their own, with the system's words.
        if getattr(error, "errno", None) in _FULL or any(words in str(error) for words in _WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def lacks_room(folder: Path) -> bool:
    """Whether the disk of a folder has no room left."""
    try:
        return shutil.disk_usage(folder).free < _LEAST
    except OSError:
        return False
