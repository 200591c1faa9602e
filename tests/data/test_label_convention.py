"""One label convention for a whole data set: stated, told by file names, or found in all labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedseg.cli import main
from fedseg.data.datalist import Case, Datalist, read_datalist, write_datalist
from fedseg.data.label_convention import find_convention, settled, with_convention
from fedseg.errors import DataError
from fedseg.tasks.registry import get_task
from fedseg.tasks.task import LabelConvention
from fedseg.training.cache import CaseCache

BRATS, HIPPOCAMPUS = get_task("brats"), get_task("hippocampus")
TURNED = replace(
    HIPPOCAMPUS,
    conventions=(
        LabelConvention("one way", {"anterior": 1, "posterior": 2}),
        LabelConvention("other way", {"anterior": 2, "posterior": 1}),
    ),
)
MakeCase = Callable[..., Case]


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ([(2, 4), (1, 2, 4), (1, 2)], "BraTS 2021"),
        ([(1, 2), (3,), (1,)], "BraTS 2023"),
        ([(1, 2), (1,)], "BraTS 2021"),
    ],
)
def test_all_labels_together_tell_the_convention(make_case: MakeCase, labels: Sequence[tuple[int, ...]], name: str):
    cases = [make_case(f"c{i}", values=values, channels=4) for i, values in enumerate(labels)]
    assert find_convention(BRATS, cases) == name
    assert settled(BRATS, Datalist(tuple(cases))).convention == name


def test_files_of_two_conventions_are_refused_by_name(make_case: MakeCase):
    cases = [make_case(f"c{i}", values=values, channels=4) for i, values in enumerate([(1, 4), (2,), (3,)])]
    with pytest.raises(DataError, match=r"c2.* does not follow BraTS 2021, as .*c0.* does"):
        find_convention(BRATS, cases)


def test_values_of_no_convention_are_refused_by_name(make_case: MakeCase):
    with pytest.raises(DataError, match=r"^\S*c1\S*: label values \[0, 7\]"):
        find_convention(BRATS, [make_case("c0", values=(1,)), make_case("c1", values=(7,))])


def test_labels_that_may_mean_two_things_need_a_statement(make_case: MakeCase):
    cases = (make_case("a", values=(1, 2)),)
    with pytest.raises(DataError, match=r"\[1, 2\] may mean one way or other way. State the convention"):
        settled(TURNED, Datalist(cases))
    assert settled(TURNED, Datalist(cases, convention="other way")).convention == "other way"


def test_a_task_with_one_convention_reads_no_label():
    assert find_convention(HIPPOCAMPUS, [Case((Path("nowhere.nii"),), Path("nowhere.nii"), "p")]) is None


def test_the_stated_convention_is_what_is_learned(make_case: MakeCase):
    case = make_case("a", values=(1, 2))
    means = [CaseCache(with_convention(TURNED, name), [case], False)[0] for name in ("one way", "other way")]
    first, second = (each.reference for each in means)
    assert first is not None
    assert second is not None
    assert np.array_equal(np.array([0, 2, 1])[first], second)


def brats_2023(folder: Path, name: str, values: Sequence[int]) -> None:
    label = np.zeros((8, 8, 8), np.uint8)
    label[0, 0, : len(values)] = values
    folder = folder / name
    folder.mkdir(parents=True)
    for suffix in ("t1n", "t1c", "t2w", "t2f"):
        image = np.random.default_rng(0).normal(size=label.shape).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"{name}-{suffix}.nii.gz")
    nib.save(nib.Nifti1Image(label, np.eye(4)), folder / f"{name}-seg.nii.gz")


def test_names_since_2023_tell_the_convention(tmp_path: Path, capsys):
    for index, values in enumerate([(1, 2, 3), (2,), (1, 4)]):
        brats_2023(tmp_path / "in", f"BraTS-GLI-0000{index}-100", values)
    assert main(["import-data", str(tmp_path / "in"), "--task", "brats", "--out", str(tmp_path / "out")]) == 0
    assert "labels follow BraTS 2023" in capsys.readouterr().out
    assert read_datalist(tmp_path / "out").convention == "BraTS 2023"
    assert main(["check-data", "brats", str(tmp_path / "out"), "--json", str(tmp_path / "check.json")]) == 1
    findings = json.loads((tmp_path / "check.json").read_text())["errors"]
    (wrong,) = [finding for finding in findings if finding["code"] == "label-values"]
    assert "00002-100-seg" in wrong["file"]


def test_a_convention_that_the_names_deny_is_stated(tmp_path: Path, capsys):
    for index in range(3):
        brats_2023(tmp_path / "in", f"BraTS-GLI-0000{index}-000", (2, 4))
    command = ["import-data", str(tmp_path / "in"), "--task", "brats", "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "The names of the images tell BraTS 2023; --convention states another" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--convention", "BraTS 2021"]) == 0
    assert read_datalist(tmp_path / "out").convention == "BraTS 2021"
    assert main([*command[:-1], str(tmp_path / "x"), "--convention", "BraTS"]) == 1
    assert "which knows: BraTS 2021, BraTS 2023" in capsys.readouterr().err
    sites = ["partition", str(tmp_path / "out"), "--names", "a", "--validation-fraction", "0.3", "--out"]
    assert main([*sites, str(tmp_path / "sites")]) == 0
    assert read_datalist(tmp_path / "sites" / "a").convention == "BraTS 2021"
    assert "fedseg check-data brats" in capsys.readouterr().out


def test_a_statement_that_is_no_name_is_refused(tmp_path: Path):
    path = write_datalist(Datalist(convention="x"), tmp_path / "datalist.json")
    assert read_datalist(path).convention == "x"
    path.write_text('{"training": [], "label_convention": 3}')
    with pytest.raises(DataError, match="must be the name of a label convention"):
        read_datalist(path)
