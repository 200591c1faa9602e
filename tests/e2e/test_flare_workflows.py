"""Our rules under FLARE's own FedAvg and ScatterAndGather give what our own loop gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedseg.data.datalist import read_datalist
from fedseg.jobs.allowed_components import site_resources
from fedseg.jobs.job import read_job
from fedseg.simulation.in_process import InProcessFederation
from fedseg.site.profile import DATA_VARIABLE, STATE_VARIABLE
from tiny import PLAN, make_sites

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
ROUNDS = 3
SITES = {"alpha": (4, 1), "beta": (2, 1), "gamma": (2, 1)}
RULE = {"path": "fedseg.aggregators.fedcostwavg.FedCostWAvg", "args": {"alpha": 0.5, "cost": "train_loss"}}
PERSISTOR = "flare_parts.SeededPersistor"
FEDAVG = "nvflare.app_common.workflows.fedavg.FedAvg"
GATHER = "nvflare.app_common.workflows.scatter_and_gather.ScatterAndGather"
GENERATOR = "nvflare.app_common.shareablegenerators.full_model_shareable_generator.FullModelShareableGenerator"


@pytest.fixture(scope="module")
def job():
    job = read_job(ROOT / "jobs" / "hippocampus_fedcostwavg")
    for key in ("task", "network", "training", "seed"):
        job.set(key, PLAN[key])
    job.set("workflow.num_rounds", ROUNDS)
    return job


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("data"), SITES)


@pytest.fixture(scope="module")
def expected(job, data):
    federation = InProcessFederation(job, {site: read_datalist(data / site) for site in SITES})
    federation.run()
    return federation.model.weights


def server_config(workflow, folder):
    components = [
        {"id": "persistor", "path": PERSISTOR, "args": {"plan": str(folder / "plan.json"), "out": str(folder)}}
    ]
    if workflow == FEDAVG:
        arguments = {"num_clients": len(SITES), "num_rounds": ROUNDS, "aggregator": RULE, "task_check_period": 0.1}
    else:
        arguments = {"min_clients": len(SITES), "num_rounds": ROUNDS, "persistor_id": "persistor"}
        components += [{"id": "aggregator", **RULE}, {"id": "shareable_generator", "path": GENERATOR, "args": {}}]
    return {
        "format_version": 2,
        "server": {"task_request_interval": 0.35},
        "workflows": [{"id": "workflow", "path": workflow, "args": arguments}],
        "task_data_filters": [],
        "task_result_filters": [],
        "components": components,
    }


@pytest.mark.parametrize("workflow", [FEDAVG, GATHER], ids=["FedAvg", "ScatterAndGather"])
def test_a_rule_with_history_works_under_flares_own_workflows(workflow, job, data, expected, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(job.declaration))
    job.server = {"workflows": [{"args": {}}], **server_config(workflow, tmp_path)}
    folder = job.write(tmp_path / "job")
    local = tmp_path / "workspace" / "local"
    local.mkdir(parents=True)
    resources = site_resources()
    resources["class_allow_list"] += [PERSISTOR, FEDAVG, GATHER, GENERATOR]
    (local / "resources.json").write_text(json.dumps(resources))
    environment = {**os.environ, DATA_VARIABLE: str(data), STATE_VARIABLE: str(tmp_path / "state")}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "nvflare.private.fed.app.simulator.simulator", str(folder)]
    command += ["-w", str(tmp_path / "workspace"), "-c", ",".join(SITES), "-t", str(len(SITES))]
    result = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert (tmp_path / "weights.npz").exists(), result.stdout[-3000:] + result.stderr[-2000:]
    weights = np.load(tmp_path / "weights.npz")
    assert set(weights.files) == set(expected)
    for name in expected:
        np.testing.assert_allclose(weights[name], expected[name], rtol=0, atol=1e-6, err_msg=name)
