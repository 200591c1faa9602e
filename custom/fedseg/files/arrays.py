"""Files of named arrays that are complete or not there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def save_whole(path: Path, arrays: Mapping[str, np.ndarray], header: Mapping[str, str]) -> Path:
    """Write a safetensors file in place of the one before, forced to the disk: complete, or not at all.

    Args:
        path: where to; its folder is made if it is missing.
        arrays: by name.
        header: text beside them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(contiguous(arrays), temporary, dict(header))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def contiguous(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays as safetensors wants them: contiguous, 0-d ones still 0-d (``ascontiguousarray`` makes them 1-d)."""
    return {name: np.ascontiguousarray(value).reshape(np.shape(value)) for name, value in weights.items()}
