"""One name for equal contents: of a model's arrays, whatever file they lie in, and of a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_PASSED_OVER = "__pycache__"


def model_digest(weights: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the arrays of a model in the order of their names: each one's name, type, shape and bytes.

    Equal arrays have equal digests in any file and in any order; every other bit, shape, type or name has another.
    (Minus zero is another value than zero here, and so are two kinds of NaN.)

    Args:
        weights: all parameters and buffers by name.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = np.ascontiguousarray(weights[name])
        # ``ascontiguousarray`` makes 0-d arrays 1-d, so the shape is that of the array as it came.
        digest.update(json.dumps([name, str(value.dtype), list(np.shape(weights[name]))]).encode())
        digest.update(value.data)
    return digest.hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over all files below a folder in the order of their paths: each one's path and content.

    Args:
        folder: its own name does not count, and neither do Python's caches.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    found = [path for path in folder.rglob("*") if path.is_file()]
    files = [path for path in found if _PASSED_OVER not in path.relative_to(folder).parts]
    for path in sorted(files, key=lambda path: path.relative_to(folder).as_posix()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(json.dumps([path.relative_to(folder).as_posix(), content]).encode())
    return digest.hexdigest()
