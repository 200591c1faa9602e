"""What a NIfTI header says of the place of its voxels, as it stands in the file.

nibabel mends headers while it reads them: a voxel size of 0 becomes 1, one below 0 loses its sign, a code that the
standard does not know becomes 0. Whether that matters is judged here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nibabel.analyze import AnalyzeImage
from nibabel.nifti1 import Nifti1Pair
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError

from fedseg.data.grid import SHIFT_ERROR, Grid
from fedseg.data.problems import Report, shown

_AGAIN = "Convert the image again from DICOM."
_UNITS = {1: "metres", 3: "micrometres"}  # of bits 0 to 2 of xyzt_units; 2 is mm, 0 unknown


def states_orientation(image: Any) -> bool:
    """Whether the header of a nibabel image says anywhere how the axes lie in the body."""
    return not isinstance(image, Nifti1Pair) or bool(image.header["sform_code"] > 0 or image.header["qform_code"] > 0)


def check_header(image: Any, grid: Grid, report: Report) -> None:
    """Report what the file's header says that nibabel has mended, or that contradicts itself.

    Args:
        image: as nibabel read it.
        grid: the grid that follows from that.
        report: where to.
    """
    if not isinstance(image, AnalyzeImage):
        return
    raw = _raw(image)
    nifti = isinstance(image, Nifti1Pair)
    by_sform = nifti and image.header["sform_code"] > 0
    sizes = tuple(float(size) for size in raw["pixdim"][1:4])
    if not all(size > 0 for size in sizes):
        message = f"The header gives {shown(sizes)} mm as voxel size (pixdim)."
        if by_sform:
            message += " It also has an affine (sform), which is used; other programs may use the voxel size."
        report("spacing", "warning" if by_sform else "error", message, _AGAIN)
    if not nifti:
        return
    for name in ("sform_code", "qform_code"):
        if raw[name] != image.header[name]:
            message = f"The header's {name} is {int(raw[name])}, which the standard does not know; it is not used."
            report("orientation", "warning", message, _AGAIN)
    if not by_sform and image.header["qform_code"] > 0 and raw["pixdim"][0] not in (-1, 0, 1):
        message = f"The header's pixdim[0] is {float(raw['pixdim'][0]):.4g}, so left and right are a guess."
        report("orientation", "warning", message, _AGAIN)
    unit = _UNITS.get(int(raw["xyzt_units"]) & 7)
    if unit:
        message = f"The header says that lengths are in {unit}, but they are read as mm."
        report("spacing", "warning", message, f"Check the voxel size, {shown(grid.spacing)}; store it in mm.")
    if by_sform and image.header["qform_code"] > 0:
        _compare_forms(image, grid, report)


def _raw(image: Any) -> Any:
    files = image.file_map
    with ImageOpener(files["header" if "header" in files else "image"].filename) as stream:
        return image.header_class(stream.read(image.header_class.template_dtype.itemsize), check=False)


def _compare_forms(image: Any, grid: Grid, report: Report) -> None:
    """The standard lets a header place its voxels twice, and programs differ in which one they take."""
    remedy = "Find out which one is right (look at the image in two programs), and store it as both."
    try:
        quaternions = np.asarray(image.header.get_qform(), np.float64)
    except (HeaderDataError, ValueError) as error:
        message = f"Of the header's two placements one (qform) cannot be read ({error}); the sform is used."
        report("orientation", "warning", message, remedy)
        return
    voxels, millimetres = grid.shift(Grid(grid.shape, quaternions))
    if not voxels <= SHIFT_ERROR:
        message = f"The header's two placements, sform and qform, lie up to {millimetres:.3g} mm apart; sform is used."
        report("orientation", "warning", message, remedy)
