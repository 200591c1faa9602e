"""DICOM series to NIfTI: the same values in the same places, and every series that is no volume refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from fedseg.cli import main
from fedseg.data.intake.dicom import find_series, read_volume
from fedseg.errors import DataError

UID = "1.2.826.0.1.3680043.2.1125.7"
SPACING, ORIGIN = (0.7, 0.8, 2.5), (-31.0, 12.5, 407.25)
DIRECTIONS = {
    "identity": (1, 0, 0, 0, 1, 0, 0, 0, 1),
    "reversed slices": (1, 0, 0, 0, 1, 0, 0, 0, -1),
    "turned over": (1, 0, 0, 0, -1, 0, 0, 0, -1),
    "sagittal": (0, 0, 1, 1, 0, 0, 0, 1, 0),
}


def volume(direction: Sequence[float] = DIRECTIONS["identity"], depth: int = 6, seed: int = 0) -> sitk.Image:
    voxels = np.random.default_rng(seed).integers(-1000, 1500, (depth, 8, 10)).astype(np.int16)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection([float(d) for d in direction])
    return image


def write_series(
    folder: Path,
    image: sitk.Image,
    *,
    uid: str = UID,
    skip: Sequence[int] = (),
    places: dict[int, tuple[float, float, float]] | None = None,
    reverse_names: bool = False,
    **tags: str,
) -> Path:
    """Write each slice as a DICOM file; ``places`` moves slices (mm)."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    d = image.GetDirection()
    for i in range(image.GetDepth()):
        if i in skip:
            continue
        one = image[:, :, i]
        shift = (places or {}).get(i, (0, 0, 0))
        position = np.add(image.TransformIndexToPhysicalPoint((0, 0, i)), shift)
        header = {
            "0008|0060": tags.get("modality", "CT"),
            "0008|103e": tags.get("description", "portal venous"),
            "0020|000e": uid,
            "0020|000d": UID + ".1",
            "0008|0018": f"{uid}.{i + 1}",
            "0020|0037": "\\".join(str(d[k]) for k in (0, 3, 6, 1, 4, 7)),
            "0020|0032": "\\".join(f"{p:.6f}" for p in position),
            "0020|0013": str(i + 1),
            "0010|0010": "Doe^Jane",
            "0010|0020": "4711",
            "0028|1052": "-1024",
            "0028|1053": tags.get("slope", "1"),
        }
        if "maker" in tags:
            header |= {"0008|0070": tags["maker"], "0018|0087": tags["tesla"], "0018|1000": "SN-12345"}
            header |= {"0008|0080": "St. Elsewhere", "0008|0020": "20260102"}
        for key, value in header.items():
            one.SetMetaData(key, value)
        number = image.GetDepth() - i if reverse_names else i
        writer.SetFileName(str(folder / f"{number:03d}.dcm"))
        writer.Execute(one)
    return folder


def same_place(result: sitk.Image, original: sitk.Image) -> None:
    """Every voxel of ``original`` is found with the same value at its physical place in ``result``."""
    assert sorted(result.GetSize()) == sorted(original.GetSize())
    for index in np.ndindex(*original.GetSize()):
        at = [int(i) for i in index]
        place = original.TransformIndexToPhysicalPoint(at)
        there = result.TransformPhysicalPointToContinuousIndex(place)
        nearest = [round(c) for c in there]
        assert np.abs(np.subtract(there, nearest)).max() < 1e-3
        assert result[nearest] == original[at]


@pytest.mark.parametrize("reverse_names", [False, True])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_values_spacing_and_orientation_come_back(tmp_path: Path, name: str, reverse_names: bool) -> None:
    original = volume(DIRECTIONS[name])
    folder = write_series(tmp_path / "dicom", original, reverse_names=reverse_names)
    assert main(["import-dicom", str(folder), "--out", str(tmp_path / "out")]) == 0
    result = sitk.ReadImage(str(tmp_path / "out" / "image.nii.gz"))
    np.testing.assert_allclose(result.GetSpacing(), SPACING, atol=1e-5)
    same_place(result, original)


@pytest.mark.parametrize("slope", [1, 2])
def test_rescale_is_applied_to_what_is_stored(tmp_path: Path, slope: int) -> None:
    """Stored bytes, read without any DICOM software, times slope plus intercept are the volume's values."""
    folder = write_series(tmp_path, volume(), slope=str(slope))
    result = read_volume(find_series(folder)[0])
    stored = np.frombuffer((folder / "000.dcm").read_bytes()[-160:], "<i2").reshape(8, 10)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(result)[0], stored.astype(int) * slope - 1024)
    assert stored.min() >= 0
    assert result.GetPixelID() == sitk.sitkInt16


def test_nothing_that_names_the_patient_goes_into_the_file(tmp_path: Path) -> None:
    write_series(tmp_path / "dicom", volume())
    assert main(["import-dicom", str(tmp_path), "--out", str(tmp_path / "out"), "--name", "p-17"]) == 0
    image = nib.load(tmp_path / "out" / "p-17.nii.gz")
    raw = image.header.binaryblock
    assert b"Doe" not in raw
    assert b"4711" not in raw
    assert not image.header.extensions
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["p-17.nii.gz"]


