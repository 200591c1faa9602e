"""The data check: one tiny datalist per defect, the code and the words that a person gets, and the real images."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from fedseg.cli import main
from fedseg.data.checks.datalist_check import check_datalist
from fedseg.data.checks.findings import CODES, CheckReport
from fedseg.data.datalist import Case, Datalist, write_datalist
from fedseg.data.intake.sources import read_source
from fedseg.data.splits import split_by_patient
from fedseg.errors import DataError
from fedseg.tasks.registry import get_task
from fedseg.tasks.task import LabelConvention

MakeCase = Callable[..., Case]
HIPPOCAMPUS = get_task("hippocampus")
TURNED = replace(
    HIPPOCAMPUS,
    conventions=(
        LabelConvention("one way", {"anterior": 1, "posterior": 2}),
        LabelConvention("other way", {"anterior": 2, "posterior": 1}),
    ),
)


def rewrite(file: Path, change: Callable[[np.ndarray], Any], affine: np.ndarray | None = None) -> None:
    image = nib.load(file)
    voxels = np.array(image.dataobj)
    changed = change(voxels)
    nib.save(nib.Nifti1Image(voxels if changed is None else changed, image.affine if affine is None else affine), file)


def put(voxels: np.ndarray, value: float) -> None:
    voxels[0, 0, 0] = value


def moved(millimetres: float) -> np.ndarray:
    affine = np.eye(4)
    affine[0, 3] = millimetres
    return affine


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def damage_end(file: Path) -> None:
    """A wrong checksum at the very end of a gzip file: everything unpacks, but not to what was packed."""
    content = bytearray(file.read_bytes())
    content[-8] ^= 0xFF
    file.write_bytes(bytes(content))


def not_an_image(file: Path) -> None:
    file.write_bytes(gzip.compress(b"no image at all" * 100))


def drop_orientation(file: Path) -> None:
    image = nib.Nifti1Image(np.array(nib.load(file).dataobj), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(image, file)


@pytest.fixture
def good(make_case: MakeCase) -> Datalist:
    """Twelve training and three validation cases of the hippocampus task, with nothing wrong."""
    cases = [make_case(f"case{i:02d}", seed=i) for i in range(15)]
    return Datalist(tuple(cases[:12]), tuple(cases[12:]))


def found(report: CheckReport, code: str) -> tuple[str, str]:
    """The message and the severity of the only finding; it must have this code and a remedy in a sentence."""
    assert [f.code for f in report.findings] == [code]
    finding = report.findings[0]
    assert finding.code in CODES
    assert finding.remedy.endswith(".")
    return finding.message, finding.severity


def test_good_data_pass_with_no_finding(good: Datalist) -> None:
    report = check_datalist(HIPPOCAMPUS, good)
    assert report.ok
    assert report.findings == ()
    assert report.statistics["cases"] == {"training": 12, "validation": 3, "test": 0}
    assert report.statistics["cases_with_class"] == {"anterior": 15, "posterior": 15}
    assert report.summary == "0 errors, 0 warnings in 15 cases"


# Each row: what is done to the first training case's image (or label), the code, its severity, words of the message.
IMAGE_DEFECTS = {
    "missing": (Path.unlink, "missing-file", "error", "does not exist"),
    "truncated": (truncate, "unreadable", "error", "damaged or was cut off"),
    "bad checksum": (damage_end, "unreadable", "error", "damaged or was cut off"),
    "no image": (not_an_image, "unreadable", "error", "cannot be read as an image"),
    "nan": (lambda f: rewrite(f, lambda v: put(v, np.nan)), "not-finite", "error", "1 voxels are not numbers"),
    "infinite": (lambda f: rewrite(f, lambda v: put(v, np.inf)), "not-finite", "error", "1 voxels are not numbers"),
    "constant": (lambda f: rewrite(f, np.zeros_like), "constant", "error", "one value everywhere"),
    "shape": (
        lambda f: rewrite(f, lambda v: v[:, :, 1:]),
        "shape-differs",
        "error",
        "8 x 9 x 10 differs from 8 x 9 x 9",
    ),
    "affine": (
        lambda f: rewrite(f, lambda v: v, moved(0.06)),
        "affine-differs",
        "error",
        "up to 0.06 mm (0.06 voxels)",
    ),
    "two-dimensional": (lambda f: rewrite(f, lambda v: v[0]), "dimensions", "error", "9 x 10, but a volume of three"),
    "channels": (lambda f: rewrite(f, lambda v: np.stack([v, v], -1)), "channel-count", "error", "2 image(s)"),
    "colour": (
        lambda f: rewrite(f, lambda v: np.zeros(v.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "unreadable",
        "error",
        "of type",
    ),
}
LABEL_DEFECTS = {
    "missing": (Path.unlink, "missing-file", "error", "does not exist"),
    "truncated": (truncate, "unreadable", "error", "damaged or was cut off"),
    "foreign value": (lambda f: rewrite(f, lambda v: put(v, 7)), "label-values", "error", "[0, 1, 2, 7]"),
    "fraction": (
        lambda f: rewrite(f, lambda v: np.where(v == 1, np.float32(0.5), v).astype(np.float32)),
        "label-values",
        "error",
        "not whole numbers, e.g. 0.5",
    ),
    "nan": (
        lambda f: rewrite(f, lambda v: np.where(v == 1, np.nan, v).astype(np.float32)),
        "not-finite",
        "error",
        "not numbers",
    ),
    "empty": (lambda f: rewrite(f, np.zeros_like), "empty-label", "warning", "The label is empty"),
}


@pytest.mark.parametrize("name", IMAGE_DEFECTS)
def test_defect_of_an_image_is_found_and_named(good: Datalist, name: str) -> None:
    spoil, code, severity, words = IMAGE_DEFECTS[name]
    file = good.training[0].images[0]
    spoil(file)
    report = check_datalist(HIPPOCAMPUS, good)
    message, found_severity = found(report, code)
    assert found_severity == severity
    assert words in message
    # Where two files disagree, the second one read is named, here the label.
    assert report.findings[0].file in (str(file), str(good.training[0].label))
    assert (report.findings[0].split, report.findings[0].patient) == ("training", "case00")


@pytest.mark.parametrize("name", LABEL_DEFECTS)
def test_defect_of_a_label_is_found_and_named(good: Datalist, name: str) -> None:
    spoil, code, severity, words = LABEL_DEFECTS[name]
    spoil(good.validation[0].label)
    report = check_datalist(HIPPOCAMPUS, good)
    message, found_severity = found(report, code)
    assert found_severity == severity
    assert words in message
    assert report.findings[0].file == str(good.validation[0].label)
    assert report.findings[0].split == "validation"


AFFINES = {
    "spacing too large": (np.diag([1, 1, 6.0, 1]), "spacing", "error", "1 x 1 x 6 mm is outside 0.5 to 4 mm"),
    "spacing in metres": (np.diag([1e-3, 1e-3, 1e-3, 1]), "spacing", "error", "0.001 x 0.001 x 0.001 mm"),
    "oblique": (turned(20), "orientation", "warning", "turned by 20 degrees"),
    "other orientation": (
        np.diag([-1, 1, 1.0, 1]),
        "orientation",
        "warning",
        "several orientations: RAS (14), LAS (1)",
    ),
}


@pytest.mark.parametrize("name", AFFINES)
def test_grid_of_a_case_is_judged(good: Datalist, make_case: MakeCase, name: str) -> None:
    affine, code, severity, words = AFFINES[name]
    odd = make_case("odd", affine=affine)
    report = check_datalist(HIPPOCAMPUS, replace(good, training=(odd, *good.training[1:])))
    message, found_severity = found(report, code)
    assert found_severity == severity
    assert words in message


def test_header_without_orientation_is_a_warning(good: Datalist) -> None:
    case = good.training[0]
    for file in (*case.images, case.label):
        drop_orientation(file)
    report = check_datalist(HIPPOCAMPUS, good)
    assert ("orientation", "warning") in [(f.code, f.severity) for f in report.findings]
    assert "left and right are a guess" in report.findings[0].message


def without_three_axes(file: Path) -> None:
    image = nib.load(file)
    voxels, header = np.array(image.dataobj), image.header.copy()
    header["srow_z"] = 0
    nib.save(nib.Nifti1Image(voxels, None, header), file)


def test_affine_without_three_axes_is_an_error_of_each_file(good: Datalist) -> None:
    files = [good.training[0].images[0], good.training[0].label, good.training[1].label]
    for file in files:
        without_three_axes(file)
    report = check_datalist(HIPPOCAMPUS, good)
    assert [(f.code, f.severity, f.file) for f in report.findings] == [("orientation", "error", str(f)) for f in files]
    assert all("does not say where the voxels lie" in f.message for f in report.findings)


def test_class_that_no_label_holds_is_a_warning(good: Datalist, make_case: MakeCase) -> None:
    cases = [make_case(f"one{i:02d}", seed=i, values=(2,)) for i in range(15)]
    message, severity = found(
        check_datalist(HIPPOCAMPUS, Datalist(tuple(cases[:12]), tuple(cases[12:]))), "absent-class"
    )
    assert severity == "warning"
    assert "No label holds anterior" in message
    mixed = replace(good, training=(*cases[:11], good.training[11]))
    assert check_datalist(HIPPOCAMPUS, mixed).findings == ()
    assert check_datalist(HIPPOCAMPUS, Datalist(tuple(cases[:12]), tuple(cases[12:])), quick=True).findings == ()


@pytest.mark.parametrize("shape", [(8, 9, 1), (1, 9, 10)])
def test_single_slice_is_a_warning(good: Datalist, make_case: MakeCase, shape: tuple[int, ...]) -> None:
    flat = make_case("flat", shape=shape, values=(1,))
    message, severity = found(check_datalist(HIPPOCAMPUS, replace(good, test=(flat,))), "dimensions")
    assert severity == "warning"
    assert "a single slice" in message


def test_small_turn_and_rounded_affine_are_fine(good: Datalist, make_case: MakeCase) -> None:
    odd = make_case("odd", affine=turned(8))
    rewrite(odd.label, lambda v: v, turned(8) + moved(0.0005) - np.eye(4))
    assert check_datalist(HIPPOCAMPUS, replace(good, training=(odd, *good.training))).findings == ()
    rewrite(odd.label, lambda v: v, turned(8) + moved(0.002) - np.eye(4))
    report = check_datalist(HIPPOCAMPUS, replace(good, training=(odd, *good.training)))
    assert found(report, "affine-differs")[1] == "warning"


def test_all_defects_are_reported_in_one_pass(good: Datalist) -> None:
    good.training[0].images[0].unlink()
    rewrite(good.training[1].images[0], lambda v: put(v, np.nan))
    rewrite(good.validation[0].label, lambda v: put(v, 9))
    report = check_datalist(HIPPOCAMPUS, good, workers=3)
    assert [f.code for f in report.errors] == ["missing-file", "not-finite", "label-values"]
    assert report.error_counts() == {"label-values": 1, "missing-file": 1, "not-finite": 1}
    assert not report.ok


def test_quick_reads_headers_but_no_voxel(good: Datalist) -> None:
    rewrite(good.training[0].images[0], lambda v: put(v, np.nan))
    truncate(good.training[1].images[0])
    assert check_datalist(HIPPOCAMPUS, good, quick=True).findings == ()
    rewrite(good.training[2].images[0], lambda v: v[1:])
    good.training[3].images[0].unlink()
    report = check_datalist(HIPPOCAMPUS, good, quick=True)
    assert [f.code for f in report.errors] == ["shape-differs", "missing-file"]


@pytest.mark.parametrize("quick", [False, True])
def test_file_listed_twice_is_found(good: Datalist, quick: bool) -> None:
    again = replace(good.training[0], patient="somebody else")
    report = check_datalist(HIPPOCAMPUS, replace(good, test=(again,)), quick=quick)
    message, severity = found(report, "duplicate-content")
    assert severity == "error"
    assert "across training and test" in message


@pytest.mark.parametrize(("split", "words"), [("training", "in training"), ("validation", "across training and val")])
def test_same_content_under_another_name_is_found(good: Datalist, split: str, words: str) -> None:
    original, copy = good.training[0].images[0], getattr(good, split)[-1].images[0]
    rewrite(copy, lambda _: np.array(nib.load(original).dataobj).astype(np.float64))
    message, severity = found(check_datalist(HIPPOCAMPUS, good), "duplicate-content")
    assert severity == "error"
    assert words in message
    assert copy.name in message
    assert original.name in message


def test_patient_in_two_splits_is_an_error(good: Datalist, make_case: MakeCase) -> None:
    other = make_case("second-visit", patient="case00")
    report = check_datalist(HIPPOCAMPUS, replace(good, test=(other,)))
    message, severity = found(report, "patient-in-two-splits")
    assert severity == "error"
    assert "Patient case00 has cases in training and test" in message


@pytest.mark.parametrize(("split", "severity"), [("training", "error"), ("validation", "error"), ("test", "warning")])
def test_missing_label_matters_where_it_is_needed(
    good: Datalist, make_case: MakeCase, split: str, severity: str
) -> None:
    case = replace(make_case("unlabelled"), label=None)
    datalist = replace(good, **{split: (*good.split(split), case)})
    message, found_severity = found(check_datalist(HIPPOCAMPUS, datalist), "label-missing")
    assert found_severity == severity
    assert "has no label" in message


def test_few_and_no_cases(good: Datalist) -> None:
    few = check_datalist(HIPPOCAMPUS, replace(good, training=good.training[:9]))
    assert "only 9 training patients" in found(few, "few-cases")[0]
    assert few.ok
    none = check_datalist(HIPPOCAMPUS, replace(good, validation=()))
    assert found(none, "no-cases") == ("There is no validation case.", "error")


def test_other_task_name_is_only_a_warning(good: Datalist) -> None:
    report = check_datalist(HIPPOCAMPUS, replace(good, task="pancreas"))
    assert found(report, "task-name")[1] == "warning"


def brats(make_case: MakeCase, values: tuple[int, ...], other: tuple[int, ...], channels: int = 4) -> Datalist:
    cases = [
        make_case(f"b{i:02d}", channels=channels, seed=i, values=other if i == 0 else values, shape=(6, 6, 6))
        for i in range(13)
    ]
    return Datalist(tuple(cases[:10]), tuple(cases[10:]))


def test_wrong_number_of_sequences(make_case: MakeCase) -> None:
    datalist = brats(make_case, (1, 2, 4), (1, 2, 4))
    case = replace(datalist.training[0], images=datalist.training[0].images[:3])
    report = check_datalist(get_task("brats"), replace(datalist, training=(case, *datalist.training[1:])))
    message, severity = found(report, "channel-count")
    assert severity == "error"
    assert "3 image(s), but the task brats takes 4: t1, t1ce, t2, flair" in message


def test_mixed_label_conventions_across_files_are_an_error(make_case: MakeCase) -> None:
    report = check_datalist(get_task("brats"), brats(make_case, (1, 2, 4), (1, 2, 3)))
    message, severity = found(report, "label-mixed")
    assert severity == "error"
    assert "BraTS 2021 (12), BraTS 2023 (1)" in message


def test_a_stated_convention_is_the_only_one(make_case: MakeCase) -> None:
    datalist = brats(make_case, (1, 2, 4), (1, 2))
    assert check_datalist(get_task("brats"), replace(datalist, convention="BraTS 2021")).ok
    report = check_datalist(get_task("brats"), replace(datalist, convention="BraTS 2023"))
    assert {f.code for f in report.errors} == {"label-values"}
    with pytest.raises(DataError, match="'BraTS 2019' is none of the task brats, which knows: BraTS 2021, BraTS 2023"):
        check_datalist(get_task("brats"), replace(datalist, convention="BraTS 2019"))


def test_labels_that_may_mean_two_things_are_an_error(good: Datalist) -> None:
    report = check_datalist(TURNED, good)
    message, severity = found(report, "label-mixed")
    assert (message, severity) == ("The labels [1, 2] may mean one way or other way.", "error")
    assert check_datalist(TURNED, replace(good, convention="other way")).ok


def test_label_without_enhancing_tumour_fits_any_convention(make_case: MakeCase) -> None:
    report = check_datalist(get_task("brats"), brats(make_case, (1, 2, 3), (1, 2)))
    assert report.findings == ()
    assert report.statistics["cases_with_class"]["enhancing"] == 12


def test_three_and_four_in_one_label_is_an_error(make_case: MakeCase) -> None:
    report = check_datalist(get_task("brats"), brats(make_case, (1, 2, 4), (1, 2, 3, 4)))
    message, severity = found(report, "label-values")
    assert severity == "error"
    assert "mixes conventions (BraTS 2021 and BraTS 2023)" in message


def test_same_image_as_two_sequences_is_found(make_case: MakeCase) -> None:
    datalist = brats(make_case, (1, 2, 4), (1, 2, 4))
    t1, _, t2, flair = datalist.training[0].images
    case = replace(datalist.training[0], images=(t1, t1, t2, flair))
    changed = replace(datalist, training=(case, *datalist.training[1:]))
    assert check_datalist(get_task("brats"), datalist).ok
    report = check_datalist(get_task("brats"), changed)
    assert "stands 2 times in one case" in found(report, "duplicate-content")[0]


@pytest.mark.parametrize(
    ("low", "high", "severity", "words"),
    [
        (0, 2000, "error", "air and fat below 0"),
        (-1024, 20000, "error", "impossible as Hounsfield units"),
        (-2500, 1000, "warning", "outside the usual -2048 to 4096"),
        (-1024, 3000, None, ""),
    ],
)
def test_hounsfield_units_of_ct(make_case: MakeCase, low: float, high: float, severity: str | None, words: str) -> None:
    cases = [make_case(f"ct{i:02d}", low=-1000, high=1000, seed=i) for i in range(12)]
    odd = make_case("odd", low=low, high=high)
    report = check_datalist(get_task("pancreas"), Datalist((odd, *cases[:9]), tuple(cases[9:])))
    if severity is None:
        assert report.findings == ()
        return
    message, found_severity = found(report, "hu-range")
    assert found_severity == severity
    assert words in message


def test_four_dimensional_file_is_checked_channel_by_channel(make_case: MakeCase) -> None:
    datalist = brats(make_case, (1, 2, 4), (1, 2, 4), channels=1)
    generator = np.random.default_rng(0)
    for case in (*datalist.training, *datalist.validation):
        rewrite(case.images[0], lambda v: generator.uniform(1, 9, (*v.shape, 4)).astype(np.float32))
    assert check_datalist(get_task("brats"), datalist).findings == ()
    rewrite(datalist.training[0].images[0], lambda v: np.where(np.arange(4) == 2, 0, v))
    report = check_datalist(get_task("brats"), datalist)
    assert "Channel [2] of the image has one value" in found(report, "constant")[0]


def test_command_ends_with_0_and_writes_the_report(good: Datalist, tmp_path: Path, capsys: Any) -> None:
    path = write_datalist(good, tmp_path / "datalist.json")
    assert main(["check-data", "hippocampus", str(path), "--json", str(tmp_path / "check.json")]) == 0
    assert "0 errors, 0 warnings in 15 cases" in capsys.readouterr().out
    content = json.loads((tmp_path / "check.json").read_text())
    assert content["ok"] is True
    assert content["schema"] == 1
    assert content["task"] == "hippocampus"


def test_command_ends_with_1_and_names_file_and_remedy(good: Datalist, tmp_path: Path, capsys: Any) -> None:
    file = good.training[0].images[0]
    truncate(file)
    path = write_datalist(good, tmp_path / "datalist.json")
    assert main(["check-data", "hippocampus", str(path), "--json", str(tmp_path / "check.json")]) == 1
    printed = capsys.readouterr().out
    assert str(file) in printed
    assert "Copy it again" in printed
    assert "1 error, 0 warnings in 15 cases" in printed
    error = json.loads((tmp_path / "check.json").read_text())["errors"][0]
    assert (error["code"], error["split"], error["patient"]) == ("unreadable", "training", "case00")


def test_command_takes_a_declared_task_and_a_job_folder(good: Datalist, tmp_path: Path) -> None:
    path = str(write_datalist(good, tmp_path / "datalist.json"))
    declaration = tmp_path / "task.json"
    declaration.write_text(json.dumps({"name": "hippocampus", "spacing_range": [2.0, 4.0]}))
    assert main(["check-data", str(declaration), path]) == 1
    configuration = tmp_path / "job" / "app" / "config" / "fedseg.json"
    configuration.parent.mkdir(parents=True)
    configuration.write_text(json.dumps({"task": "hippocampus"}))
    assert main(["check-data", str(tmp_path / "job"), path]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["heart", "datalist.json"], "'heart' is no task"),
        (["hippocampus", "datalist.json", "--workers", "0"], "--workers is 0"),
        (["hippocampus", "datalist.json", "--json", "nowhere/check.json"], "the folder nowhere does not exist"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], words: str, capsys: Any) -> None:
    assert main(["check-data", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_missing_datalist_ends_with_1(tmp_path: Path, capsys: Any) -> None:
    assert main(["check-data", "hippocampus", str(tmp_path)]) == 1
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.images
@pytest.mark.parametrize(
    ("folder", "task", "cases"), [("BraTS2021", "brats", 7), ("Task04_Hippocampus", "hippocampus", 200)]
)
def test_real_data_pass(test_data: Path, folder: str, task: str, cases: int) -> None:
    parts = split_by_patient(read_source(test_data / folder, get_task(task)), {"validation": 0.2}, 0)
    report = check_datalist(get_task(task), Datalist(**parts))
    assert report.errors == ()
    assert report.cases == cases
    assert {f.code for f in report.warnings} <= {"few-cases"}


def test_ids_that_may_be_one_patients_are_told(good: Datalist) -> None:
    other = replace(good.validation[0], patient="CASE00")
    message, severity = found(
        check_datalist(HIPPOCAMPUS, replace(good, validation=(other, *good.validation[1:]))), "patient-spelling"
    )
    assert (message, severity) == ("case00 and CASE00 count as 2 patients.", "warning")


@pytest.mark.parametrize("quick", [False, True])
def test_one_label_file_for_two_cases_is_an_error(good: Datalist, tmp_path: Path, quick: bool) -> None:
    link = tmp_path / "linked.nii.gz"
    link.symlink_to(good.training[0].label)  # type: ignore[arg-type]
    changed = (good.training[0], replace(good.training[1], label=link), *good.training[2:])
    message, severity = found(check_datalist(HIPPOCAMPUS, replace(good, training=changed), quick=quick), "label-twice")
    assert severity == "error"
    assert "the label of 2 cases" in message


def test_an_image_as_its_own_label_is_an_error(good: Datalist) -> None:
    first = replace(good.training[0], images=(good.training[0].label,))  # type: ignore[arg-type]
    report = check_datalist(HIPPOCAMPUS, replace(good, training=(first, *good.training[1:])), quick=True)
    message, severity = found(report, "label-is-image")
    assert (message, severity) == ("The label file is listed as an image, too.", "error")


def test_image_too_large_at_the_voxel_size_of_the_task_is_an_error(
    good: Datalist, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A voxel size finer by a factor of 100 on each axis is a million times as many voxels."""
    monkeypatch.setattr("fedseg.memory.machine_memory", lambda: 2**30)
    report = check_datalist(replace(HIPPOCAMPUS, spacing=(0.01, 0.01, 0.01)), good, quick=True)
    found = [finding for finding in report.findings if finding.code == "memory"]
    assert len(found) == 15
    assert {finding.severity for finding in found} == {"error"}
    assert "GiB', but must be 1 GiB at most" in found[0].message
    assert "memory" not in {finding.code for finding in check_datalist(HIPPOCAMPUS, good, quick=True).findings}
