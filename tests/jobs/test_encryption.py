"""A job encrypts with all of its parts or with none."""

from pathlib import Path

import pytest

from fedseg.errors import ConfigurationError
from fedseg.jobs.job import read_job
from toy_parts import declare

ROOT = Path(__file__).parents[2] / "jobs"
PLAIN = "fedseg.workflows.federated_training.FederatedTraining"


@pytest.fixture
def job():
    return read_job(ROOT / "hippocampus_he")


def test_the_encrypted_jobs_are_known_by_their_class_paths():
    found = {path.parent.name for path in ROOT.glob("*/meta.json") if is_encrypted_job(path.parent)}
    assert found == {"hippocampus_he", "brats_he", "brats_he_fedcostwavg", "pancreas_he"}


def is_encrypted_job(folder):
    # A workflow that trains nothing has no kind of round.
    protocol = getattr(read_job(folder).build_workflow(), "protocol", None)
    return protocol is not None and protocol.encrypts


@pytest.mark.parametrize(
    ("encrypted", "plain"),
    [
        ("hippocampus_he", "hippocampus_fedavg"),
        ("brats_he", "brats_fedavg"),
        ("brats_he_fedcostwavg", "brats_fedcostwavg"),
        ("pancreas_he", "pancreas_fedavg"),
    ],
)
def test_encrypted_jobs_are_their_plain_ones_but_for_the_encryption(encrypted, plain):
    one, other = read_job(ROOT / encrypted), read_job(ROOT / plain)
    assert one.declaration | {"method": ""} == other.declaration | {"method": ""}
    workflow = one.build_workflow()
    assert workflow.model.mode == "compact"
    assert (workflow.settings.min_sites, other.build_workflow().settings.min_sites) == (2, 1)
    assert one.workflow == other.workflow
    assert one.client.get("components") == other.client.get("components")


def without_upload(job):
    job.client["executors"][0]["tasks"].remove("upload")


def without_encryption(job):
    job.client["task_result_filters"] = []


def without_decryption(job):
    job.client["task_data_filters"][0]["tasks"] = ["train"]


def with_plain_workflow(job):
    job.server["workflows"][0]["path"] = PLAIN


def with_filters_of_training(job):
    job.client["task_result_filters"][0]["tasks"] = ["train", "upload"]


def with_wrong_order(job):
    clip = {"path": "fedseg.filters.norm_clip.NormClip", "args": {"norm": 1.0}}
    job.client["task_result_filters"][0]["filters"].append(clip)


def with_guarantee(job):
    noise = {"path": "fedseg.filters.noise.GaussianNoise", "args": {"clip": 1.0, "noise_multiplier": 1.0}}
    job.client["task_result_filters"][0]["filters"].insert(0, noise)


def with_private_layers(job):
    layers = {"path": "fedseg.filters.layers.PrivateLayers", "args": {"last": 1}}
    job.client["task_result_filters"][0]["filters"].insert(0, layers)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_upload, "executors: tasks"),
        (without_encryption, "task_result_filters"),
        (without_decryption, "for 'validate' a chain with"),
        (with_plain_workflow, "EncryptedTraining in a job that encrypts"),
        (with_filters_of_training, "updates leave with the other task"),
        (with_wrong_order, "NormClip"),
        (with_guarantee, "GaussianNoise.*no guarantee would cover"),
        (with_private_layers, "PrivateLayers.*as one vector"),
    ],
)
def test_a_job_whose_parts_do_not_agree_is_refused(job, change, said):
    job.check()
    change(job)
    with pytest.raises(ConfigurationError, match=said):
        job.check()


def test_a_clipped_update_can_be_encrypted(job):
    clip = {"path": "fedseg.filters.norm_clip.NormClip", "args": {"norm": 1.0}}
    job.client["task_result_filters"][0]["filters"].insert(0, clip)
    job.check()


def test_a_network_that_is_encrypted_has_parts_of_all_sites_only(job, monkeypatch):
    declare(monkeypatch)
    shared, kept = {"name": "affine"}, {"name": "affine", "private": True}
    job.set("network", {"name": "residual_unet", "parts": [shared]})
    job.check()
    job.set("network", {"name": "residual_unet", "parts": [kept]})
    with pytest.raises(
        ConfigurationError, match=r"network\.parts is \['affine'\].*parts that all sites share in a job"
    ):
        job.check()
