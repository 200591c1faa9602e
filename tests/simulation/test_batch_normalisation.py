"""Batch normalisation in a federation: running statistics are averaged like weights, or kept by each site (FedBN)."""

from pathlib import Path

import numpy as np
import pytest

from fedseg.networks.weights import get_weights
from in_process_runs import SITES, simulated, tiny_job
from tiny import make_sites

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("data"), SITES)


@pytest.mark.parametrize("name", ["hippocampus_fedavg", "brats_fedbn"])
def test_statistics_are_averaged_or_kept(name, data, tmp_path):
    job = tiny_job(JOBS / name)
    job.set("network.norm", "batch")
    start = get_weights(job.check().build_network())
    summary, models = simulated(job, data, tmp_path / "run")
    assert [event for event in summary["events"] if event["site"] != "server"] == []
    (weights,) = models.values()
    means = [array for array in start if array.endswith("running_mean")]
    moved = [not np.array_equal(weights[array], start[array]) for array in means]
    assert means
    assert moved == [name == "hippocampus_fedavg"] * len(means)
    assert all((value >= 0).all() for array, value in weights.items() if array.endswith("running_var"))
    counters = [array for array in start if array.endswith("num_batches_tracked")]
    assert all(weights[array].dtype == start[array].dtype for array in counters)
