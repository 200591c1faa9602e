"""The server's side of statistics: who is asked, which answers count, and what is written."""

import json

import pytest
from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.contract.plan import parse_plan
from fedseg.contract.protocol import COUNT, PREPARE, STATISTICS
from fedseg.errors import ConfigurationError, FedsegError, RefusalError
from fedseg.jobs.job import read_job
from fedseg.statistics.document import parse_document
from fedseg.workflows.federated_statistics import EXECUTOR, FederatedStatistics, _noise
from fedseg.workflows.run.record import RESULTS_FILE, RunRecord
from fedseg.workflows.run.statistics_run import StatisticsRun
from job_kinds import FOLDER
from scripted_sites import ScriptedSites
from statistics_of_tiny import with_spacings
from tiny import PLAN

PARTS = {"a": with_spacings([1.0] * 6), "b": with_spacings([2.0] * 5), "c": with_spacings([3.0] * 7)}

COARSE = {
    **{"cases": 9, "patients": 9, "minimum": 0, "fine": False, "noise": {"variance": 2.0}, "moments": {}},
    **{"histograms": {"spacing: foot-head": [[4, 4, 9.0]]}, "categories": {}},
}


def answers(task, site, message):
    if task == PREPARE:
        return FLModel(metrics={"training": 4, "validation": 1, "test": 0})
    return FLModel(metrics={STATISTICS: PARTS[site].to_dict()})


def run(script, folder, min_sites=1, fine=True, names="abc"):
    sites = ScriptedSites(script, names)
    found = StatisticsRun(parse_plan(PLAN), sites, RunRecord(folder), fine, min_sites)
    found.execute()
    return sites, parse_document(json.loads((folder / RESULTS_FILE).read_text("utf-8"))[STATISTICS], "results")


def test_the_answers_of_all_sites_are_merged(tmp_path):
    sites, found = run(answers, tmp_path)
    assert [task for task, _ in sites.tasks] == [PREPARE, COUNT]
    assert found.sites == PARTS
    assert found.pooled.cases == 18
    assert found.pooled.histograms["spacing: foot-head"].quantile(0.5).value == pytest.approx(2.0)
    assert [pair.sites for pair in found.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found.left_out == {}


REFUSED = {
    "at prepare": (lambda task, site: task == PREPARE, RefusalError("policy", "Too few patients."), "Too few patients"),
    "at count": (lambda task, site: task == COUNT, RefusalError("policy", "Not told."), "Not told"),
    "silent": (lambda task, site: task == COUNT, None, "did not answer"),
    "nonsense": (lambda task, site: task == COUNT, FLModel(metrics={STATISTICS: {"cases": 9}}), "cannot be used"),
    "numbers": (lambda task, site: task == COUNT, FLModel(metrics={"x": 1.0}), "cannot be used"),
}


@pytest.mark.parametrize(("when", "answer", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_a_site_that_tells_nothing_is_named_and_left_out(tmp_path, when, answer, said):
    def script(task, site, message):
        return answer if site == "b" and when(task, site) else answers(task, site, message)

    _, found = run(script, tmp_path, min_sites=2)
    assert set(found.sites) == {"a", "c"}
    assert said in found.left_out["b"]
    assert found.pooled.cases == 13
    with pytest.raises(FedsegError, match=r"but 3 must.*b: "):
        run(script, tmp_path / "again", min_sites=3)
    assert not (tmp_path / "again" / RESULTS_FILE).exists()


@pytest.mark.parametrize(("fine", "kept", "asked"), [(True, "b", "no noise"), (False, "a", "noise")])
def test_of_two_sites_the_one_counts_that_did_what_the_job_asks_for(tmp_path, fine, kept, asked):
    def script(task, site, message):
        found = answers(task, site, message)
        return found if task == PREPARE or site != "a" else FLModel(metrics={STATISTICS: COARSE})

    _, found = run(script, tmp_path, fine=fine, names="ab")
    assert set(found.sites) == {kept}
    (left_out,) = found.left_out.values()
    assert f"The job asks for {asked}, and" in left_out


def test_fine_bins_with_noise_are_nobodys_answer(tmp_path):
    def script(task, site, message):
        odd = {**PARTS["a"].to_dict(), "noise": {"variance": 1.0}}
        return answers(task, site, message) if task == PREPARE else FLModel(metrics={STATISTICS: odd})

    with pytest.raises(FedsegError, match="asks for no noise"):
        run(script, tmp_path)


def test_what_the_job_asks_for_stands_in_the_sites_part():
    executor = {"path": EXECUTOR, "args": {"noise": {"epsilon": 2.0}}}
    assert _noise({"executors": [{"executor": executor}]}).epsilon == 2.0
    assert _noise({"executors": [{"executor": {"path": EXECUTOR}}]}) is None
    for wrong in ([], [{"executor": executor}] * 2, [{"executor": {"path": "other"}}]):
        with pytest.raises(ConfigurationError, match="executors"):
            _noise({"executors": wrong})


def test_without_any_site_the_run_fails(tmp_path):
    with pytest.raises(FedsegError, match=r"0 site\(s\) accepted the job, but 1 must"):
        run(lambda task, site, message: RefusalError("data", "No data."), tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_sites", 0), ("timeout", -1), ("site_silence", 1.5), ("task_check_period", 0), ("run_id", "../x")],
)
def test_wrong_arguments_are_refused(name, value):
    with pytest.raises(ConfigurationError, match=name):
        FederatedStatistics(**{name: value})


@pytest.fixture
def job():
    return read_job(FOLDER / "hippocampus_statistics")


def test_the_job_is_sound(job):
    assert job.check().task.name == "hippocampus"


def test_a_job_of_statistics_with_parts_of_a_training_is_refused(job):
    job.client["executors"][0]["executor"]["path"] = "fedseg.executors.training.SegmentationExecutor"
    with pytest.raises(ConfigurationError, match="StatisticsExecutor"):
        job.check()


def test_its_tasks_must_be_those_of_statistics(job):
    job.client["executors"][0]["tasks"] = ["prepare", "train"]
    with pytest.raises(ConfigurationError, match="'count'"):
        job.check()


def test_filters_over_updates_have_no_place_in_it(job):
    noise = {"path": "fedseg.filters.noise.GaussianNoise", "args": {"clip": 1.0, "noise_multiplier": 1.0}}
    job.client["task_result_filters"] = [{"tasks": ["count"], "filters": [noise]}]
    with pytest.raises(ConfigurationError, match="noise is set in the executor"):
        job.check()


def test_noise_of_the_executor_is_checked_with_the_job(job):
    job.client["executors"][0]["executor"]["args"] = {"noise": {"epsilon": -1}}
    with pytest.raises(ConfigurationError, match=r"noise\.epsilon"):
        job.check()
