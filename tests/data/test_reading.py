"""The one reading: every format, every kind of damage, every contradiction of a header, and the same words for all."""

from __future__ import annotations

import bz2
import gzip
import os
import pickle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import fedseg.data.reading as reading
from fedseg.data.case_reading import read_case
from fedseg.data.checks.datalist_check import check_datalist
from fedseg.data.checks.findings import CODES
from fedseg.data.datalist import Case, Datalist
from fedseg.data.problems import FileError, refuse
from fedseg.data.reading import open_image, read_image, read_label
from fedseg.tasks.registry import resolve_task
from raw_nifti import nifti_bytes, write_nifti
from tiny import TASK

Finding = tuple[str, str, str]
VOXELS = np.random.default_rng(5).uniform(1, 99, (3, 4, 5)).astype(np.float32)


def findings(path: Path) -> list[Finding]:
    """Code, severity and message of all that the reading of a file reports; all voxels are read."""
    found: list[Finding] = []

    def report(code: str, severity: str, message: str, remedy: str) -> None:
        assert code in CODES
        assert remedy.endswith(".")
        found.append((code, severity, message))

    file = open_image(path, report)
    voxels = file.read(report) if file else None
    assert (voxels is None) == any(f[:2] != ("spacing", "error") and f[1] == "error" for f in found)
    return found


