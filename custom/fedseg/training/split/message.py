"""Features, predictions and their gradients as arrays that travel, and how many bytes these are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedseg.errors import RefusalError
from fedseg.networks.split.parts import Tensors
from fedseg.networks.weights import Arrays

SCALE = "scale:"
_KINDS = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
# The largest magnitude of a tensor comes to lie from 2**14 to 2**15: below float16's largest number, 65504, and with
# all its precision for everything down to a 2**28th of it. Gradients of a mean over voxels would else vanish.
_EXPONENT = 15


def pack(tensors: Mapping[str, torch.Tensor], precision: str) -> Arrays:
    """Arrays of a message.

    Args:
        tensors: by name, on any device.
        precision: a choice of ``SplitSettings.message``. With ``float16`` each tensor is divided by a power of two
            that brings its largest magnitude near the top of the type; it travels as ``scale:<name>`` (float64).
            Dividing by it rounds nothing; what is rounded is rounded to the nearest.

    Raises:
        RefusalError: a value is not finite (reason ``loss``).
    """
    arrays: Arrays = {}
    for name, tensor in tensors.items():
        value = tensor.detach()
        if not bool(torch.isfinite(value).all()):
            raise RefusalError("loss", f"{name} is not finite; the learning rate may be too high.")
        if precision == "float16":
            scale = _scale(value)
            arrays[SCALE + name] = np.array(scale)
            value = value / scale
        arrays[name] = value.to(_KINDS[precision]).cpu().contiguous().numpy()
    return arrays


def unpack(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]], precision: str) -> Tensors:
    """The tensors of a message; nothing in it is trusted.

    Args:
        arrays: from ``pack``.
        shapes: of one sample of each tensor that must be there, without the batch.
        precision: with which it was packed.

    Returns:
        Tensors [B, *shape] in float32, or in float64 if that is the precision.

    Raises:
        RefusalError: names, types, shapes or values are not what they must be (reason ``data``).
    """
    expected = {*shapes, *(SCALE + name for name in shapes if precision == "float16")}
    if set(arrays) != expected:
        raise RefusalError("data", f"The message holds {sorted(arrays)}, not {sorted(expected)}.")
    tensors: Tensors = {}
    for name, shape in shapes.items():
        value = np.asarray(arrays[name])
        kind = np.dtype(precision)
        if value.dtype != kind or value.shape[1:] != tuple(shape) or not value.size:
            raise RefusalError(
                "data", f"{name} is {value.dtype} {value.shape}, not {kind} with samples {tuple(shape)}."
            )
        # A copy, because an array that came over the wire may not be writable.
        tensor = torch.from_numpy(value.astype(np.float64 if precision == "float64" else np.float32, copy=True))
        if precision == "float16":
            tensor = tensor * _read_scale(arrays[SCALE + name], name)
        if not bool(torch.isfinite(tensor).all()):
            raise RefusalError("data", f"{name} holds values that are not finite.")
        tensors[name] = tensor
    return tensors


def message_bytes(arrays: Mapping[str, np.ndarray]) -> int:
    """Bytes of the values; whatever carries them adds names and headers."""
    return sum(value.nbytes for value in arrays.values())


@dataclass(frozen=True)
class StepBytes:
    """Bytes that one site sends (``up``) and receives (``down``) in one iteration."""

    up: int
    down: int


def _scale(value: torch.Tensor) -> float:
    largest = float(value.abs().max()) if value.numel() else 0.0
    return 2.0 ** max(int(np.frexp(largest)[1]) - _EXPONENT, -126) if largest else 1.0


def _read_scale(array: np.ndarray, name: str) -> float:
    value = np.asarray(array)
    if value.dtype != np.float64 or value.shape != () or not np.isfinite(value) or value <= 0:
        raise RefusalError("data", f"{name} has no positive scale.")
    return float(value)