@pytest.mark.parametrize(
    ("skip", "places", "words"),
    [
        ([3], None, r"not evenly spaced: about 1 slice\(s\) are missing between 412.25 and 417.25 mm"),
        ([], {5: (0, 0, 1.0)}, "not evenly spaced"),
        ([], {i: (0, 0, 0.03 * i * i) for i in range(6)}, "not evenly spaced"),
        ([], {4: (0, 0, -2.5)}, r"1 slice\(s\) in the place of another"),
        ([], {i: (0, 0.5 * i, 0) for i in range(6)}, "tilted gantry"),
        ([0, 1, 2, 3, 4], None, "one slice only"),
    ],
)
def test_stack_that_is_not_even_is_refused(tmp_path: Path, skip: list[int], places: Any, words: str) -> None:
    write_series(tmp_path, volume(), skip=skip, places=places)
    with pytest.raises(DataError, match=words):
        read_volume(find_series(tmp_path)[0])


def test_rounded_positions_are_fine(tmp_path: Path) -> None:
    write_series(tmp_path, volume(), places={2: (0, 0, 0.04), 3: (0, 0, -0.04)})
    assert read_volume(find_series(tmp_path)[0]).GetSpacing()[2] == pytest.approx(2.5)


def test_mixed_slices_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "a", volume())
    write_series(tmp_path / "b", volume(DIRECTIONS["sagittal"], depth=2))
    with pytest.raises(DataError, match="mixes slices"):
        read_volume(find_series(tmp_path)[0])


def test_multi_frame_file_is_refused(tmp_path: Path) -> None:
    image = volume()
    for key, value in {"0020|000e": UID, "0008|0060": "CT"}.items():
        image.SetMetaData(key, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(tmp_path / "all.dcm"))
    writer.Execute(image)
    with pytest.raises(DataError, match="holds 6 frames"):
        read_volume(find_series(tmp_path)[0])


@pytest.fixture
def two_series(tmp_path: Path) -> Path:
    """A folder with a short arterial CT, a longer portal one in a subfolder, and files of other kinds."""
    write_series(tmp_path / "dicom", volume(depth=4, seed=1), uid=UID + ".2", description="arterial")
    write_series(tmp_path / "dicom" / "deep", volume(depth=6), uid=UID + ".3")
    (tmp_path / "dicom" / "readme.txt").write_text("exported yesterday")
    (tmp_path / "dicom" / "DICOMDIR").write_bytes(b"\0" * 200)
    return tmp_path / "dicom"


def test_series_are_listed(two_series: Path, capsys: Any) -> None:
    assert main(["import-dicom", str(two_series), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"series {UID}.3: CT, portal venous, 6 slices, 0.7 x 0.8 x 2.5 mm",
        f"series {UID}.2: CT, arterial, 4 slices, 0.7 x 0.8 x 2.5 mm",
    ]


@pytest.mark.parametrize(
    ("choice", "depth"),
    [
        (["--series", UID + ".2"], 4),
        (["--description", "PORTAL"], 6),
        (["--description", "^art"], 4),
        (["--largest"], 6),
    ],
)
def test_series_is_chosen(two_series: Path, tmp_path: Path, choice: list[str], depth: int) -> None:
    assert main(["import-dicom", str(two_series), "--out", str(tmp_path / "out"), *choice]) == 0
    assert nib.load(tmp_path / "out" / "image.nii.gz").shape[2] == depth


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ([], "2 series fit"),
        (["--modality", "ct"], "2 series fit"),
        (["--modality", "MR"], "No series fits"),
        (["--description", "["], "no regular expression"),
        (["--name", "../x"], "--name is '../x'"),
    ],
)
def test_unclear_choice_ends_with_2(
    two_series: Path, tmp_path: Path, choice: list[str], words: str, capsys: Any
) -> None:
    assert main(["import-dicom", str(two_series), "--out", str(tmp_path / "out"), *choice]) == 2
    complaint = capsys.readouterr().err
    assert words in complaint
    if "series fit" in words:
        assert UID + ".2" in complaint
        assert UID + ".3" in complaint
    assert not (tmp_path / "out").exists()


def test_command_refuses_wrong_places(two_series: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["import-dicom", str(two_series)]) == 2
    assert "--out DIR" in capsys.readouterr().err
    assert main(["import-dicom", str(tmp_path / "nowhere"), "--list"]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["import-dicom", str(tmp_path / "empty"), "--list"]) == 1
    assert "holds no DICOM image" in capsys.readouterr().err
    (tmp_path / "image.nii.gz").write_text("mine")
    assert main(["import-dicom", str(two_series), "--largest", "--out", str(tmp_path)]) == 2
    assert (tmp_path / "image.nii.gz").read_text() == "mine"


def test_of_the_scanner_maker_and_field_strength_are_kept_and_nothing_else(tmp_path: Path) -> None:
    image = volume(DIRECTIONS["identity"])
    folder = write_series(tmp_path / "in", image, modality="MR", maker="SIEMENS", tesla="2.8936")
    assert main(["import-dicom", str(folder), "--out", str(tmp_path / "out"), "--name", "p-17"]) == 0
    beside = tmp_path / "out" / "p-17.json"
    assert json.loads(beside.read_text()) == {"Manufacturer": "Siemens", "MagneticFieldStrength": 2.9}


def test_without_facts_of_the_scanner_there_is_no_file_beside_the_image(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "in", volume(DIRECTIONS["identity"]))
    assert main(["import-dicom", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["image.nii.gz"]
