"""The one reading of an image file: whether it can be read, its dimensions, where its voxels lie, and their values.

The data check, intake, training, scoring and prediction all read here, so what one of them takes the others take.
"""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.imageglobals import logger as nibabel_logger
from nibabel.openers import ImageOpener
from nibabel.spatialimages import SpatialImage

from fedseg.data.grid import Grid, compare_grids
from fedseg.data.header import check_header, states_orientation
from fedseg.data.problems import Report, refuse

# What nibabel mends in a header it logs without the file's name; ``check_header`` looks at the header as it stands.
nibabel_logger.setLevel(100)

_CHUNK = 1 << 22
_MAGIC = {".gz": (b"\x1f\x8b", "gzip"), ".bz2": (b"BZh", "bzip2"), ".zst": (b"\x28\xb5\x2f\xfd", "zstd")}
_DEFLATE_RATIO = 1032  # bytes that one byte of gzip can unpack to
_WHOLE = 1e-4  # labels that a program stored scaled, or as floats, are off by a rounding
_AGAIN = "Copy it again from where it came from."


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image file whose header was read and is sound.

    Attributes:
        path: the file.
        grid: the grid of its voxels.
        channels: how many volumes it holds on this grid.
        stated: whether the header says how the axes lie in the body.
        image: nibabel's, with its voxels still on disk.
    """

    path: Path
    grid: Grid
    channels: int
    stated: bool
    image: Any

    def read(self, report: Report) -> np.ndarray | None:
        """All voxels, shape [C, X, Y, Z], float32, scaled as the header says; None with a report where that fails.

        A packed file is unpacked to its very end, where its checksum is.
        """
        try:
            voxels = _voxels(self.image).reshape((*self.grid.shape, self.channels))
        except Exception as error:  # nibabel names no full set of what its readers raise
            _report_unreadable(self.path, error, report)
            return None
        return np.moveaxis(voxels, -1, 0)


def open_image(path: Path, report: Report) -> ImageFile | None:
    """Read the header of an image file, whatever format of nibabel it has.

    Args:
        path: the file.
        report: told of everything that is wrong with it; errors make it unusable.

    Returns:
        The file, or None after an error.
    """
    if not _is_readable(path, report):
        return None
    try:
        image: Any = nib.load(path)
        if not isinstance(image, SpatialImage):
            raise TypeError("it holds no image of voxels")
        stored = tuple(int(n) for n in image.shape)
        affine = np.asarray(image.affine, np.float64)
        kind = np.dtype(image.get_data_dtype())
        missing = _missing_bytes(image)
    except Exception as error:  # as above
        _report_unreadable(path, error, report)
        return None
    shape = _without_single_axes(stored)
    if len(shape) not in (3, 4) or min(shape) < 1:
        message = f"The shape is {' x '.join(map(str, stored))}, but a volume of three dimensions is needed."
        report("dimensions", "error", message, "Store each image and each label as one 3-D volume.")
        return None
    if kind.kind not in "iuf":
        report("unreadable", "error", f"The voxels are of type {kind}.", "Store plain numbers, one per voxel.")
        return None
    if missing:
        message = f"The file is damaged or was cut off: its header promises {missing} bytes more than it can hold."
        report("unreadable", "error", message, _AGAIN)
        return None
    grid = Grid((shape[0], shape[1], shape[2]), affine)
    if not grid.decodable:
        remedy = "Convert the image again from DICOM; left and right cannot be told from this file."
        report("orientation", "error", "The affine does not say where the voxels lie.", remedy)
        return None
    check_header(image, grid, report)
    return ImageFile(path, grid, shape[3] if len(shape) == 4 else 1, states_orientation(image), image)


def require_image(path: Path) -> ImageFile:
    """Read the header of an image file.

    Raises:
        FileError: it cannot be used.
    """
    file = open_image(path, refuse(path))
    assert file is not None  # ``refuse`` raises
    return file


def read_image(paths: Sequence[Path]) -> tuple[np.ndarray, Grid]:
    """Read the channels of one case.

    Args:
        paths: one file per channel, or a single file whose fourth axis holds the channels.

    Returns:
        Array [C, X, Y, Z] in float32 and its grid.

    Raises:
        FileError: a file cannot be read, or the files do not lie on one grid.
    """
    files = [require_image(path) for path in paths]
    for file in files[1:]:
        compare_grids(file.grid, files[0].path, files[0].grid, refuse(file.path))
    arrays = [file.read(refuse(file.path)) for file in files]
    return np.concatenate([array for array in arrays if array is not None]), files[0].grid


def read_label(path: Path) -> tuple[np.ndarray, Grid]:
    """Read a label file: whole numbers [X, Y, Z], as float32, and its grid.

    Raises:
        FileError: it cannot be read, or holds something else.
    """
    file = require_image(path)
    require_one_channel(file, refuse(path))
    array = file.read(refuse(path))
    values = None if array is None else whole_numbers(array[0], refuse(path))
    assert values is not None  # ``refuse`` raises
    return values, file.grid


def require_one_channel(file: ImageFile, report: Report) -> bool:
    """Report a file with several volumes where there can be one only."""
    if file.channels > 1:
        message = f"The file holds {file.channels} volumes, but one is needed."
        report("dimensions", "error", message, "Store each image and each label as one 3-D volume.")
    return file.channels == 1


def whole_numbers(values: np.ndarray, report: Report) -> np.ndarray | None:
    """The values of a label, rounded where they are a rounding away from whole numbers; None with a report if not."""
    remedy = "Store whole numbers, one per class, and resample labels with nearest neighbours only."
    if not np.isfinite(values).all():
        report("not-finite", "error", "The label holds values that are not numbers.", remedy)
        return None
    whole = np.round(values)
    strange = np.unique(values[np.abs(values - whole) > _WHOLE])
    if len(strange):
        message = f"The label holds {len(strange)} values that are not whole numbers, e.g. {strange[0]:.4g}."
        report("label-values", "error", message, remedy)
        return None
    return whole


def _is_readable(path: Path, report: Report) -> bool:
    """Whether the system lets us read the file, and its content is packed as its name says."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            report("unreadable", "error", "The path is a folder, or no usual file.", "Name the image file itself.")
            return False
        with open(path, "rb") as stream:
            start = stream.read(4)
    except (FileNotFoundError, NotADirectoryError):
        report("missing-file", "error", "The file does not exist.", "Copy it there, or correct the path.")
        return False
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        report("unreadable", "error", f"The file cannot be read: {why}.", "Get the right to read it, or copy it again.")
        return False
    ending = path.suffix.lower()
    packed = next((end for end, (magic, _) in _MAGIC.items() if start.startswith(magic)), None)
    if packed and ending not in _packed_endings():
        message = f"The file is packed with {_MAGIC[packed][1]}, but its name does not end in {packed}."
        report("unreadable", "error", message, f"Rename it to {path.name}{packed}, or unpack it.")
        return False
    if ending in _MAGIC and packed != ending:
        message = f"The file is not packed with {_MAGIC[ending][1]}, as its name says."
        remedy = f"If it was unpacked, rename it to {path.name.removesuffix(path.suffix)}; else copy it again."
        report("unreadable", "error", message, remedy)
        return False
    return True