def one(path: Path) -> Finding:
    found = findings(path)
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nii.bz2", "NII.GZ", "img", "hdr", "mgh", "mgz"])
def test_every_format_of_nibabel_gives_the_same_voxels(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"image.{ending}"
    kind = nib.MGHImage if ending.startswith("mg") else nib.Nifti1Pair if ending in ("img", "hdr") else nib.Nifti1Image
    nib.save(kind(VOXELS, np.diag([2, 1, 3, 1.0])), path)
    assert findings(path) == []
    array, grid = read_image([path])
    np.testing.assert_array_equal(array, VOXELS[None])
    assert grid.spacing == pytest.approx((2, 1, 3))


@pytest.mark.parametrize("endian", ["<", ">"])
def test_scale_and_byte_order_of_the_file_are_followed(tmp_path: Path, endian: str) -> None:
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    path = write_nifti(tmp_path / "i.nii.gz", stored, endian=endian, scl_slope=0.5, scl_inter=-3)
    np.testing.assert_array_equal(read_image([path])[0][0], stored * 0.5 - 3)


# Each row: name of the file, its content, and words of the finding.
PLAIN = nifti_bytes(VOXELS)
UNREADABLE: dict[str, tuple[str, bytes, str]] = {
    "empty": ("i.nii", b"", "cannot be read as an image (ImageFileError"),
    "another kind": ("i.nii", b"exported yesterday" * 30, "cannot be read as an image (ImageFileError"),
    "gzip without its name": ("i.nii", gzip.compress(PLAIN), "packed with gzip, but its name does not end in .gz"),
    "bzip2 without its name": ("i.nii", bz2.compress(PLAIN), "packed with bzip2, but its name does not end in .bz2"),
    "bzip2 as gzip": ("i.nii.gz", bz2.compress(PLAIN), "not packed with gzip, as its name says"),
    "plain as gzip": ("i.nii.gz", PLAIN, "not packed with gzip, as its name says"),
    "cut off": ("i.nii", PLAIN[:-1], "damaged or was cut off: its header promises 1 bytes more"),
    "cut off in the header": ("i.nii", PLAIN[:200], "cannot be read as an image"),
    "cut off, packed": ("i.nii.gz", gzip.compress(PLAIN)[:-30], "damaged or was cut off"),
    "cut off before packing": ("i.nii.gz", gzip.compress(PLAIN[:-1]), "damaged or was cut off (EOFError 591 bytes"),
    "cut off before bzip2": ("i.nii.bz2", bz2.compress(PLAIN[:-1]), "damaged or was cut off (EOFError 591 bytes"),
    "bzip2 cut off": ("i.nii.bz2", bz2.compress(PLAIN)[:-9], "damaged or was cut off"),
    "wrong checksum": (
        "i.nii.gz",
        gzip.compress(PLAIN)[:-8] + b"\0\0\0\0" + gzip.compress(PLAIN)[-4:],
        "damaged or was cut off (BadGzipFile CRC",
    ),
    "wrong magic": ("i.nii", nifti_bytes(VOXELS, magic=b"nope"), "cannot be read as an image"),
    "unknown type": ("i.nii", nifti_bytes(VOXELS, datatype=999), "cannot be read as an image (HeaderDataError"),
    "complex": ("i.nii", nifti_bytes(VOXELS[..., :4].astype(np.complex64)), "of type complex64"),
    "absurd size": (
        "i.nii.gz",
        gzip.compress(nifti_bytes(VOXELS, dim=(3, 32767, 32767, 32767, 1, 1, 1, 1))),
        "bytes more than it can hold",
    ),
    "absurd offset": ("i.nii", nifti_bytes(VOXELS, vox_offset=1e30), "bytes more than it can hold"),
    "offset that is none": ("i.nii", nifti_bytes(VOXELS, vox_offset=float("nan")), "cannot be read as an image"),
    "scale that is none": ("i.nii", nifti_bytes(VOXELS, scl_inter=float("inf")), "cannot be read as an image"),
    "quaternion that is none": (
        "i.nii",
        nifti_bytes(VOXELS, sform_code=0, qform_code=1, quatern=(2, 0, 0)),
        "cannot be read as an image (ValueError",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_one_finding_with_its_cause(tmp_path: Path, name: str) -> None:
    file, content, words = UNREADABLE[name]
    (tmp_path / file).write_bytes(content)
    code, severity, message = one(tmp_path / file)
    assert (code, severity) == ("unreadable", "error")
    assert words in message


@pytest.mark.parametrize("dim", [(2, 12, 5, 1), (4, 3, 4, 0, 5), (5, 1, 1, 3, 4, 5), (3, 3, -4, 5), (0, 3, 4, 5)])
def test_what_is_no_volume_is_refused(tmp_path: Path, dim: tuple[int, ...]) -> None:
    path = write_nifti(tmp_path / "i.nii", VOXELS, dim=(*dim, *(1,) * (8 - len(dim))))
    code, severity, message = one(path)
    assert (code, severity) == ("dimensions", "error")
    assert "a volume of three dimensions is needed" in message


def test_absurd_size_asks_for_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of kinds of packing that may grow without limit only unpacking tells; it keeps what is there, no more."""
    path = tmp_path / "i.nii.bz2"
    path.write_bytes(bz2.compress(nifti_bytes(VOXELS, dim=(3, 32767, 32767, 32767, 1, 1, 1, 1))))
    monkeypatch.setattr(np, "empty", None)
    assert "EOFError 592 bytes" in one(path)[2]


def test_every_exception_of_a_reader_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a format's reader raises, when the header is read or when the voxels are."""
    path = write_nifti(tmp_path / "i.nii", VOXELS)
    for error in (KeyError("x"), MemoryError(), RecursionError("deep"), AssertionError(), ZeroDivisionError("by 0")):

        def fail(*_: Any, _error: Exception = error, **__: Any) -> Any:
            raise _error

        for place, name in ((nib, "load"), (reading, "_voxels")):
            with monkeypatch.context() as patch:
                patch.setattr(place, name, fail)
                assert one(path)[:2] == ("unreadable", "error")
                assert type(error).__name__ in one(path)[2]


def test_paths_that_the_system_refuses_are_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert one(tmp_path / ("x" * 300)) == ("unreadable", "error", "The file cannot be read: File name too long.")
    assert one(tmp_path)[2] == "The path is a folder, or no usual file."
    os.mkfifo(tmp_path / "pipe.nii")
    assert one(tmp_path / "pipe.nii")[2] == "The path is a folder, or no usual file."
    assert one(tmp_path / "no.nii")[0] == "missing-file"
    assert one(write_nifti(tmp_path / "f.nii", VOXELS) / "i.nii")[0] == "missing-file"
    (tmp_path / "round.nii").symlink_to("round.nii")
    assert "Too many levels of symbolic links" in one(tmp_path / "round.nii")[2]
    assert "null" in one(Path("a\0b"))[2]

    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    assert one(tmp_path / "f.nii")[2] == "The file cannot be read: Permission denied."


NAN_ROWS = (float("nan"),) * 12
NO_Z = (1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)
SAME_AXES = (1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0)


@pytest.mark.parametrize("srow", [NAN_ROWS, NO_Z, SAME_AXES, (float("inf"), *NO_Z[1:10], 1, 0)])
def test_affine_that_says_nothing_is_refused_by_every_reader(tmp_path: Path, srow: tuple[float, ...]) -> None:
    bad = write_nifti(tmp_path / "bad.nii", VOXELS, srow=srow)
    good = write_nifti(tmp_path / "good.nii", VOXELS)
    assert one(bad) == ("orientation", "error", "The affine does not say where the voxels lie.")
    for read in (lambda: read_image([bad]), lambda: read_image([good, bad]), lambda: read_label(bad)):
        with pytest.raises(FileError, match=r"bad\.nii: The affine does not say"):
            read()


# Each row: header fields, then (code, severity, words) of each finding.
HEADERS: dict[str, tuple[dict[str, Any], list[Finding]]] = {
    "no voxel size, quaternions": (
        {"sform_code": 0, "qform_code": 1, "pixdim": (1, 0.5, 0, 2, 0, 0, 0, 0)},
        [("spacing", "error", "gives 0.5 x 0 x 2 mm as voxel size")],
    ),
    "negative voxel size, no placement": (
        {"sform_code": 0, "pixdim": (1, 1, 1, -2, 0, 0, 0, 0)},
        [("spacing", "error", "gives 1 x 1 x -2 mm as voxel size")],
    ),
    "no voxel size beside an affine": (
        {"pixdim": (1, 0, 0, 0, 0, 0, 0, 0)},
        [("spacing", "warning", "It also has an affine (sform), which is used")],
    ),
    "unknown code": (
        {"sform_code": 77},
        [("orientation", "warning", "sform_code is 77, which the standard does not know")],
    ),
    "no handedness": (
        {"sform_code": 0, "qform_code": 1, "pixdim": (5, 1, 1, 1, 0, 0, 0, 0)},
        [("orientation", "warning", "pixdim[0] is 5, so left and right are a guess")],
    ),
    "handedness 0 counts as 1": ({"sform_code": 0, "qform_code": 1, "pixdim": (0, 1, 1, 1, 0, 0, 0, 0)}, []),
    "metres": ({"xyzt_units": 1}, [("spacing", "warning", "lengths are in metres")]),
    "micrometres and seconds": ({"xyzt_units": 3 + 8}, [("spacing", "warning", "lengths are in micrometres")]),
    "two equal placements": ({"qform_code": 1, "qoffset": (0, 0, 0.01)}, []),
    "moved": ({"qform_code": 1, "qoffset": (0, 0, 0.2)}, [("orientation", "warning", "up to 0.2 mm apart")]),
    # Turned by 180 degrees about the third axis: the corner (2, 3, 4) lies at (-2, -3, 4), sqrt(4**2 + 6**2) away.
    "turned": ({"qform_code": 1, "quatern": (0, 0, 1)}, [("orientation", "warning", "up to 7.21 mm apart")]),
    "no quaternion": ({"qform_code": 1, "quatern": (9, 0, 0)}, [("orientation", "warning", "(qform) cannot be read")]),
}


@pytest.mark.parametrize("name", HEADERS)
def test_header_is_judged_as_it_stands_in_the_file(tmp_path: Path, name: str, caplog: Any) -> None:
    fields, expected = HEADERS[name]
    found = findings(write_nifti(tmp_path / "i.nii.gz", VOXELS, **fields))
    assert [f[:2] for f in found] == [f[:2] for f in expected]
    assert all(words in f[2] for f, (_, _, words) in zip(found, expected, strict=True))
    assert caplog.records == []


def label_case(folder: Path, label: np.ndarray, **fields: Any) -> Case:
    image = write_nifti(folder / "image.nii.gz", np.arange(8, dtype=np.float32).reshape(2, 2, 2))
    return Case((image,), write_nifti(folder / "label.nii.gz", label, **fields), "p")


def checked_and_read(case: Case) -> tuple[set[str], str]:
    """The codes of errors of the check, and the code with which the reader refuses (empty: it reads)."""
    report = check_datalist(resolve_task(TASK), Datalist((case,), (case,)))
    about_list = ("no-cases", "few-cases", "duplicate-content", "patient-in-two-splits", "label-twice")
    codes = {f.code for f in report.errors if f.code not in about_list}
    try:
        read_case(resolve_task(TASK), case)
    except FileError as error:
        return codes, error.code
    return codes, ""


LABEL = np.array([0, 1, 2, 2, 1, 0, 0, 1], np.float64).reshape(2, 2, 2)
# Each row: label, header fields, the code of both the check and the reader.
LABELS: dict[str, tuple[np.ndarray, dict[str, Any], str]] = {
    "whole": (LABEL, {}, ""),
    "four axes": (LABEL[..., None], {}, ""),
    "five axes": (LABEL[..., None, None], {}, ""),
    "rounding above": (LABEL * (1 + 1e-7), {}, ""),
    "rounding below": (LABEL * (1 - 1e-9), {}, ""),
    "stored as thirds": ((LABEL * 3).astype(np.int16), {"scl_slope": 1 / 3}, ""),
    "resampled": (LABEL * 0.999, {}, "label-values"),
    "not a number": (np.where(LABEL == 2, np.nan, LABEL), {}, "not-finite"),
    "two volumes": (np.stack([LABEL, LABEL], -1), {}, "dimensions"),
    "two axes": (LABEL.reshape(4, 2), {}, "dimensions"),
    "another shape": (LABEL[:1], {}, "shape-differs"),
    "a fiftieth of a voxel": (LABEL, {"srow": (1, 0, 0, 0.02, 0, 1, 0, 0, 0, 0, 1, 0)}, ""),
    "a tenth of a voxel": (LABEL, {"srow": (1, 0, 0, 0.1, 0, 1, 0, 0, 0, 0, 1, 0)}, "affine-differs"),
    "mirrored": (LABEL, {"srow": (-1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0)}, "affine-differs"),
    "no affine": (LABEL, {"srow": NAN_ROWS}, "orientation"),
}


@pytest.mark.parametrize("name", LABELS)
def test_check_and_reader_agree_on_labels(tmp_path: Path, name: str) -> None:
    label, fields, code = LABELS[name]
    codes, refused = checked_and_read(label_case(tmp_path, label, **fields))
    assert codes == ({code} if code else set())
    assert refused == code


def test_small_rounding_of_labels_is_undone(tmp_path: Path) -> None:
    case = label_case(tmp_path, LABEL * (1 - 1e-6))
    assert case.label
    np.testing.assert_array_equal(read_label(case.label)[0], LABEL)
    label = read_case(resolve_task(TASK), case)[2]
    assert label is not None
    np.testing.assert_array_equal(label, LABEL)


@pytest.mark.parametrize(
    ("image", "fields", "code"),
    [
        (VOXELS, {}, ""),
        (np.full_like(VOXELS, 7), {}, "constant"),
        (np.where(VOXELS > 90, np.inf, VOXELS), {}, "not-finite"),
        (np.where(VOXELS > 90, 1e300, VOXELS.astype(np.float64)), {}, "not-finite"),
        (VOXELS, {"srow": (20, 0, 0, 0, 0, 20, 0, 0, 0, 0, 20, 0)}, "spacing"),
        (VOXELS, {"sform_code": 0, "pixdim": (1, 0, 1, 1, 0, 0, 0, 0)}, "spacing"),
        (np.stack([VOXELS, VOXELS], -1), {}, "channel-count"),
    ],
)
def test_check_and_reader_agree_on_images(tmp_path: Path, image: np.ndarray, fields: Any, code: str) -> None:
    case = Case((write_nifti(tmp_path / "i.nii", image, **fields),), None, "p")
    codes, refused = checked_and_read(case)
    assert codes - {"label-missing"} == ({code} if code else set())
    assert refused == code


def test_grids_are_compared_in_voxels_not_in_millimetres(tmp_path: Path) -> None:
    """A twentieth of a voxel of 4 mm is 0.2 mm, one of 0.3 mm is 0.015 mm."""

    def pair(size: float, shift: float) -> list[Path]:
        return [
            write_nifti(tmp_path / f"{name}.nii", VOXELS, srow=(size, 0, 0, x, 0, size, 0, 0, 0, 0, size, 0))
            for name, x in (("a", 0), ("b", shift))
        ]

    for size, shift in ((4.0, 0.19), (0.3, 0.014)):
        read_image(pair(size, shift))
    for size, shift in ((4.0, 0.21), (0.3, 0.016)):
        with pytest.raises(FileError, match=r"b\.nii: The voxels lie up to"):
            read_image(pair(size, shift))


def test_error_of_a_file_survives_the_way_to_another_process(tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught:
        open_image(tmp_path / "no.nii", refuse(tmp_path / "no.nii"))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.code, again.file) == (str(caught.value), "missing-file", tmp_path / "no.nii")
    assert str(again).startswith(f"{tmp_path / 'no.nii'} cannot be read: The file does not exist. Copy it")
