"""DICOM series to a volume: which series a folder holds, whether one is complete, and its voxels.

Reading is SimpleITK's (GDCM), slice by slice with each one's own type, rescale slope and intercept. The geometry is
checked before, because a volume reader places slices evenly even where some are missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from fedseg.data.intake.dicom_elements import Outline, read_outline
from fedseg.data.intake.dicom_geometry import Series, Slice, check_geometry
from fedseg.data.intake.dicom_text import decode
from fedseg.data.progress import Progress, silent
from fedseg.data.scanner_facts import ScannerFacts, scanner_facts
from fedseg.errors import DataError
from fedseg.files.folders import walk

CHARACTER_SET, SOP_CLASS, MODALITY, DESCRIPTION = "0008|0005", "0008|0016", "0008|0060", "0008|103e"
SERIES_UID = "0020|000e"
POSITION, ORIENTATION, PIXEL_SPACING, FRAMES = "0020|0032", "0020|0037", "0028|0030", "0028|0008"
MAKER, FIELD_STRENGTH = "0008|0070", "0018|0087"
BITS, INTERCEPT, SLOPE = "0028|0100", "0028|1052", "0028|1053"
COMPRESSION_LIMIT = 5000  # pixel bytes for a byte of file; a slice of one value reaches some hundreds


class _UnreadableError(Exception):
    """Why a DICOM image cannot be used, in words that follow its name."""


@dataclass(frozen=True)
class Export:
    """What a folder holds: every series of images, the one with most slices first, and files that are no images."""

    series: tuple[Series, ...]
    others: tuple[Path, ...]


def find_series(folder: Path, progress: Progress = silent) -> tuple[Series, ...]:
    """The series of ``search``."""
    return search(folder, progress).series


def search(folder: Path, progress: Progress = silent) -> Export:
    """Look at every file below ``folder``, links included.

    Raises:
        DataError: there is no series, or an image or folder cannot be read, whose series would lack a part.
    """
    files = [place / name for place, _, names in walk(folder) for name in names]
    groups: dict[str, list[Slice]] = {}
    named: dict[str, tuple[str, str]] = {}
    scanners: dict[str, ScannerFacts] = {}
    kinds: set[str] = set()
    others: list[Path] = []
    unreadable: list[str] = []
    with _quiet():
        for file in progress(files, "Reading DICOM headers"):
            try:
                header = _read_header(file)
            except _UnreadableError as error:
                unreadable.append(f"{file}: {error}")
                continue
            if header is None:
                others.append(file)
                continue
            uid = _tag(header, SERIES_UID)
            kinds.add(_tag(header, SOP_CLASS))
            named.setdefault(uid, (_tag(header, MODALITY), _text(header, DESCRIPTION)))
            scanners.setdefault(uid, scanner_facts(_text(header, MAKER), _tag(header, FIELD_STRENGTH)))
            groups.setdefault(uid, []).append(_slice(file, header))
    unreadable += _damaged_slices(others, groups, kinds)
    if unreadable:
        count = f"{len(unreadable)} of {len(files)} files cannot be read"
        listed = "; ".join(unreadable[:5])
        raise DataError(f"{count}: {listed}. Export them again, or move them out of {folder} if they do not matter.")
    if not groups:
        raise DataError(f"{folder} holds no DICOM image among {len(files)} files. Name the folder of the series.")
    series = [Series(uid, *named[uid], tuple(slices), scanners[uid]) for uid, slices in groups.items()]
    return Export(tuple(sorted(series, key=lambda s: (-len(s.slices), s.uid))), tuple(others))


def read_volume(series: Series) -> sitk.Image:
    """The volume of a series, in the scanner's units (HU for CT), with its spacing, origin and direction.

    Raises:
        DataError: the series is no evenly spaced stack of slices of one unit, or a file cannot be read.
    """
    slices, spacing = check_geometry(series)
    _check_rescale(series)
    with _quiet():
        voxels = np.stack([_pixels(series, s) for s in slices])
    if not np.isfinite(voxels).all():
        raise DataError(f"Series {series.uid} has values that are not numbers or too large for one. Export it again.")
    image = sitk.GetImageFromArray(_smallest_type(voxels))
    x, y = np.reshape(slices[0].orientation, (2, 3))
    normal = np.cross(x, y) / np.linalg.norm(np.cross(x, y))
    x = x / np.linalg.norm(x)
    image.SetOrigin(slices[0].position)
    image.SetSpacing(spacing)
    image.SetDirection(np.stack([x, np.cross(normal, x), normal], -1).ravel().tolist())
    return image


def _check_rescale(series: Series) -> None:
    """Refuse a series some of whose values are in the scanner's units and some are not.

    GDCM takes slope 1 where a slope is 0 or no number.
    """
    lacking = [s.file for s in series.slices if not s.rescale]
    if lacking and len(lacking) < len(series.slices):
        raise DataError(
            f"Series {series.uid}: {len(lacking)} of {len(series.slices)} slices state no rescale slope and intercept, "
            f"first {lacking[0]}, so values would be of two units. Export the whole series again."
        )
    for s in series.slices:
        if s.rescale and not (all(map(math.isfinite, s.rescale)) and s.rescale[0]):
            raise DataError(
                f"Series {series.uid}: {s.file} states no usable rescale slope and intercept. Export again."
            )


def _pixels(series: Series, s: Slice) -> np.ndarray:
    """The values of one slice, shape [Y, X]; floats are of 32 bits."""
    reader = _reader(s.file)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].rstrip(".")
        raise DataError(f"Series {series.uid}: {s.file} cannot be read: {reason}. Export it again.") from None
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise DataError(f"Series {series.uid} is in colour. Choose the series of original images.")
    pixels = sitk.GetArrayFromImage(image).reshape(s.size[::-1])
    with np.errstate(over="ignore"):  # refused by whoever stacks them
        return pixels if pixels.dtype.kind in "iu" else pixels.astype(np.float32)


def _reader(file: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    return reader


def _read_header(file: Path) -> sitk.ImageFileReader | None:
    """The header of a DICOM image; None for a file of another kind (a report, a DICOMDIR, a letter).

    Raises:
        _UnreadableError: it is an image, but cannot be used.
    """
    try:
        outline = read_outline(file)
    except OSError as error:
        raise _UnreadableError(error.strerror or str(error)) from None
    if outline is None or (outline.is_whole and not outline.is_image):
        return None
    if not outline.is_whole:
        raise _UnreadableError("it was cut off")
    reader = _reader(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise _UnreadableError("it is no DICOM image that GDCM can read") from None
    if not _tag(reader, SERIES_UID):
        raise _UnreadableError("it names no series")
    _check_amount(file, outline, reader)
    return reader


def _check_amount(file: Path, outline: Outline, header: sitk.ImageFileReader) -> None:
    """Refuse an image whose rows and columns are not those of its pixels; a row may be padding."""
    bits = _numbers(header, BITS)
    if not bits:
        raise _UnreadableError("it does not say how many bits a pixel has")
    expected = math.ceil(math.prod(header.GetSize()) * header.GetNumberOfComponents() * bits[0] / 8)
    if outline.pixel_bytes is None:
        if expected > COMPRESSION_LIMIT * file.stat().st_size:
            raise _UnreadableError("it is too short for its rows and columns")
    elif not expected <= outline.pixel_bytes < expected + max(2, expected / max(1, header.GetSize()[1])):
        held = f"{outline.pixel_bytes} bytes of pixels"
        raise _UnreadableError(f"it has {held}, but its rows and columns need {expected}")


def _damaged_slices(others: Sequence[Path], groups: Mapping[str, Sequence[Slice]], kinds: set[str]) -> list[str]:
    """Files without an image that must have been slices: named like one, or of the kind of object that slices are."""

    def pattern(file: Path) -> tuple[Path, str]:
        ending = file.suffix.lower()
        return file.parent, ending if ending in (".dcm", ".ima") else re.sub(r"\d+", "0", file.name)

    names = {pattern(s.file) for group in groups.values() for s in group}
    found = []
    for file in others:
        outline = read_outline(file)
        if (outline is None or not outline.sop_class) and pattern(file) in names:
            found.append(f"{file}: it is no DICOM file, but is named like one")
        elif outline and outline.sop_class in kinds:
            found.append(f"{file}: it has no pixels")
    return found


def _slice(file: Path, header: sitk.ImageFileReader) -> Slice:
    frames = _numbers(header, FRAMES)
    rescale: tuple[float, ...] = ()
    if header.HasMetaDataKey(SLOPE) or header.HasMetaDataKey(INTERCEPT):
        both = (_numbers(header, SLOPE), _numbers(header, INTERCEPT))
        rescale = tuple(values[0] if len(values) == 1 else math.nan for values in both)
    return Slice(
        file,
        tuple(header.GetSize()[:2]),
        int(frames[0]) if frames else 1,
        _numbers(header, POSITION),
        _numbers(header, ORIENTATION),
        _numbers(header, PIXEL_SPACING),
        rescale,
    )


def _tag(header: sitk.ImageFileReader, key: str) -> str:
    # GDCM pads odd lengths with a blank or a zero byte.
    return str(header.GetMetaData(key)).strip(" \0") if header.HasMetaDataKey(key) else ""


def _text(header: sitk.ImageFileReader, key: str) -> str:
    # What is no UTF-8 comes from SimpleITK as lone surrogates.
    return decode(_tag(header, key).encode("utf-8", "surrogateescape"), _tag(header, CHARACTER_SET))


def _numbers(header: sitk.ImageFileReader, key: str) -> tuple[float, ...]:
    """The numbers of a tag; none at all where one of them is no finite number."""
    try:
        values = tuple(float(part) for part in _tag(header, key).split("\\"))
    except ValueError:
        return ()
    return values if all(map(math.isfinite, values)) else ()


def _smallest_type(voxels: np.ndarray) -> np.ndarray:
    """Whole numbers as 16 bits where they fit, else 32-bit floats."""
    whole = voxels.dtype.kind in "iu" or bool((voxels == np.round(voxels)).all())
    fits = voxels.min() >= np.iinfo(np.int16).min and voxels.max() <= np.iinfo(np.int16).max
    return voxels.astype(np.int16 if whole and fits else np.float32)


@contextmanager
def _quiet() -> Iterator[None]:
    """ITK warns on stderr about every file that is not DICOM; that is expected here."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)
