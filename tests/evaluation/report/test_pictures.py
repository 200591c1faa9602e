"""Views are turned the right way, choose the right slice, and missing files leave a gap instead of a crash."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from evaluation.synthetic_run import draw_case
from fedseg.errors import ConfigurationError, DataError
from fedseg.evaluation.report import overlays
from fedseg.evaluation.report.views import largest_slice, make_view, shown_channels
from fedseg.tasks.registry import BRATS, HIPPOCAMPUS, PANCREAS
from fedseg.tasks.task import Task, parse_task


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "ASL"])
def test_orientation_and_aspect(tmp_path: Path, codes: str) -> None:
    # One bright voxel far to the patient's left, in front, whatever the order of the file's axes.
    image, label = np.full((9, 11, 7), 10.0, np.float32), np.zeros((9, 11, 7), np.uint8)
    image[1, 9, 5], label[1, 9, 5] = 100, 2
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    paths = []
    for name, array in (("image", image), ("label", label)):
        canonical = nib.Nifti1Image(array, affine)
        turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
        paths.append(tmp_path / f"{name}.nii.gz")
        nib.save(canonical.as_reoriented(turn), paths[-1])
    view = make_view(HIPPOCAMPUS, paths[:1], {"reference": paths[1]}, zoom=False)
    grey = view.channels["t1"]
    row, column = np.unravel_index(grey.argmax(), grey.shape)
    assert row < grey.shape[0] / 2, "anterior must be up"
    assert column > grey.shape[1] / 2, "the patient's left must be on the right"
    assert view.slice_index == 5
    assert view.aspect == pytest.approx(1.5)  # rows are 3 mm (A), columns 2 mm (R)
    assert view.masks["reference"][1, row, column]
    assert view.masks["reference"].sum() == 1


def test_slice_with_the_largest_region() -> None:
    reference, prediction = np.zeros((2, 5, 5, 6), bool), np.zeros((2, 5, 5, 6), bool)
    assert largest_slice([reference, prediction], 6) == 3
    prediction[0, 1, 1, 1] = True
    assert largest_slice([reference, prediction], 6) == 1
    reference[0, 1, 1, 2] = reference[0, 2:4, 2, 4] = True
    assert largest_slice([reference, prediction], 6) == 4


def test_small_structures_are_enlarged(tmp_path: Path) -> None:
    image, label = np.full((80, 80, 3), 50.0, np.float32), np.zeros((80, 80, 3), np.uint8)
    label[40:46, 30:36, 1] = 1
    paths = [tmp_path / "image.nii.gz", tmp_path / "label.nii.gz"]
    for path, array in zip(paths, (image, label), strict=True):
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    whole, near = (make_view(PANCREAS, paths[:1], {"reference": paths[1]}, zoom) for zoom in (False, True))
    assert near.channels["ct"].shape[0] < whole.channels["ct"].shape[0] / 2
    assert near.masks["reference"].sum() == whole.masks["reference"].sum() == 36


def test_files_that_do_not_fit_together(tmp_path: Path) -> None:
    case = draw_case(tmp_path, "case", 1)
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "small.nii.gz")
    with pytest.raises(DataError, match="differ in shape"):
        make_view(BRATS, [Path(p) for p in case["images"]], {"reference": tmp_path / "small.nii.gz"}, False)


def test_overlays_leave_out_what_is_gone(tmp_path: Path) -> None:
    entry = {"site": "a", "case": "1", "rank": "best", "dice": None, **draw_case(tmp_path, "case", 1)}
    broken = {**entry, "rank": "worst", "prediction": str(tmp_path / "gone.nii.gz")}
    assert overlays.draw_overlays([broken], BRATS) is None
    figure = overlays.draw_overlays([entry, broken], BRATS)
    assert figure is not None
    assert len(figure.axes) == 4  # two sequences, reference and prediction of the one readable case
    assert any("Dice n/a" in text.get_text() for axes in figure.axes for text in axes.texts)


def test_an_unreadable_image_is_named_as_such(tmp_path: Path) -> None:
    entry = {"site": "a", "rank": "best", "dice": 0.5, **draw_case(tmp_path, "case", 1)}
    Path(entry["label"]).write_bytes(b"no image")
    figure = overlays.draw_overlays([entry], BRATS)
    assert figure is not None
    assert any("not readable" in text.get_text() for axes in figure.axes for text in axes.texts)


def test_gallery_of_a_file_that_holds_all_channels(tmp_path: Path) -> None:
    case = draw_case(tmp_path, "case", 1)
    stacked = np.stack([np.asarray(nib.load(p).dataobj) for p in case["images"]], -1)
    nib.save(nib.Nifti1Image(stacked, nib.load(case["label"]).affine), tmp_path / "four.nii.gz")
    together = make_view(BRATS, [tmp_path / "four.nii.gz"], {}, False)
    separate = make_view(BRATS, [Path(p) for p in case["images"]], {}, False)
    np.testing.assert_array_equal(together.channels["flair"], separate.channels["flair"])
    figure = overlays.draw_gallery({"a": {"images": str(tmp_path / "four.nii.gz")}}, BRATS)
    assert figure is not None
    assert len(figure.axes) == 5


def test_lists_that_are_not_lists(tmp_path: Path) -> None:
    (tmp_path / "overlays.json").write_text('{"a": 1}')
    (tmp_path / "gallery.json").write_text("{")
    assert overlays.read_list(tmp_path / "overlays.json") == []
    assert overlays.read_gallery(tmp_path / "gallery.json") == {}


def own_task(channels: tuple[str, ...], **more: object) -> Task:
    declared = {"name": "lesion", "modality": "MR", "channels": channels, "labels": {"lesion": 1}, **more}
    return parse_task({**declared, "normalisation": "zscore_nonzero", "patch_size": [16, 16, 8]})


def draw_lesion(folder: Path, contrasts: dict[str, float | None]) -> dict[str, list[str] | str]:
    """A round head of 100 with a lesion that is brighter by ``contrasts`` in each channel; None is a file of zeros."""
    x, y, z = np.indices((40, 40, 6))
    head = (x - 20) ** 2 + (y - 20) ** 2 < 18**2
    lesion = (x - 14) ** 2 + (y - 22) ** 2 < 5**2
    label = (lesion & (z == 3)).astype(np.uint8)
    paths: dict[str, list[str] | str] = {"images": []}
    for name, contrast in contrasts.items():
        noise = np.random.default_rng(len(name)).normal(0, 1, head.shape)
        image = np.zeros(head.shape) if contrast is None else head * (100 + noise + contrast * lesion)
        nib.save(nib.Nifti1Image(image.astype(np.float32), np.diag([2.0, 2.0, 5.0, 1.0])), folder / f"{name}.nii.gz")
        paths["images"].append(str(folder / f"{name}.nii.gz"))
    nib.save(nib.Nifti1Image(label, np.diag([2.0, 2.0, 5.0, 1.0])), folder / "label.nii.gz")
    return {**paths, "label": str(folder / "label.nii.gz"), "prediction": str(folder / "label.nii.gz")}


@pytest.mark.parametrize(
    ("contrasts", "display", "expected"),
    [
        ({"t1": -4, "flair": 60, "t1ce": 3}, (), ["flair"]),
        ({"t1": -50, "flair": 20, "t1ce": 3}, (), ["t1"]),
        ({"t1": 2, "flair": 60, "t1ce": None}, ("t1ce",), ["flair"]),
        ({"t1": 2, "flair": 60, "t1ce": None}, ("t1ce", "t1"), ["t1", "flair"]),
        ({"t1": 2, "flair": 60, "t1ce": 3}, ("t1ce", "t1"), ["t1ce", "t1"]),
        ({"t1": None, "flair": None, "t1ce": None}, (), ["t1ce"]),
    ],
    ids=["bright", "dark", "missing", "one of two missing", "as declared", "all missing"],
)
def test_a_case_is_drawn_where_its_regions_stand_out(tmp_path: Path, contrasts, display, expected) -> None:
    case = draw_lesion(tmp_path, contrasts)
    task = own_task(tuple(contrasts), display=list(display))
    view = make_view(task, [Path(p) for p in case["images"]], {"reference": Path(str(case["label"]))}, zoom=True)
    assert shown_channels(task, view) == expected
    for name, contrast in contrasts.items():
        if contrast is None and name != "flair":  # not acquired at all, rather than a file of zeros
            case["images"][list(contrasts).index(name)] = None
    figure = overlays.draw_overlays([{"site": "a", "rank": "best", "dice": 0.5, **case}], task)
    assert figure is not None
    drawn = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert [text for text in drawn if text in {name.upper() for name in contrasts}] == [n.upper() for n in expected]


def test_a_scale_bar_has_its_length_in_millimetres(tmp_path: Path) -> None:
    case = draw_lesion(tmp_path, {"t1": 50})
    figure = overlays.draw_overlays([{"site": "a", "rank": "best", "dice": 0.5, **case}], own_task(("t1",)))
    assert figure is not None
    prediction = figure.axes[1]
    (label,) = [text.get_text() for text in prediction.texts if text.get_text().endswith(" mm")]
    (bar,) = [line for line in prediction.lines if len(line.get_xdata()) == 2]
    assert np.ptp(bar.get_xdata()) * 2.0 == pytest.approx(float(label.removesuffix(" mm")))


def test_what_is_displayed_are_channels_of_the_task() -> None:
    with pytest.raises(ConfigurationError, match=r"task\.display"):
        own_task(("t1",), display=["flair"])
    assert "display" not in own_task(("t1",)).to_dict()
    assert parse_task(BRATS.to_dict()).display == ("t1ce", "flair")
