"""Private layers, a fraction with error feedback, and short values, all at once through FLARE's real simulator."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedseg.contract.shapes import update_shapes
from fedseg.data.datalist import read_datalist
from fedseg.jobs.job import read_job
from fedseg.simulation.in_process import InProcessFederation
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
SITES = {"alpha": (3, 1), "beta": (2, 1)}
ROUNDS = 3
PRIVATE = {"path": "fedseg.filters.layers.PrivateLayers", "args": {"kind": "norm"}}
QUANTIZE = {"path": "fedseg.filters.quantize.QuantizeUpdate", "args": {"bits": 8}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The job, and the folder of its run."""
    folder = tmp_path_factory.mktemp("partial")
    make_sites(folder / "data", SITES)
    job = read_job(ROOT / "jobs" / "hippocampus_partial")
    for key in ("task", "network", "training"):
        job.set(key, PLAN[key])
    job.set("workflow.num_rounds", ROUNDS)
    job.set("workflow.keep_updates", True)
    job.set("filter.ShareFraction.error_feedback", True)
    (chain,) = job.client["task_result_filters"]
    chain["filters"] = [PRIVATE, *chain["filters"], QUANTIZE]
    path = job.write(folder / "job")
    command = [sys.executable, "-m", "fedseg", "simulate", path, "--data", folder / "data", "--out", folder / "run"]
    result = subprocess.run([*map(str, command)], capture_output=True, encoding="utf-8", timeout=300, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return read_job(path), folder / "data", folder / "run"


def test_the_simulator_equals_the_loop_in_one_process(run, tmp_path):
    """The filters' own state on the sites' disks included: residuals, private layers."""
    job, data, out = run
    federation = InProcessFederation(job, {site: read_datalist(data / site) for site in SITES}, state=tmp_path)
    federation.run()
    assert federation.events == []
    last = load_file(out / "models" / "last.safetensors")
    assert set(last) == set(federation.model.weights)
    for name, value in federation.model.weights.items():
        np.testing.assert_array_equal(last[name], value)


def test_the_server_saw_a_tenth_of_the_shared_layers(run):
    job, _, out = run
    private = job.build_filters()[0].private_names(job.plan)
    shapes = update_shapes(job.plan)
    count = sum(int(np.prod(shape)) for name, shape in shapes.items() if name not in private)
    for number in range(ROUNDS):
        for site in SITES:
            update = load_file(out / "updates" / f"round-{number:03d}" / f"{site}.safetensors")
            assert set(update) == set(shapes) - private
            sent = sum(int(np.count_nonzero(value)) for value in update.values())
            # A chosen value may be rounded to zero.
            assert 0.05 * count < sent <= -(-count // 10)


def test_the_record_of_the_run_names_the_filters(run):
    _, _, out = run
    summary = json.loads((out / "report" / "summary.json").read_text("utf-8"))
    dense = 4 * sum(int(np.prod(shape)) for shape in update_shapes(run[0].plan).values())
    for entry in summary["rounds"]:
        assert set(entry["sites"]) == set(SITES)
        assert all(site["bytes_up"] < dense / 2 for site in entry["sites"].values())
