"""Proposals from merged statistics: those of all images in one place, and the rules by hand."""

import json
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.contract.plan import parse_plan
from fedseg.contract.proposal import Fingerprint, propose, propose_for
from fedseg.errors import ConfigurationError, DataError
from fedseg.jobs.job import read_job
from fedseg.planning.job_folder import REASONS_FILE, TASK_FILE, write_job
from fedseg.planning.proposed_job import propose_job, read_fingerprint
from fedseg.statistics.document import FederationStatistics
from fedseg.statistics.histogram import Histogram
from fedseg.statistics.quantities import AXES, quantities
from fedseg.statistics.site_statistics import Statistics, pooled
from fedseg.tasks.registry import resolve_task
from statistics_of_tiny import TINY

CT = resolve_task(
    {
        "name": "spleen",
        "modality": "CT",
        "channels": ["ct"],
        "labels": {"spleen": 1},
        "normalisation": "window",
        "window": [-100, 240],
        "patch_size": [32, 32, 32],
    }
)


def told(task, shapes, spacings, kept=1.0, structure=None):
    """Statistics of made-up images."""
    shapes, spacings = np.array(shapes, float), np.array(spacings, float)
    scales = quantities(task, fine=True).scales
    values = {"kept": [kept] * len(shapes), "structure: ct": structure}
    for number, axis in enumerate(AXES):
        values |= {
            f"shape: {axis}": shapes[:, number],
            f"spacing: {axis}": spacings[:, number],
            f"extent: {axis}": shapes[:, number] * spacings[:, number],
        }
    histograms = {}
    for name, found in values.items():
        if found is not None:
            numbers, counts = np.unique(scales[name].index(np.array(found)), return_counts=True)
            bins = {(int(n), int(n)): float(c) for n, c in zip(numbers, counts, strict=True)}
            histograms[name] = Histogram(scales[name], bins)
    return Statistics(len(shapes), len(shapes), 1, True, histograms)


def federation(task, *sites):
    return FederationStatistics(task, {f"site{number}": part for number, part in enumerate(sites)})


