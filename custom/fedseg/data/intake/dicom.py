"""DICOM series to a volume: which series a folder holds, whether one is complete, and its voxels.

Reading is SimpleITK's (GDCM), rescale slope and intercept included; the geometry is checked before, slice by slice,
because a volume reader places slices evenly even where some are missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from fedseg.data.intake.dicom_geometry import Series, Slice, check_geometry
from fedseg.data.progress import Progress, silent
from fedseg.errors import DataError

SERIES_UID, MODALITY, DESCRIPTION = "0020|000e", "0008|0060", "0008|103e"
POSITION, ORIENTATION, PIXEL_SPACING, FRAMES = "0020|0032", "0020|0037", "0028|0030", "0028|0008"


def find_series(folder: Path, progress: Progress = silent) -> tuple[Series, ...]:
    """Every series of images below ``folder``, the one with most slices first; files that are no images are passed.

    Raises:
        DataError: there is none.
    """
    files = sorted(Path(place, name) for place, _, names in os.walk(folder) for name in names)
    groups: dict[str, list[Slice]] = {}
    named: dict[str, tuple[str, str]] = {}
    with _quiet():
        for file in progress(files, "Reading DICOM headers"):
            header = _read_header(file)
            uid = _tag(header, SERIES_UID) if header else ""
            if header and uid:
                named.setdefault(uid, (_tag(header, MODALITY), _tag(header, DESCRIPTION)))
                groups.setdefault(uid, []).append(_slice(file, header))
    if not groups:
        raise DataError(f"{folder} holds no DICOM image among {len(files)} files. Name the folder of the series.")
    series = [Series(uid, *named[uid], tuple(slices)) for uid, slices in groups.items()]
    return tuple(sorted(series, key=lambda s: (-len(s.slices), s.uid)))


def read_volume(series: Series) -> sitk.Image:
    """The volume of a series, in the scanner's units (HU for CT), with its spacing, origin and direction.

    Raises:
        DataError: the series is no evenly spaced stack of slices, or a file cannot be read.
    """
    slices, spacing = check_geometry(series)
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(s.file) for s in slices])
    try:
        with _quiet():
            image = reader.Execute()
    except RuntimeError as error:
        raise DataError(f"Series {series.uid} cannot be read: {_reason(error)}. Export it again.") from None
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise DataError(f"Series {series.uid} is in colour. Choose the series of original images.")
    if not np.allclose(image.GetSpacing(), spacing, rtol=1e-3):
        raise DataError(f"Series {series.uid} was read with the spacing {image.GetSpacing()}, not {spacing} mm.")
    return _smallest_type(image)


def _read_header(file: Path) -> sitk.ImageFileReader | None:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # a report, a DICOMDIR, a file of another kind
        return None
    return reader


def _slice(file: Path, header: sitk.ImageFileReader) -> Slice:
    frames = _numbers(header, FRAMES)
    return Slice(
        file,
        tuple(header.GetSize()[:2]),
        int(frames[0]) if frames else 1,
        _numbers(header, POSITION),
        _numbers(header, ORIENTATION),
        _numbers(header, PIXEL_SPACING),
    )


def _tag(header: sitk.ImageFileReader, key: str) -> str:
    # GDCM pads odd lengths with a blank or a zero byte.
    return str(header.GetMetaData(key)).strip(" \0") if header.HasMetaDataKey(key) else ""


def _numbers(header: sitk.ImageFileReader, key: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in _tag(header, key).split("\\"))
    except ValueError:
        return ()


def _smallest_type(image: sitk.Image) -> sitk.Image:
    """Whole numbers as 16 bits where they fit, else 32-bit floats."""
    array: Sequence[Any] | np.ndarray = sitk.GetArrayViewFromImage(image)
    voxels = np.asarray(array)
    whole = voxels.dtype.kind in "iu" or bool((voxels == np.round(voxels)).all())
    fits = voxels.min() >= np.iinfo(np.int16).min and voxels.max() <= np.iinfo(np.int16).max
    return sitk.Cast(image, sitk.sitkInt16 if whole and fits else sitk.sitkFloat32)


def _reason(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1].rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """ITK warns on stderr about every file that is not DICOM; that is expected here."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)
