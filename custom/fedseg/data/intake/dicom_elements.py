"""The elements of a DICOM file, as far as GDCM does not tell them: is it an image, is it whole, how much does it hold.

GDCM says of a damaged file no more than of a letter, and fills pixels that a file lacks with whatever lies in memory.
Elements and their encodings are those of DICOM PS3.5, 7.1 and A.4, and of PS3.10, 7.1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_SHORT = {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL"}
_SHORT |= {b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_SYNTAX, _SOP_CLASS, _MODALITY = (0x0002, 0x0010), (0x0008, 0x0016), (0x0008, 0x0060)
_ROWS, _PIXELS = (0x0028, 0x0010), (0x7FE0, 0x0010)
_BIG, _DEFLATED = b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99"
_OTHER_KINDS = {"SEG"}  # images by their elements, but of labels


@dataclass(frozen=True)
class Outline:
    """What a DICOM file is by its elements.

    Attributes:
        is_image: it has pixels, or says how many rows of them.
        is_whole: no element ends beyond the end of the file.
        sop_class: what kind of object it says it is, empty where it does not.
        pixel_bytes: bytes of its pixels; None where they are compressed, or there are none.
    """

    is_image: bool
    is_whole: bool
    sop_class: str = ""
    pixel_bytes: int | None = None


def read_outline(file: Path) -> Outline | None:
    """Go through the elements of a file up to its pixels; None for a file that is not DICOM.

    Raises:
        OSError: the system does not let us read it.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        if stream.read(132)[128:] != b"DICM":
            stream.seek(0)
            if not _begins_like_dicom(stream.read(8), size):
                return None
            stream.seek(0)
        has_rows, values = False, dict.fromkeys((_MODALITY, _SOP_CLASS), "")

        def outline(has_image: bool, is_whole: bool = True, pixel_bytes: int | None = None) -> Outline:
            is_image = has_image and values[_MODALITY] not in _OTHER_KINDS
            return Outline(is_image, is_whole, values[_SOP_CLASS], pixel_bytes)

        try:
            for tag, length in _elements(stream, size):
                if tag == _PIXELS:
                    return outline(True, pixel_bytes=None if length == _UNDEFINED else length)
                has_rows |= tag == _ROWS
                if tag in values:
                    values[tag] = stream.read(length).decode("latin_1").strip(" \0")
        except _DeflatedError:
            return outline(True)
        except EOFError:
            return outline(True, is_whole=False)
    return outline(has_rows)


class _DeflatedError(Exception):
    """The elements are compressed as a whole."""


def _begins_like_dicom(start: bytes, size: int) -> bool:
    """Old files lack the preamble: they begin with one of the first elements there are."""
    if len(start) < 8:
        return False
    group, element = struct.unpack("<HH", start[:4])
    if group not in (0x0002, 0x0008) or element > 0x0018:
        return False
    return start[4:6] in _LONG | _SHORT or struct.unpack("<I", start[4:])[0] < size


def _elements(stream: BinaryIO, size: int) -> Iterator[tuple[tuple[int, int], int]]:
    """Tag and length of each element outside of sequences; the stream stands at its value when it is yielded.

    Raises:
        EOFError: an element ends beyond the end of the file.
        _DeflatedError: what follows is compressed.
    """
    order, explicit, syntax, in_first_group = "<", True, b"", True
    around: list[bool] = []  # for each sequence and item that is open: whether what stands around it is explicit
    while start := stream.read(8):
        _need(start, 8)
        if in_first_group and start[:2] != b"\2\0":  # the first group is always explicit and little endian
            in_first_group = False
            order, explicit = _encoding(syntax, start)
        tag = struct.unpack(order + "HH", start[:4])
        kind, length = _kind_and_length(stream, start, order, explicit, tag)
        begin = stream.tell()
        if tag in (_ITEM_END, _SEQUENCE_END):
            explicit = around.pop() if around else explicit
        elif length == _UNDEFINED and (tag != _PIXELS or around):
            around.append(explicit)
            explicit = explicit and kind != b"UN"
        elif length != _UNDEFINED and begin + length > size:
            raise EOFError
        else:
            if tag == _SYNTAX:
                syntax = stream.read(length).strip(b" \0")
            elif not around:
                yield tag, length
            stream.seek(begin + length)


def _encoding(syntax: bytes, start: bytes) -> tuple[str, bool]:
    """Byte order after the first group, and whether elements name their representation (some files do unasked)."""
    if syntax == _DEFLATED:
        raise _DeflatedError
    return (">", True) if syntax == _BIG else ("<", start[4:6] in _LONG | _SHORT)


def _kind_and_length(
    stream: BinaryIO, start: bytes, order: str, explicit: bool, tag: tuple[int, ...]
) -> tuple[bytes, int]:
    """Value representation (empty where none is written) and length of the element whose first 8 bytes are given."""
    if not explicit or tag[0] == 0xFFFE:
        return b"", struct.unpack(order + "I", start[4:])[0]
    if start[4:6] in _LONG:
        return start[4:6], struct.unpack(order + "I", _need(stream.read(4), 4))[0]
    return start[4:6], struct.unpack(order + "H", start[6:])[0]


def _need(content: bytes, count: int) -> bytes:
    if len(content) < count:
        raise EOFError
    return content
