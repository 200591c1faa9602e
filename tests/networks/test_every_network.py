"""Every network that a plan may name: a round of adapters on a given model, and masks from what the round gave."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedseg.cli import main
from fedseg.contract.plan import parse_plan
from fedseg.jobs.job import read_job
from fedseg.models.model_file import write_model
from fedseg.networks.registry import NETWORKS
from fedseg.networks.weights import get_weights
from in_process_runs import SITES, simulated
from tiny import LARGER, PLAN, SMALL, TRANSFORMERS, make_sites

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("data"), dict.fromkeys(SITES, (1, 1)))


@pytest.mark.parametrize(
    # Adapters of transformers are trained in test_transformers.py every day.
    "name",
    [pytest.param(name, marks=pytest.mark.full if name in TRANSFORMERS else ()) for name in NETWORKS],
)
def test_adapters_are_trained_over_sites_and_the_model_predicts(name, data, tmp_path):
    """The frozen arrays are those of the given model to the bit, and every second matrix has moved."""
    network, task = {"name": name, **SMALL[name]}, {**PLAN["task"], "patch_size": LARGER.get(name, (32, 16, 16))}
    bare = parse_plan({**PLAN, "task": task, "network": network})
    # A trained one has no scale of 0, behind which nothing could learn.
    before = {each: value + np.float32(0.05) for each, value in get_weights(bare.build_network()).items()}
    job = read_job(ROOT / "jobs" / "brats_lora")
    job.set("task", task)
    job.set("network", {**network, "parts": [{"name": "lora", "rank": 2}]})
    job.set("workflow.num_rounds", 1)
    job.set("training.batch_size", 1)
    job.initial = tmp_path / "model.safetensors"
    write_model(job.initial, bare, before, 4)
    _, models = simulated(job, data, tmp_path / "run")
    after = models["last.safetensors"]
    assert all(np.array_equal(after[each], value) for each, value in before.items())
    moved = [after[each] for each in after if each.startswith("parts.lora.") and each.endswith(".up.weight")]
    assert moved
    assert all(np.abs(value).max() > 0 for value in moved)
    model, out = tmp_path / "run" / "models" / "last.safetensors", tmp_path / "out"
    command = ["predict", str(model), "--task", "tiny", "--data", str(data / "alpha"), "--split", "validation"]
    assert main([*command, "--out", str(out)]) == 0
    (mask,) = out.rglob("*.nii.gz")
    assert nib.load(mask).shape == (20, 20, 20)
    assert set(np.unique(np.asarray(nib.load(mask).dataobj))) <= {0, 1, 2}
