"""DICOM files byte by byte, one slice each, with exactly the elements that a test wants."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
CT_IMAGE, REPORT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.11"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
PIXELS, ROWS, COLUMNS = (0x7FE0, 0x0010), (0x0028, 0x0010), (0x0028, 0x0011)
SLOPE, INTERCEPT, POSITION = (0x0028, 0x1053), (0x0028, 0x1052), (0x0020, 0x0032)
ORIENTATION, SPACING, SERIES = (0x0020, 0x0037), (0x0028, 0x0030), (0x0020, 0x000E)
MODALITY, DESCRIPTION, CHARACTER_SET = (0x0008, 0x0060), (0x0008, 0x103E), (0x0008, 0x0005)
Tag = tuple[int, int]
Value = tuple[str, object]  # value representation, and text, bytes or a whole number
UNDEFINED = 0xFFFFFFFF


def element(tag: Tag, kind: str, value: object, syntax: str = EXPLICIT) -> bytes:
    """One element; ``value`` is text, bytes, or a whole number of 16 bits."""
    order = ">" if syntax == BIG else "<"
    content = struct.pack(order + "H", value) if isinstance(value, int) else value
    content = content.encode("latin_1") if isinstance(content, str) else content
    assert isinstance(content, bytes)
    content += (b"\0" if kind in ("UI", "OW", "OB") else b" ") * (len(content) % 2)
    head = struct.pack(order + "HH", *tag)
    if syntax == IMPLICIT:
        return head + struct.pack("<I", len(content)) + content
    if kind in ("OW", "OB", "SQ", "UN"):
        return head + kind.encode() + b"\0\0" + struct.pack(order + "I", len(content)) + content
    return head + kind.encode() + struct.pack(order + "H", len(content)) + content


def sequence(tag: Tag, inside: bytes, kind: str = "SQ") -> bytes:
    """A sequence of one item, both of undefined length, explicit little endian."""
    item = struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED) + inside + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    head = struct.pack("<HH", *tag) + kind.encode() + b"\0\0" + struct.pack("<I", UNDEFINED)
    return head + item + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def slice_bytes(
    pixels: np.ndarray,
    number: int = 1,
    gap: float = 2.0,
    changes: Mapping[Tag, Value | None] | None = None,
    syntax: str = EXPLICIT,
    sop_class: str = CT_IMAGE,
    preamble: bool = True,
) -> bytes:
    """Slice ``number`` of a CT, counted from 1, with slope 1 and intercept -1024.

    Args:
        pixels: [Y, X], whole numbers of 16 bits.
        number: its place in the stack.
        gap: mm between slices.
        changes: elements that are set otherwise, added, or left out (None).
        syntax: transfer syntax.
        sop_class: what kind of object the file says it is.
        preamble: with the preamble and the first group.
    """
    order = ">" if syntax == BIG else "<"
    values: dict[Tag, Value | None] = {
        (0x0008, 0x0016): ("UI", sop_class),
        (0x0008, 0x0018): ("UI", f"1.2.3.4.{number}"),
        MODALITY: ("CS", "CT"),
        (0x0020, 0x000D): ("UI", "1.2.3"),
        SERIES: ("UI", "1.2.3.4"),
        POSITION: ("DS", f"0\\0\\{gap * (number - 1)}"),
        ORIENTATION: ("DS", "1\\0\\0\\0\\1\\0"),
        (0x0028, 0x0002): ("US", 1),
        (0x0028, 0x0004): ("CS", "MONOCHROME2"),
        ROWS: ("US", pixels.shape[0]),
        COLUMNS: ("US", pixels.shape[1]),
        SPACING: ("DS", "1\\1"),
        (0x0028, 0x0100): ("US", 16),
        (0x0028, 0x0101): ("US", 16),
        (0x0028, 0x0102): ("US", 15),
        (0x0028, 0x0103): ("US", int(pixels.dtype.kind == "i")),
        INTERCEPT: ("DS", "-1024"),
        SLOPE: ("DS", "1"),
        PIXELS: ("OW", pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()),
        **(changes or {}),
    }
    body = b"".join(element(tag, *value, syntax) for tag, value in sorted(values.items()) if value)
    if not preamble:
        return body
    first = element((2, 0x0002), "UI", sop_class) + element((2, 0x0010), "UI", syntax)
    return b"\0" * 128 + b"DICM" + element((2, 0), "UL", struct.pack("<I", len(first))) + first + body


def write_slices(folder: Path, pixels: np.ndarray, **changes: object) -> list[Path]:
    """Write the slices [Z, Y, X] of a series into ``folder`` as ``0.dcm``, ``1.dcm``...; ``changes`` go to each."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{z}.dcm" for z in range(len(pixels))]
    for z, file in enumerate(files):
        file.write_bytes(slice_bytes(pixels[z], z + 1, **changes))  # type: ignore[arg-type]
    return files
