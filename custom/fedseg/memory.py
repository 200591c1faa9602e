"""Memory that a long-lived process has freed, given back to the machine."""

from __future__ import annotations

import ctypes
import logging
import sys
from functools import cache
from typing import Any

logger = logging.getLogger(__name__)


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
