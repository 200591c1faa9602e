"""FLARE's receivers of curves at the server of a real federation: what sites tell lies in MLflow and Weights & Biases.

Skipped where MLflow or wandb is not installed; neither is part of this software.
"""

import importlib.util
import json
import struct
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from federation_parts import POLICY, TEMPLATE, tiny_job

from fedseg.deployment.coordination.session import FINISHED
from fedseg.deployment.kits.project_file import read_project
from fedseg.deployment.local.federation import running
from fedseg.filters.guard.guard import CURVES
from fedseg.jobs.allowed_components import SERVER_RECEIVERS
from tiny import make_sites

ROUNDS, SECONDS, SITES = 2, 1200, {"alpha": (2, 1), "beta": (2, 1)}
# beta has no curves leave it.
LIMITS = {"alpha": {"events": True}, "beta": {}}
ARGUMENTS = {
    "mlflow": {"kw_args": {"experiment_name": "study", "run_name": "fedavg"}},
    "wandb": {
        "mode": "offline",
        "process_timeout": 60.0,
        "wandb_args": {"project": "study", "name": "fedavg", "group": "fedavg", "job_type": "training"},
    },
}
INSTALLED = [name for name in ARGUMENTS if importlib.util.find_spec(name)]
BLOCK, FULL, LAST = 32768, 1, 4
pytestmark = pytest.mark.full


def path_of(name):
    return next(path for path in SERVER_RECEIVERS if f".{name}." in path)


def allow(server):
    """What the server's administrator does."""
    file = server / "local" / "resources.json"
    resources = json.loads(file.read_text("utf-8"))
    resources["class_allow_list"] += [path_of(name) for name in INSTALLED]
    file.write_text(json.dumps(resources), "utf-8")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A federation whose job names every receiver that is installed."""
    if not INSTALLED:
        pytest.skip("neither MLflow nor wandb is installed: pip install 'fedseg[mlflow]' wandb")
    folder = tmp_path_factory.mktemp("receivers")
    out = folder / "out"
    out.mkdir()
    job = tiny_job("hippocampus_fedavg", folder / "jobs", ROUNDS)
    for name in INSTALLED:
        component = {"id": name, "path": path_of(name), "args": {"events": [CURVES], **ARGUMENTS[name]}}
        job.server["components"].append(component)
    job.check()
    federation = running(
        *(read_project(TEMPLATE), POLICY, make_sites(folder / "data", SITES), list(SITES), out, LIMITS),
        before_start=lambda local: allow(local.federation.of_role("server")[0].folder),
    )
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("WANDB_DIR", str(folder))  # of the server's environment, which it inherits
        local = stack.enter_context(federation)
        try:
            with local.coordinator(SECONDS) as coordinator:
                job_id = coordinator.submit(job)
                status = coordinator.wait(job_id, timeout=SECONDS)
                (folder / "fetched").mkdir()
                coordinator.download(job_id, folder / "fetched")
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\n{local.tails()}")
        tails = local.tails()
    return SimpleNamespace(folder=folder, status=status, tails=tails)


def test_the_job_ends_well(seen):
    assert seen.status == FINISHED, seen.tails


@pytest.mark.skipif("mlflow" not in INSTALLED, reason="MLflow is an extra: pip install 'fedseg[mlflow]'")
def test_curves_of_the_site_that_allows_them_lie_in_mlflow(seen):
    from mlflow.tracking import MlflowClient

    (store,) = (seen.folder / "fetched").rglob("mlflow.db")
    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    runs = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    told = {run.info.run_name.split("-")[0]: run for run in runs}
    assert set(told) == set(SITES)
    for metric in ("train_loss", "val_dice/inner", "val_dice/mean"):
        steps = [each.step for each in client.get_metric_history(told["alpha"].info.run_id, metric)]
        assert steps == list(range(ROUNDS)), metric
    assert told["beta"].data.metrics == {}


@pytest.mark.skipif("wandb" not in INSTALLED, reason="Weights & Biases is not installed: pip install wandb")
def test_curves_of_the_site_that_allows_them_lie_in_a_folder_of_wandb(seen):
    files = list(seen.folder.rglob("run-*.wandb"))
    assert len(files) == len(SITES), seen.tails
    told = [keys(file) for file in files]
    assert sum("train_loss" in found and "val_dice/mean" in found for found in told) == 1
    assert sum(not found - {"_step", "_timestamp", "_runtime"} for found in told) == 1


def keys(file):
    """Names of all values in an offline file of Weights & Biases."""
    from wandb.proto import wandb_internal_pb2

    found = set()
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        found |= {item.key or "/".join(item.nested_key) for item in record.history.item}
    return found


def records(content):
    """The records of a log of LevelDB: blocks of 32 KiB, pieces with check sum, length, and which part they are."""
    place, whole = 7, b""  # after the head of the file
    while place + 7 <= len(content):
        room = BLOCK - place % BLOCK
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (FULL, LAST):
            yield whole
            whole = b""
