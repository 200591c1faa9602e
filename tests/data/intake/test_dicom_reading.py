"""DICOM: each slice in its own units, nothing left out in silence, nothing read that a file does not hold."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from fedseg.cli import main
from fedseg.data.intake.dicom import find_series, read_volume, search
from fedseg.data.intake.dicom_elements import read_outline
from fedseg.data.intake.dicom_text import decode
from fedseg.errors import DataError
from raw_dicom import (
    BIG,
    CHARACTER_SET,
    COLUMNS,
    DESCRIPTION,
    EXPLICIT,
    IMPLICIT,
    INTERCEPT,
    MODALITY,
    ORIENTATION,
    PIXELS,
    POSITION,
    REPORT,
    ROWS,
    SEGMENTATION,
    SERIES,
    SLOPE,
    SPACING,
    UNDEFINED,
    element,
    sequence,
    slice_bytes,
    write_slices,
)

STORED = np.random.default_rng(3).integers(0, 3000, (4, 5, 6)).astype(np.int16)
NO_IMAGE = dict.fromkeys((PIXELS, ROWS, COLUMNS, *((0x0028, e) for e in (2, 4, 0x100, 0x101, 0x102, 0x103))))


def read(folder: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(read_volume(find_series(folder)[0]))


@pytest.mark.parametrize(
    ("syntax", "preamble"), [(EXPLICIT, True), (IMPLICIT, True), (BIG, True), (EXPLICIT, False), (IMPLICIT, False)]
)
def test_every_encoding_gives_the_same_volume(tmp_path: Path, syntax: str, preamble: bool) -> None:
    write_slices(tmp_path, STORED, syntax=syntax, preamble=preamble)
    np.testing.assert_array_equal(read(tmp_path), STORED - 1024)


def test_each_slice_has_its_own_scale_and_sign(tmp_path: Path) -> None:
    """Stored values times slope plus intercept, for each slice by hand."""
    kinds = [(np.int16, "1", "0"), (np.int16, "0.5", "-7"), (np.int16, "4", "0"), (np.uint16, "1", "-1024")]
    stored = [np.full((5, 6), 30000, np.int16), STORED[1], np.full((5, 6), 30000), np.full((5, 6), 65000)]
    for z, ((dtype, slope, intercept), pixels) in enumerate(zip(kinds, stored, strict=True)):
        changes = {SLOPE: ("DS", slope), INTERCEPT: ("DS", intercept)}
        (tmp_path / f"{z}.dcm").write_bytes(slice_bytes(pixels.astype(dtype), z + 1, changes=changes))
    expected = np.stack([stored[0], stored[1] * 0.5 - 7, stored[2] * 4.0, stored[3] - 1024.0])
    np.testing.assert_array_equal(read(tmp_path), expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({SLOPE: None, INTERCEPT: None}, "1 of 4 slices state no rescale"),
        ({SLOPE: ("DS", "0")}, "2.dcm states no usable rescale"),
        ({SLOPE: ("DS", "abc")}, "2.dcm states no usable rescale"),
        ({INTERCEPT: ("DS", "NaN")}, "2.dcm states no usable rescale"),
        ({INTERCEPT: None}, "2.dcm states no usable rescale"),
        ({POSITION: ("DS", "0\\0\\nan")}, "2.dcm does not say where its slice lies"),
        ({ORIENTATION: ("DS", "1\\0\\0\\0\\2\\0")}, "2.dcm does not say where its slice lies"),
        ({ORIENTATION: ("DS", "1\\0\\0\\1\\0\\0")}, "2.dcm does not say where its slice lies"),
        ({SPACING: ("DS", "1\\0")}, "2.dcm does not say where its slice lies"),
        ({ROWS: ("US", 6), COLUMNS: ("US", 5)}, "mixes slices"),
    ],
)
def test_slice_that_says_something_else_is_refused(tmp_path: Path, changes: Any, words: str) -> None:
    files = write_slices(tmp_path, STORED)
    files[2].write_bytes(slice_bytes(STORED[2], 3, changes=changes))
    with pytest.raises(DataError, match=words):
        read(tmp_path)


# Each row: the bytes of the last slice, and why it cannot be read.
WHOLE = slice_bytes(STORED[3], 4)
DAMAGED = {
    "pixels cut off": (WHOLE[:-7], "it was cut off"),
    "header cut off": (WHOLE[:400], "it was cut off"),
    "element cut off": (WHOLE[:133], "it was cut off"),
    "cut off, no preamble": (slice_bytes(STORED[3], 4, preamble=False, syntax=IMPLICIT)[:-7], "it was cut off"),
    "no pixels": (slice_bytes(STORED[3], 4, changes={PIXELS: None}), "no DICOM image that GDCM can read"),
    "fewer pixels": (slice_bytes(STORED[3], 4, changes={ROWS: ("US", 6)}), "60 bytes of pixels, .* need 72"),
    "more pixels": (slice_bytes(STORED[3], 4, changes={ROWS: ("US", 4)}), "60 bytes of pixels, .* need 48"),
    "absurd": (slice_bytes(STORED[3], 4, changes={ROWS: ("US", 65535), COLUMNS: ("US", 65535)}), "60 bytes of pixels"),
    "absurd frames": (slice_bytes(STORED[3], 4, changes={(0x28, 8): ("IS", "1000000")}), "60 bytes of pixels"),
    "cut off before anything": (WHOLE[:100], "no DICOM file, but is named like one"),
    "cut off after the magic": (WHOLE[:132], "no DICOM file, but is named like one"),
    "nothing at all": (b"", "no DICOM file, but is named like one"),
    "other magic": (WHOLE.replace(b"DICM", b"DIGM"), "no DICOM file, but is named like one"),
    "cut off between elements": (WHOLE[: WHOLE.index(b"\x28\0\2\0")], "it has no pixels"),
    "no series": (slice_bytes(STORED[3], 4, changes={SERIES: None}), "names no series"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_slice_that_cannot_be_read_is_never_left_out(tmp_path: Path, name: str, capsys: Any) -> None:
    content, why = DAMAGED[name]
    files = write_slices(tmp_path / "in", STORED)
    files[3].write_bytes(content)
    with pytest.raises(DataError, match=rf"1 of 4 files cannot be read: .*3\.dcm: .*{why}"):
        search(tmp_path / "in")
    assert main(["import-dicom", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 1
    assert "3.dcm" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_file_that_the_system_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_slices(tmp_path, STORED)
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(DataError, match="gone: No such file"):
        search(tmp_path)
    (tmp_path / "gone").unlink()
    opened = Path.open

    def denied(path: Path, *arguments: Any) -> Any:
        if path == files[1]:
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments)

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(DataError, match=r"1\.dcm: Permission denied"):
        search(tmp_path)


def test_files_of_other_kinds_are_passed_and_counted(tmp_path: Path, capsys: Any) -> None:
    write_slices(tmp_path / "a", STORED)
    segmentation = slice_bytes(STORED[0], 9, changes={MODALITY: ("CS", "SEG")}, sop_class=SEGMENTATION)
    report = slice_bytes(STORED[0], 8, changes={**NO_IMAGE, SERIES: ("UI", "9")}, sop_class=REPORT)
    others = {"letter.txt": b"\x08 July", "DICOMDIR": b"\0" * 200, "sr": report, "seg": segmentation, "empty": b""}
    for name, content in others.items():
        (tmp_path / "a" / name).write_bytes(content)
    export = search(tmp_path)
    assert sorted(file.name for file in export.others) == sorted(others)
    assert [len(series.slices) for series in export.series] == [4]
    assert main(["import-dicom", str(tmp_path), "--list"]) == 0
    assert "Passed over: 5 file(s)" in capsys.readouterr().err


def test_names_tell_a_damaged_slice_from_another_file(tmp_path: Path) -> None:
    for file in write_slices(tmp_path, STORED):
        file.rename(tmp_path / f"IM{file.stem}")
    for name in ("VERSION", "IM", "notes1"):
        (tmp_path / name).write_text("x")
    assert len(search(tmp_path).others) == 3
    (tmp_path / "IM17").write_text("x")
    with pytest.raises(DataError, match="IM17: it is no DICOM file, but is named like one"):
        search(tmp_path)


def test_linked_folder_is_searched(tmp_path: Path) -> None:
    write_slices(tmp_path / "real", STORED)
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "link").symlink_to(tmp_path / "real")
    assert len(find_series(tmp_path / "outer")[0].slices) == 4


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (WHOLE, (True, True, 60)),
        (b"\0" * 132 + WHOLE[132:], None),
        (b"", None),
        (b"\x08\0", None),
    ],
)
def test_outline_of_files(tmp_path: Path, content: bytes, expected: Any) -> None:
    (tmp_path / "f").write_bytes(content)
    outline = read_outline(tmp_path / "f")
    assert (outline and (outline.is_image, outline.is_whole, outline.pixel_bytes)) == expected


def test_elements_within_sequences_do_not_count(tmp_path: Path) -> None:
    """Rows, pixels and a modality of an icon inside sequences, also of unknown representation, are not the image's."""
    inner = element(MODALITY, "CS", "SEG") + element(ROWS, "US", 9)
    packed = struct.pack("<HHI", *PIXELS, UNDEFINED)[:4] + b"OB\0\0" + struct.pack("<I", UNDEFINED)
    packed += struct.pack("<HHI", 0xFFFE, 0xE000, 4) + b"abcd" + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    implicit = element(ROWS, "US", 9, IMPLICIT)
    head, body = WHOLE[: WHOLE.index(b"\x08\0\x16\0")], WHOLE[WHOLE.index(b"\x08\0\x16\0") :]
    extra = sequence((0x0008, 0x0005), sequence((0x0008, 0x1140), inner) + packed)
    extra += sequence((0x0008, 0x0006), implicit, "UN") + element((0x0008, 0x0007), "SQ", b"")
    (tmp_path / "f").write_bytes(head + extra + body)
    outline = read_outline(tmp_path / "f")
    assert outline
    assert (outline.is_image, outline.is_whole, outline.pixel_bytes) == (True, True, 60)