def _packed_endings() -> set[str]:
    return {ending for ending in ImageOpener.compress_ext_map if ending}


def _without_single_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without axes of length 1 at the end: some programs store a volume as [X, Y, Z, 1]."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _promised(image: Any) -> int:
    """Bytes of unpacked file that the header says there are; 0 where the format does not tell."""
    proxy = image.dataobj
    if not isinstance(proxy, ArrayProxy) or any(int(n) < 0 for n in proxy.shape):
        return 0
    return int(proxy.offset) + math.prod(int(n) for n in proxy.shape) * int(proxy.dtype.itemsize)


def _missing_bytes(image: Any) -> int:
    """By how many bytes a file is certainly too short for its header, known without unpacking it."""
    promised = _promised(image)
    if not promised:
        return 0
    path = image.file_map["image"].filename
    ending, size = Path(path).suffix.lower(), os.stat(path).st_size
    if ending in (".gz", ".mgz"):
        size *= _DEFLATE_RATIO
    elif ending in _packed_endings():
        return 0
    return max(0, promised - size)


def _voxels(image: Any) -> np.ndarray:
    proxy = image.dataobj
    path = image.file_map["image"].filename if type(proxy) is ArrayProxy else ""
    with np.errstate(all="ignore"):  # what became infinite is for the check of values
        if Path(path).suffix.lower() not in _packed_endings():  # its size was compared with the header's
            return np.asarray(image.get_fdata(caching="unchanged", dtype=np.float32))
        layout = (proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter)
        content = _unpack(path, _promised(image))
        return np.asanyarray(ArrayProxy(content, layout, order=proxy.order), dtype=np.float32)


def _unpack(path: str, promised: int) -> io.BytesIO:
    """The first bytes of an unpacked file; no more memory is asked for than the file fills.

    Raises:
        EOFError: there are fewer. Whatever the unpacking raises for damaged files.
    """
    content = io.BytesIO()
    with ImageOpener(path) as stream:
        while chunk := stream.read(_CHUNK):
            content.write(memoryview(chunk)[: max(0, promised - content.tell())])
    if content.tell() < promised:
        raise EOFError(f"{content.tell()} bytes, not {promised}")
    return content


def _damage(path: Path) -> Exception | None:
    """Why a packed file cannot be unpacked to its end."""
    try:
        if path.suffix.lower() in _packed_endings():
            _unpack(str(path), 0)
    except Exception as error:  # each kind of packing has its own
        return error
    return None


def _report_unreadable(path: Path, error: Exception, report: Report) -> None:
    damage = error if isinstance(error, EOFError) else _damage(path)
    why = "is damaged or was cut off" if damage else "cannot be read as an image"
    cause = " ".join([type(damage or error).__name__, *str(damage or error).splitlines()[:1]])
    remedy = _AGAIN if damage else "Copy it again, or convert it to NIfTI (.nii.gz)."
    report("unreadable", "error", f"The file {why} ({cause}).", remedy)
