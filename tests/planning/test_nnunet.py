"""The planner of nnunetv2 as the oracle: on the same images it comes to the same voxel size, strides and kernels.

It is no requirement of fedseg; the extra ``oracle`` brings it.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from fedseg.contract.proposal import propose
from fedseg.planning.proposed_job import propose_job
from fedseg.statistics.document import FederationStatistics
from planning.test_proposed_job import CT, told
from statistics_of_tiny import TINY

pytestmark = pytest.mark.full

DATA_SETS = {
    "hippocampus": ([(36, 50, 35), (34, 52, 40), (35, 49, 36)] * 4, [(1.0, 1.0, 1.0)] * 12),
    "brats": ([(140, 173, 138), (146, 180, 140)] * 5, [(1.0, 1.0, 1.0)] * 10),
    "spleen": ([(512, 512, 90), (512, 512, 41)] * 5, [(0.79, 0.79, 5.0), (0.9, 0.9, 3.0)] * 5),
    "prostate": ([(320, 320, 20), (384, 384, 24)] * 5, [(0.625, 0.625, 3.6), (0.6, 0.6, 4.0)] * 5),
    "cardiac": ([(256, 216, 10), (232, 256, 9)] * 6, [(1.56, 1.56, 10.0), (1.37, 1.37, 5.0)] * 6),
    "lgg": ([(128, 128, 22), (120, 128, 24)] * 6, [(2.0, 2.0, 1.0)] * 12),
}


@pytest.fixture(scope="module")
def nnunet():
    pytest.importorskip("nnunetv2", reason="the planner of nnunetv2 is not installed: pip install fedseg[oracle]")
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner, network_topology

    return SimpleNamespace(planner=default_experiment_planner.ExperimentPlanner, topology=network_topology)


def planner_of(nnunet, shapes, spacings, kept=1.0):
    """nnU-Net's planner over a fingerprint, without its files."""
    found = object.__new__(nnunet.planner)
    found.overwrite_target_spacing, found.anisotropy_threshold = None, 3
    found.dataset_fingerprint = {
        "spacings": spacings,
        "shapes_after_crop": shapes,
        "median_relative_size_after_cropping": kept,
    }
    found.dataset_json = {"channel_names": {"0": "MRI"}}
    return found


def at_two_sites(task, shapes, spacings, kept=1.0, structure=None):
    half = len(shapes) // 2
    parts = (slice(half), slice(half, None))
    sites = {f"s{n}": told(task, shapes[p], spacings[p], kept, structure) for n, p in enumerate(parts)}
    return FederationStatistics(task, sites)


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_voxel_size_is_nnunets(nnunet, name):
    shapes, spacings = DATA_SETS[name]
    expected = planner_of(nnunet, shapes, spacings).determine_fullres_target_spacing()
    found = propose_job(at_two_sites(TINY, shapes, spacings)).plan["task"].get("spacing", spacings[0])
    assert found == pytest.approx(expected, abs=6e-4)
    assert propose(shapes, spacings)["task"]["spacing"] == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("name", DATA_SETS)
def test_strides_and_kernels_are_nnunets_for_the_proposed_patch(nnunet, name):
    shapes, spacings = DATA_SETS[name]
    plan = propose_job(at_two_sites(TINY, shapes, spacings)).plan
    spacing, patch = plan["task"].get("spacing", spacings[0]), plan["task"]["patch_size"]
    _, strides, kernels, padded, _ = nnunet.topology.get_pool_and_conv_props(spacing, patch, 4, 999999)
    ours = [tuple(s) if isinstance(s, list) else (s,) * 3 for s in plan["network"]["strides"]]
    levels = min(len(strides), 6)  # ours has no more
    assert ours[:levels] == list(strides[:levels])
    looks = [tuple(k) if isinstance(k, list) else (k,) * 3 for k in plan["network"]["kernels"]]
    # nnU-Net looks along all axes at the coarsest level in any case.
    assert looks[: levels - 1] == list(kernels[: levels - 1])
    assert len(strides) > 6 or tuple(padded) == tuple(patch)


@pytest.mark.parametrize("kept", [0.5, 0.7, 0.8, 1.0])
def test_the_normalisation_of_mr_is_nnunets(nnunet, kept):
    shapes, spacings = DATA_SETS["brats"]
    names, masked = planner_of(
        nnunet, shapes, spacings, kept
    ).determine_normalization_scheme_and_whether_mask_is_used_for_norm()
    task = propose_job(at_two_sites(TINY, shapes, spacings, kept)).plan["task"]
    assert names == ["ZScoreNormalization"]
    assert task["normalisation"] == ("zscore_nonzero" if masked == [True] else "zscore")


def test_the_window_of_ct_is_cut_where_nnunet_cuts():
    values = np.random.default_rng(3).normal(80, 40, 40_000)
    shapes, spacings = DATA_SETS["spleen"]
    task = propose_job(at_two_sites(CT, shapes, spacings, structure=values)).plan["task"]
    assert task["window"] == pytest.approx(np.percentile(values, [0.5, 99.5]), rel=0.006, abs=0.1)
