"""Cases that lack a channel: in datalists, check, intake, training, scoring and prediction."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from fedseg.cli import main as fedseg
from fedseg.data.case_reading import read_case
from fedseg.data.checks.datalist_check import check_datalist
from fedseg.data.datalist import Case, Datalist, read_datalist, write_datalist
from fedseg.data.intake.sources import read_source
from fedseg.errors import ConfigurationError, DataError
from fedseg.evaluation.report.statistics import statistics_tables
from fedseg.evaluation.report.verdict import verdict
from fedseg.jobs.job import read_job
from fedseg.models.model_file import write_model
from fedseg.simulation.in_process import InProcessFederation
from fedseg.statistics.document import FederationStatistics
from fedseg.statistics.measuring import measure
from fedseg.statistics.site_statistics import released
from fedseg.tasks.registry import resolve_task
from fedseg.tasks.task import parse_task
from fedseg.training.prepare import prepare_case
from tiny import PLAN, TASK, make_image

JOBS = Path(__file__).parents[2] / "jobs"
CHANNELS = ("t1", "t2", "flair")
DECLARED = {**TASK, "channels": list(CHANNELS), "optional_channels": ["t1", "flair"]}


def task(**changes):
    return parse_task({**DECLARED, **changes})


def without(case: Case, *missing: int) -> Case:
    kept = tuple(image for i, image in enumerate(case.images) if i not in missing)
    return replace(case, images=kept, missing=missing)


@pytest.mark.parametrize("missing", [(0,), (2,), (0, 1), (0, 2), (1, 2), ()])
def test_null_stands_in_the_place_of_a_channel(tmp_path, make_case, missing):
    case = without(make_case(channels=3), *missing)
    file = write_datalist(Datalist((case,)), tmp_path / "datalist.json")
    stored = json.loads(file.read_text("utf-8"))["training"][0]["image"]
    assert [entry is None for entry in stored] == [i in missing for i in range(3)]
    assert read_datalist(file).training == (case,)
    assert [c and c.name for c in case.channels] == [None if i in missing else f"case_{i}.nii.gz" for i in range(3)]


@pytest.mark.parametrize("image", [None, [], [None], [None, None], ["a.nii.gz", ""], ["a.nii.gz", 0], [None, False]])
def test_a_case_needs_an_image(tmp_path, image):
    file = tmp_path / "datalist.json"
    file.write_text(json.dumps({"training": [{"image": image, "label": "l.nii.gz", "patient": "p"}]}), "utf-8")
    with pytest.raises(DataError, match=r"training\[0\].image must be a path or a list of paths, with null"):
        read_datalist(file)


@pytest.mark.parametrize("missing", [(0,), (2,), (0, 2)])
@pytest.mark.parametrize(
    "normalisation", [{}, {"normalisation": "zscore_nonzero"}, {"normalisation": "window", "window": [20, 90]}]
)
def test_a_missing_channel_is_zero_where_the_network_sees_it_and_changes_no_other(make_case, missing, normalisation):
    case = make_case(channels=3)
    whole = prepare_case(task(**normalisation), case, training=False).image.numpy()
    part = prepare_case(task(**normalisation), without(case, *missing), training=False).image.numpy()
    for channel in range(3):
        expected = np.zeros_like(whole[channel]) if channel in missing else whole[channel]
        assert np.array_equal(part[channel], expected)
        assert np.abs(whole[channel]).max() > 0


@pytest.mark.parametrize(
    ("images", "label", "patient", "name"),
    [
        (["TCGA_HT_1_t1.nii.gz", "TCGA_HT_1_flair.nii.gz"], None, "p7", "TCGA_HT_1"),
        (["TCGA_HT_1_flair.nii.gz"], "TCGA_HT_1_seg.nii.gz", "p7", "TCGA_HT_1"),
        (["TCGA_HT_1_flair.nii.gz"], None, "TCGA_HT_1", "TCGA_HT_1"),
        (["TCGA_HT_1_flair.nii.gz"], None, "p7", "TCGA_HT_1_flair"),
        (["flair.nii.gz"], "label.nii.gz", "p7", "label"),
        (["p7_flair.nii.gz"], None, "p7", "p7"),
        (["p7_t1.nii.gz", "p7_flair.nii.gz"], None, "p7", "p7"),
        (["a_t1.nii.gz", "a_flair.nii.gz"], None, "p7", "a_t1"),
    ],
)
def test_a_case_with_one_image_left_is_called_as_its_like_are(images, label, patient, name):
    case = Case(tuple(map(Path, images)), Path(label) if label else None, patient, tuple(range(3 - len(images))))
    assert case.id == name


def test_a_channel_that_the_task_requires_is_refused(make_case):
    case = without(make_case(channels=3), 1)
    with pytest.raises(DataError, match="lacks t2, without which the task tiny takes no case"):
        read_case(task(), case)
    with pytest.raises(DataError, match=r"lacks t2, without"):
        read_case(task(), without(make_case(channels=3), 1, 2))


def test_null_beside_a_file_of_several_volumes_is_refused(tmp_path, make_case):
    both = tmp_path / "both.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((8, 9, 10, 2)), np.eye(4)), both)
    case = Case((both,), None, "p", missing=(0, 2))
    with pytest.raises(DataError, match="holds 2 volumes"):
        read_case(task(), case)


@pytest.mark.parametrize("optional", [["t3"], "t1", [1], ["t1", "t1"]])
def test_optional_channels_are_some_of_the_channels(optional):
    with pytest.raises(ConfigurationError, match="optional_channels"):
        task(optional_channels=optional)


def test_a_task_without_optional_channels_keeps_its_form():
    assert "optional_channels" not in parse_task(TASK).to_dict()
    assert parse_task(task().to_dict()) == task()


def test_the_check_counts_cases_without_a_channel(tmp_path, make_case):
    cases = [without(make_case(f"c{i}", channels=3), *missing) for i, missing in enumerate([(), (0,), (0, 2), (1,)])]
    datalist = Datalist(tuple(cases[:2]), tuple(cases[2:]))
    report = check_datalist(task(), datalist)
    assert report.statistics["cases_without_channel"] == {"t1": 2, "flair": 1}
    found = [(f.severity, f.message) for f in report.findings if f.code == "channel-missing"]
    assert sorted(found) == [
        ("error", "The case lacks t2, without which the task tiny takes no case."),
        ("warning", "1 of 4 cases lack flair."),
        ("warning", "2 of 4 cases lack t1."),
    ]


def brats(folder: Path, *sequences: str) -> None:
    folder.mkdir(parents=True)
    for name in sequences:
        (folder / f"{folder.name}_{name}.nii.gz").touch()


def test_intake_of_brats_folders_takes_what_may_lack_and_names_all_that_may_not(tmp_path):
    brats(tmp_path / "BraTS_1", "t1", "t1ce", "t2", "flair", "seg")
    brats(tmp_path / "BraTS_2", "t1ce", "t2", "flair", "seg")
    optional = resolve_task({"name": "brats", "optional_channels": ["t1", "flair"]})
    assert [c.missing for c in read_source(tmp_path, optional)] == [(), (0,)]
    brats(tmp_path / "BraTS_3", "t1", "t1ce", "seg")
    brats(tmp_path / "BraTS_4", "t1", "t1ce", "t2")
    with pytest.raises(DataError, match=r"2 of 4 cases .* are incomplete") as error:
        read_source(tmp_path, optional)
    assert "BraTS_3 lacks t2" in str(error.value)
    assert "BraTS_4 lacks seg" in str(error.value)
    assert "BraTS_2" not in str(error.value)
    everything = resolve_task({"name": "brats"})
    with pytest.raises(DataError, match="BraTS_2 lacks t1"):
        read_source(tmp_path, everything)


@pytest.fixture
def sites(tmp_path):
    """Two sites: one has every channel, the other never has the first."""
    lists = {}
    for number, (site, missing) in enumerate({"whole": (), "part": (0,)}.items()):
        cases = []
        for index in range(4):
            folder = tmp_path / site
            folder.mkdir(exist_ok=True)
            image, label = make_image(10 * number + index)
            files = [folder / f"{index}_{channel}.nii.gz" for channel in CHANNELS]
            for factor, file in enumerate(files, 1):
                nib.save(nib.Nifti1Image(factor * image, np.eye(4)), file)
            nib.save(nib.Nifti1Image(label, np.eye(4)), folder / f"{index}.nii.gz")
            cases.append(without(Case(tuple(files), folder / f"{index}.nii.gz", f"{site}{index}"), *missing))
        file = write_datalist(Datalist(tuple(cases[:2]), tuple(cases[2:3]), tuple(cases[3:])), folder / "datalist.json")
        lists[site] = read_datalist(file)
    return lists


def test_a_site_that_never_has_a_channel_takes_part_and_its_cases_are_scored_and_predicted(tmp_path, sites, capsys):
    job = read_job(JOBS / "hippocampus_fedavg")
    for key in ("network", "training"):
        job.set(key, PLAN[key])
    job.set("task", DECLARED)
    federation = InProcessFederation(job, sites)
    entry = federation.run_round()
    assert federation.events == []
    assert {name: site["num_samples"] for name, site in entry["sites"].items()} == {"whole": 2, "part": 2}
    assert {name: site["incomplete_samples"] for name, site in entry["sites"].items()} == {"whole": 0, "part": 2}
    model = write_model(tmp_path / "model.safetensors", job.plan, federation.model.weights, 0)
    declared, datalist = str(tmp_path / "task.json"), str(sites["part"].path)
    Path(declared).write_text(json.dumps(DECLARED), "utf-8")
    for command in ("evaluate", "predict"):
        arguments = ["--task", declared, "--data", datalist, "--out", str(tmp_path / command)]
        assert fedseg([command, str(model), *arguments]) == 0
    assert len(list((tmp_path / "predict").rglob("*.nii.gz"))) >= 1
    assert fedseg(["check-data", declared, datalist, "--propose"]) == 0
    said = capsys.readouterr().out
    assert "4 of 4 cases lack t1" in said
    assert '"patch_size"' in said
    assert fedseg(["import-data", datalist, "--task", declared, "--out", str(tmp_path / "imported")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "4 of 4 cases lack t1; null stands in its place" in said
    assert "lack flair" not in said


def test_statistics_count_who_has_a_channel(make_case):
    cases = [without(make_case(f"c{i}", channels=3), *missing) for i, missing in enumerate([(), (0,), (0, 2)])]
    statistics = released(measure(task(), cases), 1)
    found = statistics.categories
    assert found["acquired: t1"] == {"yes": 1.0, "no": 2.0}
    assert found["acquired: flair"] == {"yes": 2.0, "no": 1.0}
    assert "acquired: t2" not in found
    shown = statistics_tables(FederationStatistics(task(), {"a": released(measure(task(), cases), 1)}))
    assert [t.rows for caption, t in shown.items() if "cases that have a channel" in caption] == [
        [["a", "33.3%", "66.7%"]]
    ]


def test_a_report_says_how_many_training_cases_lack_a_channel():
    sites = {"a": {"num_samples": 4, "incomplete_samples": 3}, "b": {"num_samples": 2, "incomplete_samples": 0}}
    words = verdict({"task": "brats", "rounds": [{"round": 0, "sites": sites}]}, pd.DataFrame())
    assert words[0] == "Training cases that lack a channel: 3 of 4 at a."