@pytest.mark.parametrize(
    ("raw", "character_set", "text"),
    [
        ("Schädel ".encode("latin_1"), "ISO_IR 100", "Schädel"),
        ("Müller".encode("iso8859_2"), "ISO_IR 101", "Müller"),
        ("Голова".encode("iso8859_5"), "ISO_IR 144", "Голова"),
        ("Κεφάλι".encode("iso8859_7"), "ISO_IR 126", "Κεφάλι"),
        ("头颅".encode(), "ISO_IR 192", "头颅"),
        ("头颅".encode("gb18030"), "GB18030", "头颅"),
        ("头颅".encode("gbk"), "GBK", "头颅"),
        ("頭部".encode("iso2022_jp"), "\\ISO 2022 IR 87", "頭部"),
        (b"\x1b$)C" + "머리".encode("euc_kr"), "\\ISO 2022 IR 149", "머리"),
        (b"\x1b$)A" + "头".encode("gb2312"), "ISO 2022 IR 6\\ISO 2022 IR 58", "头"),
        ("Schädel".encode("latin_1"), "", "Schädel"),
        ("Schädel".encode(), "", "Schädel"),
        (b"Sch\xe4del", "ISO_IR 192", "Sch\\xe4del"),
        (b"Sch\xe4del", "nonsense", "Schädel"),
        (b"portal\0", "", "portal"),
        ("Scha\u0308del".encode(), "ISO_IR 192", "Schädel"),
    ],
)
def test_text_is_read_in_the_character_set_of_the_file(raw: bytes, character_set: str, text: str) -> None:
    assert decode(raw, character_set) == text


def test_description_in_another_character_set_is_printed_and_found(tmp_path: Path, capsys: Any) -> None:
    described = {CHARACTER_SET: ("CS", "ISO_IR 144"), DESCRIPTION: ("LO", "Голова".encode("iso8859_5"))}
    write_slices(tmp_path / "in", STORED, changes=described)
    assert main(["import-dicom", str(tmp_path / "in"), "--list"]) == 0
    assert "Голова" in capsys.readouterr().out
    assert main(["import-dicom", str(tmp_path / "in"), "--out", str(tmp_path / "o"), "--description", "голова"]) == 0
