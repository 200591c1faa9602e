"""``evaluate`` and ``predict``: what a result says of itself, images without a datalist, and what is said meanwhile."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from conftest import save_nifti
from fedseg import console
from fedseg.cli import main
from fedseg.data.datalist import read_datalist
from fedseg.data.intake.image_folders import read_cases
from fedseg.errors import DataError, UsageError
from fedseg.evaluation.intervals import bootstrap_mean
from fedseg.files.digest import model_digest
from fedseg.models.model_file import read_model
from fedseg.tasks.registry import resolve_task
from fedseg.tasks.segmentation.objective import Segmentation
from tiny import make_model_and_site

FOUR = {
    "name": "four", "modality": "MR", "channels": ["t1", "t1ce", "flair"], "labels": {"lesion": 1},
    "normalisation": "zscore_nonzero", "patch_size": [8, 8, 8], "optional_channels": ["t1ce"],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model, its task and a site."""
    monkeypatch.chdir(tmp_path)
    return make_model_and_site(tmp_path)


def use(command: str, data: str, *more: str) -> int:
    return main([command, "model.safetensors", "--task", "task.json", "--data", data, "--out", "out", *more])


def test_an_evaluation_says_of_what_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert use("evaluate", "a", "--split", "all", "--overlap", "0.5") == 0
    content = json.loads((folder / "out" / "evaluation.json").read_text())
    model = read_model(folder / "model.safetensors")
    assert content["model"]["digest"] == model_digest(model.weights)
    assert (content["model"]["round"], content["model"]["file"]) == (4, "model.safetensors")
    assert content["data"]["sha256"] == hashlib.sha256((folder / "a" / "datalist.json").read_bytes()).hexdigest()
    assert (content["data"]["split"], content["data"]["phantoms"]) == ("all", False)
    assert (content["task"], content["overlap"]) == ("tiny", 0.5)
    dice = [case["dice"]["whole"] for case in content["cases"]]
    told = content["spread"]["dice"]["whole"]
    assert told["median"] == pytest.approx(np.median(dice))
    assert told["quartiles"] == pytest.approx(np.percentile(dice, [25, 75]))
    assert told["weakest"] == min(dice)
    assert content["spread"]["hd95"]["whole"]["weakest"] == max(case["hd95"]["whole"] for case in content["cases"])
    printed = capsys.readouterr().out
    assert f"{np.median(dice):.4f}" in printed
    assert "median" in printed


def test_the_table_of_cases_has_what_the_file_has(folder: Path) -> None:
    assert use("evaluate", "a", "--split", "all") == 0
    content = json.loads((folder / "out" / "evaluation.json").read_text())
    with (folder / "out" / "evaluation.csv").open(newline="") as file:
        table = {(row["case"], row["region"]): row for row in csv.DictReader(file)}
    assert len(table) == 2 * len(content["cases"])
    for case in content["cases"]:
        row = table[case["id"], "inner"]
        assert float(row["dice"]) == case["dice"]["inner"]
        assert float(row["reference_ml"]) == case["volumes"]["inner"]["reference"]
        assert int(row["lesions"]) == case["lesions"]["inner"]["lesions"]


def test_every_score_stands_in_file_table_and_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert use("evaluate", "a", "--split", "all") == 0
    content = json.loads((folder / "out" / "evaluation.json").read_text())
    names = [score.name for score in Segmentation.scores]
    header = (folder / "out" / "evaluation.csv").read_text().splitlines()[0].split(",")
    assert header[: 3 + len(names)] == ["case", "patient", "region", *names]
    for name in names:
        values = [case[name]["whole"] for case in content["cases"]]
        known = [value for value in values if value is not None]
        assert content["mean"][name]["whole"] == (pytest.approx(np.mean(known)) if known else None)
    assert content["mean"]["ece"]["whole"] is not None, "probabilities reach the scores"
    low, high = content["intervals"]["dice"]["whole"]
    assert low <= content["mean"]["dice"]["whole"] <= high
    patients = [case["patient"] for case in content["cases"]]
    expected = bootstrap_mean([case["dice"]["whole"] for case in content["cases"]], patients=patients)
    assert (low, high) == (expected.low, expected.high)
    printed = capsys.readouterr().out
    assert "95% interval" in printed
    for title in ("NSD", "difference", "Lesion-wise", "Calibration"):
        assert title in printed


