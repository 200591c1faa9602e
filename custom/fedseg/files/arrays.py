"""Files of named arrays (safetensors) that are complete or not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedseg.errors import ConfigurationError
from fedseg.files.digest import model_digest
from fedseg.files.documents import whole_file
from fedseg.memory import check_memory

_SEAL = "digest"


def save_whole(path: Path, arrays: Mapping[str, np.ndarray], header: Mapping[str, str]) -> Path:
    """Write a safetensors file in place of the one before, forced to the disk: complete, or not at all.

    Args:
        path: where to; its folder is made if it is missing.
        arrays: by name.
        header: text beside them.
    """
    with whole_file(path) as temporary:
        save_file(contiguous(arrays), temporary, dict(header))
    return path


def read_arrays(path: Path, names: Sequence[str] | None = None) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The header and the arrays of a safetensors file, in the file's order; nothing in it is executed.

    Args:
        path: of the file.
        names: of the arrays that are read; None reads all.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read, or is no such file.
    """
    try:
        if names is None:
            check_memory("its arrays", path.stat().st_size, remedy="")
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
            return file.metadata() or {}, arrays
    except (SafetensorError, ConfigurationError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # A type that numpy lacks, or a shape that it cannot have.
        raise OSError(str(error)) from None


def save_sealed(path: Path, arrays: Mapping[str, np.ndarray], header: Mapping[str, str]) -> Path:
    """Write such a file with a digest of all that it says; see ``save_whole``, and ``read_sealed``."""
    return save_whole(path, arrays, {**header, _SEAL: _seal(arrays, header)})


def read_sealed(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Header and arrays of a file that ``save_sealed`` wrote; see ``read_arrays``.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read, or is not what was written.
    """
    header, arrays = read_arrays(path)
    if header.pop(_SEAL, "") != _seal(arrays, header):
        raise OSError("its content does not have the digest that was written with it")
    return header, arrays


def _seal(arrays: Mapping[str, np.ndarray], header: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([model_digest(arrays), sorted(header.items())]).encode()).hexdigest()


def contiguous(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays as safetensors wants them: contiguous, 0-d ones still 0-d (``ascontiguousarray`` makes them 1-d)."""
    return {name: np.ascontiguousarray(value).reshape(np.shape(value)) for name, value in weights.items()}
