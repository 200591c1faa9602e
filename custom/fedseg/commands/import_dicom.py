"""``fedseg import-dicom``: one DICOM series as one NIfTI file, with nothing in it that names the patient."""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from rich.markup import escape

from fedseg.commands.arguments import Command
from fedseg.console import out, tell, track
from fedseg.data.intake.dicom import Series, read_volume, search
from fedseg.data.scanner_facts import write_scanner_facts
from fedseg.errors import UsageError
from fedseg.files.documents import whole_file


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    command.path("folder", "folder with DICOM files, searched to the bottom", "FOLDER")
    command.path("--out", "folder for the NIfTI file", "DIR")
    command.value("--name", "name of the file, e.g. a pseudonym (default: image)", default="image")
    command.value("--series", "the series with this UID", metavar="UID")
    command.value("--description", "series whose description matches, in any case", metavar="REGEX")
    command.value("--modality", "series of this modality", metavar="CT")
    command.flag("--largest", "of several, the one with most slices")
    command.flag("--list", "only list the series")


def run(options: argparse.Namespace) -> int:
    """``fedseg import-dicom``: convert a DICOM series to NIfTI.

    Find the DICOM series below FOLDER and write the chosen one as DIR/NAME.nii.gz, in Hounsfield units for CT. Nothing
    of the DICOM header but the geometry goes into the file; the scanner's maker and field strength go into NAME.json
    beside it, for statistics.

    example: fedseg import-dicom /data/export --modality CT --description portal --out /data
    """
    if not options.folder.is_dir():
        raise UsageError(f"{options.folder} is no folder. Name the folder with the DICOM files.")
    if not options.list and options.out is None:
        raise UsageError("Say where to write: --out DIR (or --list to see the series only).")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", options.name):
        raise UsageError(f"--name is {options.name!r}, but must consist of letters, digits, '-', '_' and '.'.")
    export = search(options.folder, track)
    found = export.series
    if export.others:
        tell(f"Passed over: {len(export.others)} file(s) that are no DICOM images, e.g. {export.others[0]}")
    if options.list:
        _print_series(found)
        return 0
    chosen = _choose(found, options)
    target = options.out / f"{options.name}.nii.gz"
    if target.exists():
        raise UsageError(f"{target} exists already. Choose another --name or --out.")
    _print_series((chosen,))
    image = read_volume(chosen)
    _write(image, target)
    write_scanner_facts(chosen.scanner, target)
    size, spacing = (" x ".join(f"{v:.4g}" for v in values) for values in (image.GetSize(), image.GetSpacing()))
    out().print(f"{escape(str(target))}: {size} voxels of {spacing} mm, from {len(chosen.slices)} slices")
    return 0


def _choose(found: Sequence[Series], options: argparse.Namespace) -> Series:
    """The one series that the options mean; several are refused, because the wrong phase would look right."""
    try:
        pattern = re.compile(unicodedata.normalize("NFC", options.description or ""), re.IGNORECASE)
    except re.error as error:
        raise UsageError(f"--description {options.description!r} is no regular expression: {error}.") from None
    fitting = [
        series
        for series in found
        if options.series in (None, series.uid)
        and (options.modality is None or options.modality.upper() == series.modality.upper())
        and pattern.search(series.description)
    ]
    if len(fitting) == 1 or (fitting and options.largest):
        return fitting[0]
    choices = "; ".join(f"{s.uid} ({s.modality}, {s.description!r}, {len(s.slices)} slices)" for s in fitting or found)
    if fitting:
        raise UsageError(f"{len(fitting)} series fit: {choices}. Choose with --series, --description or --largest.")
    raise UsageError(f"No series fits the choice; there are: {choices}.")


def _print_series(found: Sequence[Series]) -> None:
    for series in found:
        what = f"{series.modality or '?'}, {series.description or 'no description'}"
        out().print(f"series {series.uid}: {escape(what)}, {len(series.slices)} slices, {series.spacing} mm")


def _write(image: sitk.Image, target: Path) -> None:
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    with whole_file(target) as temporary:
        sitk.WriteImage(image, str(temporary))