def test_pictures_are_drawn_where_they_are_asked_for(folder: Path) -> None:
    assert use("evaluate", "a", "--split", "all") == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["evaluation.csv", "evaluation.json"]
    assert use("evaluate", "a", "--split", "all", "--pictures") == 0
    assert (folder / "out" / "overlays.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((folder / "out" / "evaluation.json").read_text())
    best = max(content["cases"], key=lambda case: (sum(case["dice"].values()), case["id"]))["id"]
    assert use("predict", "a", "--split", "all") == 0
    masks = {path.name: path.read_bytes() for path in (folder / "out" / "overlays").iterdir()}
    assert set(masks) == {"best.nii.gz", "median.nii.gz", "worst.nii.gz"}
    np.testing.assert_array_equal(
        nib.load(folder / "out" / "overlays" / "best.nii.gz").get_fdata(),
        nib.load(folder / "out" / f"{best}.nii.gz").get_fdata(),
    )


@pytest.mark.parametrize("data", ["images", "images/a-1.nii.gz"])
def test_masks_of_images_without_a_datalist_are_those_with_one(data: str, folder: Path) -> None:
    first = read_datalist(folder / "a")
    (folder / "images" / "deeper").mkdir(parents=True)
    for position, case in enumerate((*first.training, *first.validation)):
        place = folder / "images" / ("deeper" if position == 2 else "")
        (place / f"a-{position}.nii.gz").write_bytes(case.images[0].read_bytes())
    assert use("predict", "a") == 0
    expected = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    for path in (folder / "out").iterdir():
        path.unlink()
    assert use("predict", data) == 0
    found = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    names = [f"a-{number}.nii.gz" for number in range(4)]
    assert sorted(found) == (names if data == "images" else names[1:2])
    for name in set(found) & {"a-0.nii.gz", "a-1.nii.gz"}:
        assert found[name] == expected[name]


def test_a_task_of_ones_own_may_be_named_as_in_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who gets a model of a task that is not built in need not have its declaration."""
    (folder / "task.json").unlink()
    named = ["model.safetensors", "--data", "a", "--out", "out"]
    assert main(["predict", *named, "--task", "tiny"]) == 0
    assert main(["evaluate", *named, "--task", "tiny"]) == 0
    for other in ("brats", "smaller", "task.json"):
        assert main(["predict", *named, "--task", other]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--task is brats" in said
    assert "--task smaller: the model's task is called tiny. Write that, or name one of brats" in said


def images(folder: Path, *names: str) -> Path:
    for name in names:
        save_nifti(folder / f"{name}.nii.gz", np.random.default_rng(1).normal(size=(4, 4, 4)).astype(np.float32))
    return folder


def test_names_tell_cases_and_channels(tmp_path: Path) -> None:
    place = images(
        tmp_path / "x", "p1_t1", "p1_t1ce", "p1_flair", "p1_seg", "p2-t1", "p2-flair", "deep/p1_t1", "deep/p1_flair"
    )
    found = read_cases(place, resolve_task(FOUR)).test
    told = [(c.images[0].parent.name, c.patient, [p.name for p in c.images], c.missing) for c in found]
    assert told == [
        ("x", "p1", ["p1_t1.nii.gz", "p1_t1ce.nii.gz", "p1_flair.nii.gz"], ()),
        ("x", "p2", ["p2-t1.nii.gz", "p2-flair.nii.gz"], (1,)),
        ("deep", "p1", ["p1_t1.nii.gz", "p1_flair.nii.gz"], (1,)),
    ]  # fmt: skip


def test_names_of_nnunet_are_known(tmp_path: Path) -> None:
    place = images(tmp_path / "x", *(f"case_7_{number:04d}" for number in (2, 0, 1)))
    (case,) = read_cases(place, resolve_task(FOUR)).test
    assert [path.name[7:11] for path in case.images] == ["0000", "0001", "0002"]


def test_results_of_before_are_no_images(tmp_path: Path) -> None:
    task = resolve_task({**FOUR, "channels": ["t1"], "optional_channels": []})
    place = images(tmp_path / "x", "p1", "masks/p1")
    assert len(read_cases(place, task).test) == 2
    assert len(read_cases(place, task, skip=place / "masks").test) == 1


@pytest.mark.parametrize(
    ("names", "error", "said"),
    [
        ([], DataError, "holds no image of the task four"),
        (["p1_seg"], DataError, "holds no image of the task four"),
        (["p1_t1", "p1_flair", "p2_t1"], DataError, "1 of 2 cases .* are incomplete: .*p2 lacks flair"),
        (None, UsageError, "does not exist"),
    ],
)
def test_what_holds_no_cases_is_told(
    names: list[str] | None, error: type[Exception], said: str, tmp_path: Path
) -> None:
    if names is not None:
        (tmp_path / "x").mkdir()
        images(tmp_path / "x", *names)
    with pytest.raises(error, match=said):
        read_cases(tmp_path / "x", resolve_task(FOUR))


def test_without_a_terminal_slow_work_says_after_each_item_that_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(console.track(["a", "b"], "cases", 2, slow=True)) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == ["cases: 1 of 2 done", "cases: 2 of 2 done"]
    list(console.track(["a"], "files", 1))
    assert capsys.readouterr().err == ""
