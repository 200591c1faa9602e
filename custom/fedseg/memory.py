"""Memory of this machine: how much there is, and what a long-lived process has freed, given back."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import sys
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from fedseg.errors import ConfigurationError

logger = logging.getLogger(__name__)
# Where Linux says how much a container may have.
_CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
GIB = 2**30
SMALLER = "Take smaller patches or batches, a smaller network or a larger spacing, or a machine with more memory."


def machine_memory() -> int:
    """Bytes of memory that this machine, or the container in which this process runs, has in all."""
    total = int(psutil.virtual_memory().total)
    for path in _CONTAINER:
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(path.read_text("ascii")))
    return total


def check_memory(what: str, needed: int, limit: int | None = None, remedy: str = SMALLER) -> None:
    """Refuse something before memory is asked for it.

    Args:
        what: it is, as a message begins.
        needed: bytes, at least.
        limit: bytes; None for what the machine has.
        remedy: what to do, as a sentence.

    Raises:
        ConfigurationError: it needs more; names estimate and limit.
    """
    most = machine_memory() if limit is None else limit
    if needed > most:
        size, bound = (f"{value / GIB:.3g} GiB" for value in (needed, most))
        raise ConfigurationError(f"The memory of {what}", size, f"{bound} at most", remedy)


def give_back() -> bool:
    """Let the C library return freed memory to the system; a few milliseconds.

    glibc keeps what is freed, in one heap for about each thread, and FLARE answers each message in another thread: the
    resident memory of a process that only receives and forgets arrays grows by some megabytes in ten rounds.

    Returns:
        Whether the C library can do that; only glibc can.
    """
    trim = _trim()
    if trim is None:
        return False
    trim(0)
    return True


@cache
def _trim() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        logger.info("This C library cannot be asked to give memory back.")
        return None
