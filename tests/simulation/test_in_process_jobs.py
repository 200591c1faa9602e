"""Every job runs in one process: two rounds on tiny images, and a repeated run gives the same models."""

import numpy as np
import pytest

import job_kinds
from fedseg.contract.plan import parse_plan
from fedseg.models.model_file import write_model
from fedseg.networks.weights import get_weights
from in_process_runs import SITES, lacks_channels, one_channel_each, simulated, tiny_job
from tiny import PLAN, make_sites

JOBS = job_kinds.TRAINING
EVERY_DAY = (
    "hippocampus_fedavg", "hippocampus_he", "hippocampus_splitavg", "hippocampus_cyclic", "hippocampus_fedbuff",
    "hippocampus_gaussian_dp", "hippocampus_harmofl", "brats_scaffold", "hippocampus_iil", "hippocampus_fedasync",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("data"), SITES)


@pytest.fixture(scope="module")
def train(data, tmp_path_factory):
    """Runs a job on the tiny images, or on those that lack channels; its summary and its last models."""
    lacking = one_channel_each(data, tmp_path_factory.mktemp("lacking"))

    def run(folder):
        job = tiny_job(folder)
        out = tmp_path_factory.mktemp(folder.name)
        if "lora" in folder.name:  # its frozen weights are those of a trained model
            job.initial = out / "model.safetensors"
            write_model(job.initial, parse_plan(PLAN), get_weights(parse_plan(PLAN).build_network()), 4)
        images = lacking if lacks_channels(job.declaration["task"]) else data
        return simulated(job, images, out / "run")

    return run


@pytest.fixture(scope="module")
def first(train):
    """The first run of a job, of which all tests tell."""
    done = {}

    def run(folder):
        if folder not in done:
            done[folder] = train(folder)
        return done[folder]

    return run


def trained():
    """All jobs; of a method that has jobs for several tasks, the one for the hippocampus every day."""
    for folder in JOBS:
        task, _, method = folder.name.partition("_")
        twin = task != "hippocampus" and folder.with_name(f"hippocampus_{method}") in JOBS
        yield pytest.param(folder, id=folder.name, marks=pytest.mark.full if twin else ())


@pytest.mark.parametrize("folder", trained())
def test_every_job_trains(folder, first):
    start = get_weights(tiny_job(folder).check().build_network())
    summary, models = first(folder)
    said = [event["what"] for event in summary["events"] if event["site"] != "server"]
    # Without a policy no site gives its personal model away.
    kept = len(SITES) if summary["workflow"].get("personal_models") else 0
    assert [("rule give_personal_model" in what) for what in said] == [True] * kept
    assert len(summary["rounds"]) == 2
    for weights in models.values():
        assert any(not np.array_equal(weights[array], start[array]) for array in start)
    for entry in summary["rounds"]:
        if entry["weights"]:
            assert sum(entry["weights"].values()) == pytest.approx(1)
        assert set(entry["selection"]) == set(SITES)
    assert 0 <= summary["final"]["pooled_dice"] <= 1


def repeated():
    """All jobs but the one that selects sites by the seconds that they took; one of each kind of round every day."""
    for folder in JOBS:
        if folder.name != "hippocampus_drop_slow":
            marks = () if folder.name in EVERY_DAY else pytest.mark.full
            yield pytest.param(folder, id=folder.name, marks=marks)


@pytest.mark.parametrize("folder", repeated())
def test_a_run_that_is_repeated_gives_the_same_models(folder, first, train):
    summary, models = first(folder)
    again, others = train(folder)
    assert set(models) == set(others)
    for name, weights in models.items():
        for array, value in weights.items():
            np.testing.assert_array_equal(value, others[name][array])
    assert summary["final"]["pooled_dice"] == again["final"]["pooled_dice"]
