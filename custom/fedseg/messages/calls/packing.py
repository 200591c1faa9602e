"""Arrays as their bytes, in messages in which nothing is executed and from which nothing is fetched later."""

from __future__ import annotations

from collections.abc import Collection
from math import prod
from typing import Any

import numpy as np


def pack_array(value: np.ndarray) -> list[Any]:
    """Type, shape and bytes of an array.

    >>> pack_array(np.ones(2, np.uint8))
    ['uint8', [2], b'\\x01\\x01']
    """
    return [value.dtype.name, list(value.shape), np.ascontiguousarray(value).tobytes()]


def unpack_array(value: Any, kinds: Collection[str]) -> np.ndarray:
    """The array of ``pack_array``, read only.

    Args:
        value: as it came; nothing in it is trusted.
        kinds: names of the types that it may have.

    Raises:
        ValueError, TypeError: it is something else.
    """
    kind, shape, content = value
    if kind not in kinds or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(kind)
    if len(content) != prod(shape) * np.dtype(kind).itemsize:
        raise ValueError("length")
    return np.frombuffer(content, np.dtype(kind)).reshape(shape)
