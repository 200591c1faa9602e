"""FLARE's receivers of curves: a job may name them at the server only, and no site's list has them."""

import json
import re
import shutil
from pathlib import Path

import pytest

from fedseg.cli import main
from fedseg.errors import ConfigurationError
from fedseg.jobs.allowed_components import SERVER_RECEIVERS, allowed_classes
from fedseg.jobs.job import Job, read_job
from tiny import make_sites

ROOT = Path(__file__).parents[2]
EXAMPLES = [
    json.loads(block)
    for block in re.findall(
        r"```json\n(.*?)```", (ROOT / "docs" / "how-to" / "tracking.md").read_text("utf-8"), re.DOTALL
    )
]


def job_with(component: dict, folder: Path) -> Job:
    """A job whose server has one component more."""
    job = read_job(Path(shutil.copytree(ROOT / "jobs" / "hippocampus_fedavg", folder)))
    job.server["components"].append(component)
    return job


def test_the_documented_ones_are_all():
    assert [example["path"] for example in EXAMPLES] == list(SERVER_RECEIVERS)
    assert not set(SERVER_RECEIVERS) & set(allowed_classes())


@pytest.mark.parametrize("component", EXAMPLES, ids=lambda component: component["id"])
def test_a_server_may_have_one(component, tmp_path):
    job_with(component, tmp_path / "job").check()


@pytest.mark.parametrize("component", EXAMPLES, ids=lambda component: component["id"])
def test_a_site_may_not(component, tmp_path):
    job = read_job(ROOT / "jobs" / "hippocampus_fedavg")
    job.client.setdefault("components", []).append(component)
    with pytest.raises(ConfigurationError, match="a component class that fedseg"):
        job.check()


def test_one_inside_another_component_is_refused(tmp_path):
    job = read_job(ROOT / "jobs" / "hippocampus_fedavg")
    job.workflow["aggregator"] = EXAMPLES[0]
    with pytest.raises(ConfigurationError, match="a component class that fedseg"):
        job.check()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "events is missing"),
        ({"events": ["analytix_log_stats"]}, r"events is \['analytix_log_stats'\]"),
        ([], r"args is \[\], but must be an object of arguments"),
    ],
)
def test_wrong_arguments_are_named(args, said, tmp_path):
    with pytest.raises(ConfigurationError, match=said):
        job_with({**EXAMPLES[0], "args": args}, tmp_path / "job").check()


def test_a_simulated_run_is_exported_afterwards(tmp_path, capsys):
    data = make_sites(tmp_path / "data", {"alpha": (2, 1), "beta": (2, 1)})
    job_with(EXAMPLES[0], tmp_path / "job").write(tmp_path / "written")
    assert main(["simulate", str(tmp_path / "written"), "--data", str(data), "--out", str(tmp_path / "out")]) == 2
    assert "fedseg export" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
