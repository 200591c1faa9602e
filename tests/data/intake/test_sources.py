"""Intake of the real layouts, splitting by patient, and `fedseg import-data`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedseg.cli import main
from fedseg.data.datalist import SPLITS, Case, Datalist, read_datalist, write_datalist
from fedseg.data.intake.sources import guess_task, origin_note, read_source
from fedseg.data.splits import split_by_patient
from fedseg.errors import DataError, UsageError
from fedseg.tasks.registry import get_task, resolve_task

BRATS, HIPPOCAMPUS = get_task("brats"), get_task("hippocampus")
NAMES_2021 = ("_t1", "_t1ce", "_t2", "_flair", "_seg")
NAMES_2023 = ("-t1n", "-t1c", "-t2w", "-t2f", "-seg")


def brats_folder(
    root: Path, case_id: str, suffixes: Sequence[str] = NAMES_2021, ending: str = ".nii.gz", skip: Sequence[str] = ()
) -> Path:
    folder = root / case_id
    folder.mkdir(parents=True)
    for suffix in suffixes:
        if suffix not in skip:
            (folder / f"{case_id}{suffix}{ending}").touch()
    return folder


def decathlon(root: Path, names: Sequence[str], **content: Any) -> Path:
    entries = []
    for name in names:
        for folder in ("imagesTr", "labelsTr"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / f"{name}.nii.gz").touch()
        entries.append({"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"})
    base = {"name": "Hippocampus", "modality": {"0": "MRI"}, "training": entries, "test": ["./imagesTs/x.nii.gz"]}
    (root / "dataset.json").write_text(json.dumps({**base, **content}))
    return root


def cases_of(patients: Sequence[str]) -> tuple[Case, ...]:
    return tuple(Case((Path(f"/d/{i}.nii.gz"),), Path(f"/d/{i}_seg.nii.gz"), p) for i, p in enumerate(patients))


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_brats_2021_folders(tmp_path: Path, ending: str) -> None:
    for number in ("00002", "00001"):
        brats_folder(tmp_path, f"BraTS2021_{number}", ending=ending)
    cases = read_source(tmp_path, BRATS)
    assert [c.patient for c in cases] == ["BraTS2021_00001", "BraTS2021_00002"]
    shown = [i.name.removesuffix(ending) for i in cases[0].images]
    assert shown == [f"BraTS2021_00001_{s}" for s in ("t1", "t1ce", "t2", "flair")]
    assert cases[0].label is not None
    assert cases[0].label.name == f"BraTS2021_00001_seg{ending}"
    assert cases[0].images[0].is_absolute()


def test_brats_2023_time_points_belong_to_one_patient(tmp_path: Path) -> None:
    for case_id in ("BraTS-GLI-00001-000", "BraTS-GLI-00001-001", "BraTS-GLI-00002-000"):
        brats_folder(tmp_path / "train", case_id, NAMES_2023)
    cases = read_source(tmp_path, BRATS)
    assert [c.patient for c in cases] == ["BraTS-GLI-00001", "BraTS-GLI-00001", "BraTS-GLI-00002"]
    order = [i.name.removesuffix(".nii.gz").rpartition("-")[2] for i in cases[0].images]
    assert order == ["t1n", "t1c", "t2w", "t2f"]


def test_brats_channels_follow_the_task(tmp_path: Path) -> None:
    brats_folder(tmp_path, "BraTS2021_00001", skip=["_t1", "_t2"])
    task = resolve_task({"name": "brats", "channels": ["flair", "t1ce"]})
    assert [i.name for i in read_source(tmp_path, task)[0].images] == [
        "BraTS2021_00001_flair.nii.gz",
        "BraTS2021_00001_t1ce.nii.gz",
    ]


@pytest.mark.parametrize(("skip", "word"), [(["_t2"], "lacks t2"), (["_seg"], "lacks seg"), (["_t1", "_flair"], "t1")])
def test_incomplete_brats_folder_is_named(tmp_path: Path, skip: list[str], word: str) -> None:
    brats_folder(tmp_path, "BraTS2021_00001")
    folder = brats_folder(tmp_path, "BraTS2021_00002", skip=skip)
    with pytest.raises(DataError, match=word) as error:
        read_source(tmp_path, BRATS)
    assert str(folder) in str(error.value)


def test_empty_brats_folder_and_double_sequence_are_refused(tmp_path: Path) -> None:
    folder = brats_folder(tmp_path, "BraTS2021_00001")
    empty = tmp_path / "BraTS2021_00002"
    empty.mkdir()
    with pytest.raises(DataError, match="BraTS2021_00002 holds no sequence"):
        read_source(tmp_path, BRATS)
    empty.rmdir()
    (folder / "BraTS2021_00001_t1.nii").touch()
    with pytest.raises(DataError, match="has t1 twice"):
        read_source(tmp_path, BRATS)


def test_brats_folders_do_not_fit_another_task(tmp_path: Path) -> None:
    brats_folder(tmp_path, "BraTS2021_00001")
    with pytest.raises(DataError, match="the task pancreas takes ct"):
        read_source(tmp_path, get_task("pancreas"))


def test_decathlon_with_dotted_names(tmp_path: Path) -> None:
    cases = read_source(decathlon(tmp_path, ["case.1", "case.2"]), HIPPOCAMPUS)
    assert [c.patient for c in cases] == ["case.1", "case.2"]
    assert cases[0].images == (tmp_path / "imagesTr" / "case.1.nii.gz",)
    assert cases[0].id == "case.1"


def test_decathlon_file_may_be_named_itself(tmp_path: Path) -> None:
    folder = decathlon(tmp_path, ["a"])
    assert read_source(folder / "dataset.json", HIPPOCAMPUS) == read_source(folder, HIPPOCAMPUS)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}}, "channels in the order"),
        ({"labels": {"0": "background", "1": "edema"}}, "gives oedema the label 1"),
        ({"training": None}, "no list 'training'"),
        ({"training": [{"image": "./imagesTr/a.nii.gz"}]}, r"training\[0\]"),
        ({"training": []}, "no labelled case"),
        ({"training": [{"image": "./x.nii.gz", "label": "./y.nii.gz"}]}, "2 of 2 files do not exist, first .*x.nii.gz"),
    ],
)
def test_decathlon_that_cannot_be_used(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_source(decathlon(tmp_path, ["a"], **content), BRATS)


def nnunet(root: Path, names: Sequence[str], channels: int = 1, **content: Any) -> Path:
    for name in names:
        for folder, files in (("imagesTr", [f"{name}_{c:04d}" for c in range(channels)]), ("labelsTr", [name])):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for file in files:
                (root / folder / f"{file}.nii.gz").touch()
    labels = {"background": 0, "anterior": 1, "posterior": 2, "whole": [1, 2]}
    base = {"channel_names": {str(c): f"mr{c}" for c in range(channels)}, "labels": labels, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps({**base, **content}))
    return root


def test_nnunet_raw_data(tmp_path: Path) -> None:
    cases = read_source(nnunet(tmp_path / "a", ["k_1", "k_2"]), HIPPOCAMPUS)
    assert [c.patient for c in cases] == ["k_1", "k_2"]
    assert cases[0].images == (tmp_path / "a" / "imagesTr" / "k_1_0000.nii.gz",)
    assert guess_task(tmp_path / "a").name == "hippocampus"
    four = read_source(nnunet(tmp_path / "b", ["x"], 4, labels={}), BRATS)[0]
    assert [image.name[-12:] for image in four.images] == [f"_000{c}.nii.gz" for c in range(4)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"channel_names": {"0": "a", "1": "b"}}, r"has 2 channel\(s\) \['a', 'b'\], but the task needs 1"),
        ({"labels": {"posterior": 1}}, "gives posterior the label 1"),
        ({"file_ending": 3}, "'file_ending' must be an ending"),
        ({"file_ending": ".nrrd"}, "no labelled case"),
    ],
)
def test_nnunet_data_that_cannot_be_used(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_source(nnunet(tmp_path, ["a"], **content), HIPPOCAMPUS)


def test_nnunet_data_that_is_incomplete(tmp_path: Path) -> None:
    nnunet(tmp_path, ["a", "b"], 4)
    (tmp_path / "imagesTr" / "a_0002.nii.gz").unlink()
    with pytest.raises(DataError, match=r"1 of 10 files do not exist, first .*a_0002"):
        read_source(tmp_path, BRATS)
    (tmp_path / "labelsTr" / "b.nii.gz").unlink()
    with pytest.raises(DataError, match=r"b_0000.nii.gz has no label in labelsTr"):
        read_source(tmp_path, BRATS)


def test_channels_of_nnunet_1_lie_beside_the_list_of_a_decathlon(tmp_path: Path) -> None:
    decathlon(tmp_path, ["a"], name="x", labels={})
    (tmp_path / "imagesTr" / "a.nii.gz").unlink()
    for channel in range(4):
        (tmp_path / "imagesTr" / f"a_000{channel}.nii.gz").touch()
    (case,) = read_source(tmp_path, BRATS)
    assert [image.name for image in case.images] == [f"a_000{channel}.nii.gz" for channel in range(4)]


def test_images_in_folders_of_their_own_name(tmp_path: Path) -> None:
    for case in ("BraTS2021_00001", "BraTS2021_00002"):
        for sequence in ("t1", "t1ce", "t2", "flair", "seg"):
            folder = tmp_path / case / f"{case}_{sequence}.nii"
            folder.mkdir(parents=True)
            (folder / f"{case[-5:]}_final_{sequence}.nii").touch()
    cases = read_source(tmp_path, BRATS)
    assert [c.patient for c in cases] == ["BraTS2021_00001", "BraTS2021_00002"]
    assert [image.name for image in cases[0].images] == [f"00001_final_{s}.nii" for s in ("t1", "t1ce", "t2", "flair")]
    (tmp_path / "BraTS2021_00002" / "BraTS2021_00002_t2.nii" / "more.nii").touch()
    with pytest.raises(DataError, match=r"BraTS2021_00002_t2.nii has an image's name and should hold one image.* 2"):
        read_source(tmp_path, BRATS)


@pytest.mark.parametrize(
    "more",
    [{"validation": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]},
     {"test": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]}],
)  # fmt: skip
def test_labelled_cases_of_a_decathlon_are_not_passed_over(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"cases under '{next(iter(more))}', which is not read"):
        read_source(decathlon(tmp_path, ["a"], **more), HIPPOCAMPUS)


def test_names_of_values_that_are_no_numbers_are_passed_over(tmp_path: Path) -> None:
    labels = {"0": "background", "²": "x", "9" * 6000: "y", "1": "anterior"}
    assert len(read_source(decathlon(tmp_path, ["a"], labels=labels), HIPPOCAMPUS)) == 1


def test_datalist_as_a_source(tmp_path: Path, make_case: Callable[..., Case]) -> None:
    a, b = make_case("a"), make_case("b")
    path = write_datalist(Datalist((a,), (), (b,)), tmp_path / "datalist.json")
    assert read_source(path, HIPPOCAMPUS) == (a, b)
    write_datalist(Datalist((a, Case(b.images, None, "b"))), path)
    with pytest.raises(DataError, match="has no label"):
        read_source(path, HIPPOCAMPUS)


def test_unknown_layout_and_missing_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no layout that is known"):
        read_source(tmp_path, HIPPOCAMPUS)
    with pytest.raises(UsageError, match="does not exist"):
        read_source(tmp_path / "nowhere", HIPPOCAMPUS)
    (tmp_path / "datalist.json").write_text("{")
    with pytest.raises(DataError, match="not a datalist in JSON"):
        read_source(tmp_path, HIPPOCAMPUS)


def test_task_is_guessed_from_layout_name_or_labels(tmp_path: Path) -> None:
    brats_folder(tmp_path / "b", "BraTS2021_00001")
    assert guess_task(tmp_path / "b").name == "brats"
    assert guess_task(decathlon(tmp_path / "h", ["a"])).name == "hippocampus"
    labels = {"0": "background", "1": "pancreas", "2": "cancer"}
    assert guess_task(decathlon(tmp_path / "p", ["a"], name="Task07", labels=labels)).name == "pancreas"
    with pytest.raises(UsageError, match="Name it: --task"):
        guess_task(decathlon(tmp_path / "u", ["a"], name="Spleen"))


def test_split_keeps_patients_whole_and_loses_no_case() -> None:
    cases = cases_of([f"p{i // 3}" for i in range(60)])
    parts = split_by_patient(cases, {"validation": 0.2, "test": 0.15}, 0)
    assert sorted(c.images for s in SPLITS for c in parts[s]) == sorted(c.images for c in cases)
    patients = [{c.patient for c in parts[s]} for s in SPLITS]
    assert [len(p) for p in patients] == [13, 4, 3]
    assert len(set.union(*patients)) == 20


def test_split_depends_on_the_seed_and_not_on_the_order_of_files() -> None:
    cases = cases_of([f"p{i}" for i in range(20)])

    def validation(cases: Sequence[Case], seed: int) -> set[str]:
        return {c.patient for c in split_by_patient(cases, {"validation": 0.3}, seed)["validation"]}

    assert validation(cases, 1) == validation(cases[::-1], 1)
    assert validation(cases, 1) != validation(cases, 2)


@pytest.mark.parametrize(
    ("patients", "validation", "test", "expected"),
    [(3, 0.01, 0.01, (1, 1, 1)), (2, 0.9, 0.0, (1, 1, 0)), (4, 0.49, 0.49, (1, 2, 1)), (5, 0.0, 0.0, (5, 0, 0))],
)
def test_a_split_asked_for_is_never_empty(
    patients: int, validation: float, test: float, expected: tuple[int, ...]
) -> None:
    parts = split_by_patient(cases_of([f"p{i}" for i in range(patients)]), {"validation": validation, "test": test}, 0)
    assert sorted(len(parts[s]) for s in SPLITS) == sorted(expected)
    assert len(parts["training"]) == expected[0]


def test_too_few_patients_and_impossible_fractions_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 patient\(s\) cannot be split"):
        split_by_patient(cases_of(["a", "a"]), {"validation": 0.5}, 0)
    with pytest.raises(UsageError, match="leaves no training case"):
        split_by_patient(cases_of(["a", "b"]), {"validation": 0.5, "test": 0.5}, 0)
    with pytest.raises(UsageError, match=r"--validation-fraction is -0\.1"):
        split_by_patient(cases_of(["a", "b"]), {"validation": -0.1}, 0)


def test_command_writes_a_datalist(tmp_path: Path, capsys: Any) -> None:
    source = decathlon(tmp_path / "source", [f"v{i}" for i in range(10)])
    command = ["import-data", str(source), "--task", "hippocampus", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "8 training, 2 validation, 0 test cases" in capsys.readouterr().out
    datalist = read_datalist(tmp_path / "out")
    assert datalist.task == "hippocampus"
    assert "names no patients" in datalist.notes["origin"]["patient"]
    assert all(c.images[0].is_file() for c in datalist.training)
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err


def test_command_keeps_the_split_of_a_datalist(tmp_path: Path, make_case: Callable[..., Case], capsys: Any) -> None:
    a, b, c = (make_case(n) for n in "abc")
    write_datalist(Datalist((a, b), (c,), notes={"site": "north"}), tmp_path / "datalist.json")
    assert main(["import-data", str(tmp_path), "--task", "hippocampus", "--out", str(tmp_path / "out")]) == 0
    datalist = read_datalist(tmp_path / "out")
    assert (datalist.training, datalist.validation) == ((a, b), (c,))
    assert datalist.notes["site"] == "north"
    write_datalist(Datalist((a, b), (Case(c.images, c.label, "a"),)), tmp_path / "datalist.json")
    assert main(["import-data", str(tmp_path), "--task", "hippocampus", "--out", str(tmp_path / "other")]) == 1
    assert "patient a is in training and validation" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("option", [["--validation-fraction", "1"], ["--seed", "-1"], ["--task", "heart"]])
def test_command_refuses_wrong_values(tmp_path: Path, option: list[str], capsys: Any) -> None:
    source = decathlon(tmp_path / "source", ["a", "b"])
    command = ["import-data", str(source), "--task", "hippocampus", "--out", str(tmp_path / "out"), *option]
    assert main(command) == 2
    assert option[1] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.images
def test_real_layouts(test_data: Path) -> None:
    assert len(read_source(test_data / "BraTS2021", guess_task(test_data / "BraTS2021"))) == 7
    hippocampus = test_data / "Task04_Hippocampus"
    assert guess_task(hippocampus) == HIPPOCAMPUS
    assert len(read_source(hippocampus, HIPPOCAMPUS)) == 200


@pytest.mark.images
def test_a_data_set_of_another_task_is_refused(test_data: Path) -> None:
    with pytest.raises(DataError, match=r"4 channel\(s\)|labels|label values|sequence|channels"):
        read_source(test_data / "BraTS2021", get_task("hippocampus"))
    with pytest.raises(DataError, match=r"1 channel\(s\), but the task brats needs|channel"):
        read_source(test_data / "Task04_Hippocampus", get_task("brats"))


@pytest.mark.parametrize(
    ("origin", "drawn"), [("phantom", True), ("scanner A", False), ({"layout": "datalist", "images": "phantom"}, True)]
)
def test_phantoms_stay_phantoms_when_they_are_dealt_out(origin: Any, drawn: bool, tmp_path: Path, make_case) -> None:
    first = Datalist((make_case("one"),), notes={"origin": origin})
    path = write_datalist(first, tmp_path / "source" / "datalist.json")
    note = origin_note(path.parent)
    assert first.phantoms is Datalist(notes={"origin": note}).phantoms is drawn
    assert ("images" in note) is drawn
