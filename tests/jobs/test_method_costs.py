"""The benchmark of costs: with which FedAvg job each job is compared, and the time of a step."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import method_costs  # noqa: E402

from fedseg.errors import ConfigurationError, FedsegError  # noqa: E402
from fedseg.jobs.job import read_job  # noqa: E402

COST = method_costs.Cost(3.0, 1.0, {"site-1": 2.0})
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
    monkeypatch.setattr(method_costs, "counted", lambda job, *given: COST if job is None else counted())
    monkeypatch.setattr(method_costs, "base_of", lambda folder: None)
    assert method_costs.measure([folder], {}, 1, tmp_path) == {
        folder: "| `hippocampus_ditto` | task is 'nothing', but must be a task. | | |"
    }
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(method_costs, "counted", lambda *given: COST)
    measured = method_costs.measure([folder], {}, 1, tmp_path)
    assert measured == {folder: "| `hippocampus_ditto` | 1.00 | 1.00 | 1.00 |"}
    assert [path.suffix for path in tmp_path.rglob("*.json")] == [".json"]


def test_a_job_in_which_something_went_wrong_at_a_site_is_not_measured(monkeypatch):
    class Federation:
        def __init__(self, job, datalists):
            self.events = [{"site": "server", "what": "a remark"}, {"site": "site-2", "what": "update left out: why"}]

        def run(self):
            pass

    monkeypatch.setattr(method_costs, "InProcessFederation", Federation)
    with pytest.raises(FedsegError, match="site-2: update left out: why"):
        method_costs.counted(read_job(ROOT / "jobs" / "hippocampus_ditto"), {})


def test_seconds_are_the_least_of_a_site_and_the_most_of_the_sites(monkeypatch, tmp_path):
    """A run that something else slows down tells nothing, whichever of both it was."""
    fedavg, job = [{"a": 1.0, "b": 2.0}, {"a": 1.5, "b": 8.0}], [{"a": 2.0, "b": 9.0}, {"a": 7.0, "b": 4.0}]
    times = iter([fedavg[0], job[0], fedavg[1], job[1]])
    monkeypatch.setattr(method_costs, "counted", lambda *given: COST._replace(steps=next(times)))
    monkeypatch.setattr(method_costs, "base_of", lambda folder: None)
    folder = ROOT / "jobs" / "hippocampus_ditto"
    # Site b has 2 s with FedAvg and 4 s with the job, more than site a.
    assert method_costs.measure([folder], {}, 2, tmp_path) == {folder: "| `hippocampus_ditto` | 2.00 | 1.00 | 1.00 |"}


def test_jobs_that_are_measured_together_share_a_fedavg_job():
    turns = method_costs.turns(method_costs.one_of_each_method(FOLDERS))
    assert max(map(len, turns)) == method_costs.TURN
    for folders in turns:
        first, *others = (method_costs.base_of(folder).declaration for folder in folders)
        assert all(other == first for other in others)
