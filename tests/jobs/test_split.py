"""Jobs of split training: every part must know of it."""

import json
import shutil
from pathlib import Path

import pytest

from fedseg.errors import ConfigurationError
from fedseg.jobs.job import apply_settings, read_job

ROOT = Path(__file__).parents[2]
NOISE = {"path": "fedseg.filters.noise.GaussianNoise", "args": {"clip": 1.0, "noise_multiplier": 1.0}}


@pytest.fixture
def job(tmp_path):
    return read_job(Path(shutil.copytree(ROOT / "jobs" / "hippocampus_splitavg", tmp_path / "job")))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("split.cut=neck", "split.cut is 'neck', but must be one of"),
        ("split.labels=secret", "split.labels is 'secret'"),
        ("split.site_update=passed", "split.site_update is 'passed', but must be one of"),
        ("split.depth=2", "split.depth is not known"),
        ("split.labels=private", "training.batch_dice is True, but must be false where labels stay at the sites"),
        ("training.local_epochs=2", "training.local_epochs is 2, but must be 1 in split training"),
        ("training.validate_after=true", "training.validate_after is True, but must be false in split training"),
        ("workflow.message_timeout=0", "workflow.message_timeout is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_runs(job, setting, said):
    apply_settings(job, None, None, None, [setting])
    with pytest.raises(ConfigurationError, match=said):
        job.check()


def test_settings_can_be_changed_like_all_others(job):
    apply_settings(job, None, None, None, ["split.cut=encoder2", "split.site_update=summed"])
    split = job.check().split
    assert (split.cut, split.site_update, split.message) == ("encoder2", "summed", "float16")


def test_the_mean_of_gradients_does_not_go_with_turns(job):
    apply_settings(job, None, None, None, ["split.site_update=handed_on", "split.cut_gradient=mean"])
    with pytest.raises(
        ConfigurationError, match=r"split\.cut_gradient is 'mean', but must be own with site_update handed_on"
    ):
        job.check()


def test_a_job_chooses_the_sites_of_its_rounds(job):
    chosen = {"path": "fedseg.workflows.selection.RandomSites", "args": {"k": 2}}
    apply_settings(job, None, None, None, [f"workflow.selection={json.dumps(chosen)}"])
    job.check()
    assert job.build_workflow().selection.describe() == {"name": "RandomSites", "k": 2}


def test_the_jobs_of_turns_and_of_a_carried_model_are_what_they_say():
    turns, carried = (read_job(ROOT / "jobs" / name) for name in ("hippocampus_splitnn", "hippocampus_cyclic"))
    assert turns.check().split.site_update == "handed_on"
    assert carried.check().split is None
    # As many passes over the training cases as the other jobs of this task have.
    assert turns.workflow["num_rounds"] == carried.workflow["num_rounds"] == 30
    assert turns.plan.training.local_epochs == carried.plan.training.local_epochs == 1


def test_parts_that_do_not_fit_together_are_refused(job):
    ordinary = read_job(ROOT / "jobs" / "hippocampus_fedavg")
    client, server, declaration = job.client, job.server, job.declaration
    for part, content, said in (
        ("client", ordinary.client, "executor is .*SegmentationExecutor"),
        ("server", ordinary.server, "workflow is .*FederatedTraining"),
        ("declaration", {k: v for k, v in declaration.items() if k != "split"}, "split is missing"),
        ("client", {**client, "task_result_filters": [{"tasks": ["train"], "filters": [NOISE]}]}, "GaussianNoise"),
    ):
        job.client, job.server, job.declaration = client, server, declaration
        setattr(job, part, content)
        with pytest.raises(ConfigurationError, match=said):
            job.check()
