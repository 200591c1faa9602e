"""What is counted of a case, against numbers computed from its files by other ways."""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from fedseg.data.datalist import Case
from fedseg.statistics.measuring import measure
from fedseg.statistics.quantities import AXES, NORMALISED, named
from fedseg.statistics.site_statistics import pooled, released
from fedseg.tasks.registry import get_task, resolve_task
from statistics_of_tiny import TINY, measured, tiny_cases


def voxels(path):
    return np.asarray(nib.load(path).dataobj, float)


def test_pooled_statistics_are_those_of_all_cases_in_one_place(tmp_path):
    cases = tiny_cases(tmp_path, range(7))
    merged = pooled({"a": measured(cases[:2]), "b": measured(cases[2:3]), "c": measured(cases[3:])})
    whole = measured(cases)
    assert (merged.cases, merged.patients) == (whole.cases, whole.patients) == (7, 7)
    assert merged.histograms.keys() == whole.histograms.keys()
    for name, histogram in whole.histograms.items():
        assert merged.histograms[name].bins == pytest.approx(histogram.bins, abs=1e-9), name
    for name, moments in whole.moments.items():
        assert merged.moments[name].mean == pytest.approx(moments.mean, rel=1e-6), name
        assert merged.moments[name].deviation == pytest.approx(moments.deviation, rel=1e-6), name
    assert {name: pytest.approx(found) for name, found in whole.categories.items()} == merged.categories


def test_numbers_of_cases_are_those_of_their_files(tmp_path):
    cases = tiny_cases(tmp_path, range(4), spacing=1.5)
    found = measured(cases)
    for axis in ("right-left", "front-back", "foot-head"):
        assert found.histograms[f"spacing: {axis}"].quantile(0.5).value == pytest.approx(1.5)
        assert found.histograms[f"shape: {axis}"].quantile(0.5).value == 20
        assert found.histograms[f"extent: {axis}"].quantile(0.5).value == pytest.approx(30)
    assert found.categories["orientation"] == {"RAS": 4.0}
    labels = [voxels(case.label) for case in cases]
    volumes = [float((label > 0).sum()) * 1.5**3 / 1000 for label in labels]
    assert found.moments["volume: whole"].mean == pytest.approx(np.mean(volumes))
    assert found.moments["volume: whole"].deviation == pytest.approx(np.std(volumes))
    shares = [(label == 1).sum() / (label > 0).sum() for label in labels]
    assert found.categories["classes"]["inner"] == pytest.approx(sum(shares))
    assert found.categories["present: inner"] == {"yes": 4.0}
    assert found.histograms["components: whole"].bins == {(1, 1): 4.0}
    images = [voxels(case.images[0]) for case in cases]
    assert found.moments["intensity: a"].mean == pytest.approx(np.mean(images), rel=1e-6)
    for level in (0.005, 0.5, 0.995):
        exact = np.quantile(np.concatenate([image.ravel() for image in images]), level, method="inverted_cdf")
        assert found.histograms["intensity: a"].quantile(level).value == pytest.approx(exact, rel=0.006)
    inside = np.concatenate([image[label > 0] for image, label in zip(images, labels, strict=True)])
    assert found.histograms["structure: a"].quantile(0.5).value == pytest.approx(np.median(inside), rel=0.05)


def test_the_distance_of_two_sites_is_that_of_their_normalised_voxels(tmp_path):
    sites = tiny_cases(tmp_path / "a", [1, 2]), tiny_cases(tmp_path / "b", [3])
    normalised = []
    for cases in sites:
        images = [voxels(case.images[0]) for case in cases]
        normalised.append(np.concatenate([((i - i.mean()) / i.std()).ravel() for i in images]))
    one, other = (measured(cases).histograms[named(NORMALISED, "a")] for cases in sites)
    found = one.distance(other)
    assert abs(found.value - wasserstein_distance(*normalised)) <= found.error
    assert found.error == pytest.approx(0.02, abs=1e-6)


def test_shapes_are_those_of_the_filled_box_along_the_axes_of_the_body(tmp_path):
    image = np.zeros((10, 8, 6), np.float32)
    image[2:5, 1:7, 3:] = 7.0
    image[3, 3, 4] = 9.0
    # Axes as a program stored them: first foot-head, then right-left, then front-back.
    affine = np.array([[0, 2.0, 0, 0], [0, 0, 3.0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "i.nii.gz")
    nib.save(nib.Nifti1Image((image > 8).astype(np.uint8), affine), tmp_path / "l.nii.gz")
    declared = {"name": "t", "modality": "MR", "channels": ["a"], "labels": {"x": 1}, "patch_size": [8, 8, 8]}
    cases = [Case((tmp_path / "i.nii.gz",), tmp_path / "l.nii.gz", "p")]
    for normalisation, mean in (("zscore_nonzero", (7 * 53 + 9) / 54), ("zscore", (7 * 53 + 9) / 480)):
        part = released(measure(resolve_task({**declared, "normalisation": normalisation}), cases), 1)
        shape = [part.histograms[f"shape: {axis}"].quantile(0.5).value for axis in AXES]
        spacing = [part.histograms[f"spacing: {axis}"].quantile(0.5).value for axis in AXES]
        assert (shape, spacing) == ([6, 3, 3], [pytest.approx(size) for size in (2, 3, 1)])
        assert part.histograms["kept"].quantile(0.5).value == pytest.approx(54 / 480, abs=0.005)
        assert part.moments["intensity: a"].mean == pytest.approx(mean)
        assert part.categories["orientation"] == {"SRA": 1.0}


def test_a_missing_channel_tells_nothing(tmp_path):
    image = np.random.default_rng(0).normal(100, 10, (6, 6, 6)).astype(np.float32)
    for name in ("t1", "t2"):
        nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((6, 6, 6), np.uint8), np.eye(4)), tmp_path / "l.nii.gz")
    task = resolve_task(
        {**get_task("brats").to_dict(), "channels": ["t1", "t2"], "optional_channels": ["t2"], "display": []}
    )
    case = Case((tmp_path / "t1.nii.gz",), tmp_path / "l.nii.gz", "p", missing=(1,))
    found = released(measure(task, [case]), 1)
    assert "intensity: t1" in found.histograms
    assert "intensity: t2" not in found.histograms
    assert "normalised: t2" not in found.moments


def test_scanner_facts_come_from_the_file_beside_the_image(tmp_path):
    cases = tiny_cases(tmp_path, range(2))
    facts = {"Manufacturer": "SIEMENS", "MagneticFieldStrength": 1.5, "InstitutionName": "St. Elsewhere"}
    for case in cases:
        beside = case.images[0].with_name(case.images[0].name.replace(".nii.gz", ".json"))
        beside.write_text(json.dumps(facts))
    found = measured(cases)
    assert found.categories["maker"] == {"Siemens": 2.0}
    assert found.histograms["field strength"].quantile(0.5).value == pytest.approx(1.5)
    assert "Elsewhere" not in json.dumps(found.to_dict())


def test_cases_of_one_patient_weigh_one_together_where_patients_count(tmp_path):
    cases = [Case(case.images, case.label, "one patient") for case in tiny_cases(tmp_path, range(3))]
    tallies = measure(TINY, cases, fine=False, per_patient=True)
    for tally in (*tallies.bins.values(), *tallies.names.values()):
        assert tally.dense().sum() == pytest.approx(1) or not tally.weights
    assert (tallies.cases, len(tallies.patients)) == (3, 1)
