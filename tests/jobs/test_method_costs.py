"""The benchmark of costs: with which FedAvg job each job is compared, and how ratios of seconds become one."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import method_costs  # noqa: E402

from fedseg.errors import ConfigurationError, FedsegError  # noqa: E402
from fedseg.jobs.job import read_job  # noqa: E402

FOLDERS = sorted(path.parent for path in (ROOT / "jobs").glob("*/meta.json"))


@pytest.mark.parametrize("task", sorted({method_costs.task_of(folder) for folder in FOLDERS}))
def test_jobs_of_every_task_have_a_fedavg_job_beside_them(task):
    folder = next(folder for folder in FOLDERS if method_costs.task_of(folder) == task)
    base, job = method_costs.base_of(folder), read_job(folder)
    assert base.plan.task.name == job.plan.task.name == task
    assert not base.plan.network.parts


def test_without_a_fedavg_job_of_its_task_a_job_keeps_task_network_and_training(tmp_path):
    folder = shutil.copytree(ROOT / "jobs" / "abdomen_fednorm", tmp_path / "abdomen_fednorm")
    base, job = method_costs.base_of(folder), read_job(folder)
    assert base.plan.task == job.plan.task
    assert base.plan.training == job.plan.training
    assert base.plan.network.arguments == job.plan.network.arguments
    assert (len(job.plan.network.parts), base.plan.network.parts) == (1, ())


def test_a_job_that_cannot_be_measured_has_the_reason_in_its_row_and_is_tried_again(monkeypatch, tmp_path):
    def counted(*given):
        raise ConfigurationError("task", "nothing", "a task")

    folder = ROOT / "jobs" / "hippocampus_ditto"
    monkeypatch.setattr(method_costs, "counted", counted)
    row = method_costs.kept_row(folder, dict, 1, tmp_path)
    assert row == "| `hippocampus_ditto` | task is 'nothing', but must be a task. | | |"
    monkeypatch.setattr(method_costs, "counted", lambda *given: method_costs.Cost(3.0, 1.0, 2.0))
    measured = method_costs.kept_row(folder, dict, 1, tmp_path)
    assert measured == "| `hippocampus_ditto` | 1.00 | 1.00 | 1.00 |"
    monkeypatch.setattr(method_costs, "counted", counted)
    assert method_costs.kept_row(folder, dict, 1, tmp_path) == measured


def test_a_job_in_which_something_went_wrong_at_a_site_is_not_measured(monkeypatch):
    class Federation:
        def __init__(self, job, datalists):
            self.events = [{"site": "server", "what": "a remark"}, {"site": "site-2", "what": "update left out: why"}]

        def run(self):
            pass

    monkeypatch.setattr(method_costs, "InProcessFederation", Federation)
    with pytest.raises(FedsegError, match="site-2: update left out: why"):
        method_costs.counted(read_job(ROOT / "jobs" / "hippocampus_ditto"), {})


def test_seconds_are_the_median_of_ratios_of_runs_in_turns(monkeypatch):
    """A run that something else slows down tells nothing, whichever of both it was."""
    times = iter([1.0, 2.0, 1.0, 9.0, 8.0, 2.0])  # FedAvg, job, FedAvg, job, ...
    monkeypatch.setattr(method_costs, "counted", lambda *given: method_costs.Cost(3.0, 1.0, next(times)))
    monkeypatch.setattr(method_costs, "base_of", lambda folder: None)
    row = method_costs.row(ROOT / "jobs" / "hippocampus_ditto", {}, 3)
    assert row == "| `hippocampus_ditto` | 2.00 | 1.00 | 1.00 |"
    assert method_costs.median_ratio([(1.0, 2.0)]) == 0.5