IMAGES = st.lists(
    st.tuples(
        st.tuples(st.integers(20, 400), st.integers(20, 400), st.integers(10, 200)),
        st.tuples(*[st.integers(3, 60).map(lambda n: n / 10)] * 3),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60)
@given(IMAGES, IMAGES)
def test_the_fingerprint_is_that_of_all_images_in_one_place(one, other):
    merged = pooled({"a": told(TINY, *zip(*one, strict=True)), "b": told(TINY, *zip(*other, strict=True))})
    shapes, spacings = map(np.array, zip(*one, *other, strict=True))
    found, _ = read_fingerprint(merged)
    exact = Fingerprint.of(shapes, spacings)
    assert found.spacing == pytest.approx(exact.spacing, abs=5.1e-4)
    assert found.thin == pytest.approx(exact.thin, abs=5.1e-4)
    assert found.shape == pytest.approx(exact.shape, abs=1e-9)
    assert found.extent == pytest.approx(exact.extent, abs=0.051)


def test_the_proposal_is_that_of_the_images_themselves():
    shapes, spacings = [(240, 240, 155), (256, 256, 160), (200, 220, 150)], [(1.0, 1.0, 1.0)] * 3
    found = propose_job(federation(TINY, told(TINY, shapes[:1], spacings[:1]), told(TINY, shapes[1:], spacings[1:])))
    expected = propose(shapes, spacings)
    assert found.plan["task"]["patch_size"] == expected["task"]["patch_size"]
    assert found.plan["network"] == expected["network"]
    assert "spacing" not in found.plan["task"], "all voxels have one size"
    assert "keep them" in found.reasons[0]


def test_thick_slices_take_the_tenth_percentile():
    shapes, spacings = [(256, 256, 20)] * 10, [(1.0, 1.0, z) for z in (3.0, *[6.0] * 9)]
    found = propose_job(federation(TINY, told(TINY, shapes, spacings)))
    assert found.plan["task"]["spacing"] == [1.0, 1.0, pytest.approx(5.7)], "by hand: 3 + 0.9 * 3"
    assert found.plan["task"]["spacing"] == propose(shapes, spacings)["task"]["spacing"]
    assert "along foot-head, where slices are thick" in found.reasons[0]


def test_two_ways_to_a_fingerprint_meet():
    shapes, spacings = [(40, 56, 40), (50, 50, 30)], [(1.0, 1.0, 1.0), (2.0, 1.0, 1.0)]
    assert propose(shapes, spacings) == propose_for(Fingerprint.of(shapes, spacings))


def test_an_empty_border_decides_about_the_normalisation_of_mr():
    for kept, expected in ((0.74, ("zscore_nonzero", True)), (0.76, ("zscore", False))):
        task = propose_job(federation(TINY, told(TINY, [(64, 64, 64)], [(1.0, 1.0, 1.0)], kept))).plan["task"]
        assert (task["normalisation"], task["crop_to_foreground"]) == expected
        assert "window" not in task


def test_the_window_of_ct_is_that_of_the_labelled_voxels():
    values = np.linspace(-150, 250, 4001)
    found = propose_job(federation(CT, told(CT, [(300, 300, 80)], [(0.8, 0.8, 3.0)], structure=values)))
    low, high = found.plan["task"]["window"]
    assert low == pytest.approx(np.quantile(values, 0.005), rel=0.006)
    assert high == pytest.approx(np.quantile(values, 0.995), rel=0.006)
    assert found.plan["task"]["normalisation"] == "window"


def test_the_batch_has_three_bounds():
    # By hand: patches of 40 x 56 x 40; 20 cases have 89 600 * 20 voxels, of which 5 % are one patch.
    def batch(*cases):
        parts = [told(TINY, [(40, 56, 40)] * count, [(1.0, 1.0, 1.0)] * count) for count in cases]
        found = propose_job(federation(TINY, *parts))
        return found.plan["training"]["batch_size"], found.reasons[-1]

    assert batch(20)[0] == 2
    assert batch(40, 300) == (4, batch(40, 300)[1])
    assert "smallest site, with 40 cases" in batch(40, 300)[1]
    assert batch(100, 60)[0] == 6
    assert batch(1000) == (19, batch(1000)[1])
    assert "1769472 voxels" in batch(1000)[1]


def test_the_smallest_batch_says_what_it_does_not_keep():
    def words(*cases):
        parts = [told(TINY, [(40, 56, 40)] * count, [(1.0, 1.0, 1.0)] * count) for count in cases]
        return propose_job(federation(TINY, *parts)).reasons[-1]

    # By hand: 4 cases in batches of 2 are 2 steps, and 5 % of the voxels of 404 cases are 20 patches.
    start = "batch_size 2, the smallest that is proposed: "
    assert words(4, 400) == (
        f"{start}the smallest site, with 4 cases, has 2 steps in a pass over its cases; 10 are the aim."
    )
    assert "with 1 case, has 1 step in" in words(1, 400)
    # 5 % of the voxels of 22 cases are one patch.
    assert words(22) == f"{start}it has more than 5% of the voxels of all cases, because the sites have few cases."
    assert words(25, 400) == (
        "batch_size 2: the smallest site, with 25 cases, has at least 10 steps in a pass over its cases."
    )
    assert (
        words(100, 60)
        == "batch_size 6: the smallest site, with 60 cases, has at least 10 steps in a pass over its cases."
    )


def test_without_a_site_there_is_nothing_to_propose_from():
    with pytest.raises(DataError, match=r"^No site has told its statistics\. Ask for a smaller minimum of patients\.$"):
        propose_job(federation(TINY))


def test_wide_bins_and_noise_are_told():
    part = told(TINY, [(64, 64, 64)] * 3, [(1.0, 1.0, 1.0)] * 3)
    scale = part.histograms["spacing: foot-head"].scale
    wide = {**part.histograms, "spacing: foot-head": Histogram(scale, {(800, 1400): 3.0})}
    found = propose_job(federation(TINY, replace(part, histograms=wide)))
    for rank in ("median", "tenth percentile of the"):
        said = f"The {rank} voxel size along foot-head is not known well: it lies between 0.7995 and 1.401 mm."
        assert any(text.startswith(said) for text in found.warnings), rank
    assert len(found.warnings) == 2
    noisy = replace(part, noise={"variance": 1.0})
    assert any("coarse bins with noise" in text for text in propose_job(federation(TINY, noisy)).warnings)
    assert propose_job(federation(TINY, part)).warnings == ()


@settings(max_examples=40)
@given(IMAGES)
def test_every_proposal_is_a_plan(images):
    found = propose_job(federation(TINY, told(TINY, *zip(*images, strict=True))), 32**3)
    plan = parse_plan(found.plan)
    assert prod(plan.task.patch_size) <= 32**3
    assert plan.training.batch_size >= 2


def test_statistics_without_sizes_are_refused():
    with pytest.raises(DataError, match="tell nothing of spacing"):
        propose_job(federation(TINY, Statistics(5, 5, 5)))
    part = told(CT, [(64, 64, 64)], [(1.0, 1.0, 1.0)])
    with pytest.raises(DataError, match="intensities of ct"):
        propose_job(federation(CT, part))


def test_the_files_are_a_job_that_can_be_submitted(tmp_path):
    found = propose_job(federation(TINY, told(TINY, [(64, 64, 64)] * 20, [(1.0, 1.0, 2.0)] * 20)))
    job = read_job(write_job(found, "tiny_planned", tmp_path))
    assert job.check().task.patch_size == tuple(found.plan["task"]["patch_size"])
    assert resolve_task(json.loads((tmp_path / TASK_FILE).read_text("utf-8"))) == job.plan.task
    assert all(text in (tmp_path / REASONS_FILE).read_text("utf-8") for text in found.reasons)
    with pytest.raises(ConfigurationError, match="name"):
        write_job(found, "../x", tmp_path / "other")
    assert not (tmp_path / "other").exists()
