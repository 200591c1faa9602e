"""NIfTI-1 files byte by byte, with exactly the header fields that a test wants and no library's opinion in between."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HEADER_BYTES = 352
DATATYPES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "c8": 32}
# field -> (offset, struct format): NIfTI-1, nifti1.h.
FIELDS = {
    "sizeof_hdr": (0, "i"),
    "dim": (40, "8h"),
    "datatype": (70, "h"),
    "bitpix": (72, "h"),
    "pixdim": (76, "8f"),
    "vox_offset": (108, "f"),
    "scl_slope": (112, "f"),
    "scl_inter": (116, "f"),
    "xyzt_units": (123, "B"),
    "qform_code": (252, "h"),
    "sform_code": (254, "h"),
    "quatern": (256, "3f"),
    "qoffset": (268, "3f"),
    "srow": (280, "12f"),
    "magic": (344, "4s"),
}


def nifti_bytes(voxels: np.ndarray, endian: str = "<", **fields: object) -> bytes:
    """A single-file NIfTI-1 image of 1 mm with an identity sform, but for ``fields``."""
    values: dict[str, object] = {
        "sizeof_hdr": 348,
        "dim": (voxels.ndim, *voxels.shape, *(1,) * (7 - voxels.ndim)),
        "datatype": DATATYPES[voxels.dtype.str[1:]],
        "bitpix": 8 * voxels.dtype.itemsize,
        "pixdim": (1,) * 8,
        "vox_offset": HEADER_BYTES,
        "scl_slope": 1,
        "xyzt_units": 2,
        "sform_code": 1,
        "srow": (1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0),
        "magic": b"n+1\0",
        **fields,
    }
    header = bytearray(HEADER_BYTES)
    for name, value in values.items():
        offset, form = FIELDS[name]
        parts = value if isinstance(value, Sequence) and not isinstance(value, bytes) else (value,)
        struct.pack_into(endian + form, header, offset, *parts)
    return bytes(header) + voxels.astype(voxels.dtype.newbyteorder(endian)).tobytes(order="F")


def write_nifti(path: Path, voxels: np.ndarray, **fields: object) -> Path:
    """Write ``nifti_bytes``, packed where the name ends in ``.gz``."""
    content = nifti_bytes(voxels, **fields)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path
