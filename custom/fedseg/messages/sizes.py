"""Bytes that a message takes on the wire."""

from __future__ import annotations

from typing import Any

import numpy as np
from nvflare.apis.shareable import Shareable
from nvflare.fuel.utils import fobs

from fedseg.allowed import is_count
from fedseg.contract.protocol import BYTES_DOWN, BYTES_UP

# Of one message; FLARE could not carry more.
_MOST_BYTES = 2**50


def told_sizes(result: Shareable) -> tuple[int, int]:
    """Bytes up and down, as a site says of its own answer; 0 for what is no such number."""
    told = (result.get_header(BYTES_UP), result.get_header(BYTES_DOWN))
    up, down = (size if is_count(size) and size <= _MOST_BYTES else 0 for size in told)
    return up, down


def message_size(message: Any) -> int:
    """Serialised size of a FLARE message in bytes, arrays that FLARE fetches separately included.

    The arrays are counted by their bytes and the rest is serialised by FLARE's own serialiser, so that a large model
    is not copied just to be counted.
    """
    arrays: list[int] = []
    skeleton = _without_arrays(message, arrays)
    return len(fobs.dumps(skeleton)) + sum(arrays)


def _without_arrays(value: Any, found: list[int]) -> Any:
    if isinstance(value, np.ndarray):
        found.append(value.nbytes)
        return str(value.dtype), list(value.shape)
    if isinstance(value, bytes | bytearray | memoryview):
        found.append(len(value))
        return None
    if isinstance(value, dict):
        return {str(k): _without_arrays(v, found) for k, v in value.items() if not str(k).startswith("__peer_ctx")}
    if isinstance(value, list | tuple | set):
        return [_without_arrays(v, found) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(type(value))
