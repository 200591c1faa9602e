"""Features of adversarial alignment leave where a site's policy says so: what really leaves each simulated site."""

from pathlib import Path

import numpy as np
import pytest
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_constant import ReturnCode

from fedseg.data.datalist import read_datalist
from fedseg.executors import refusals
from fedseg.jobs.job import read_job
from fedseg.privacy.accounting.ledger import Ledger
from fedseg.simulation.in_process import InProcessFederation, simulate_in_process
from fedseg.simulation.results import build_summary
from fedseg.simulation.run_folder import prepare_output
from in_process_runs import answers_of_sites, write_policies
from tiny import PLAN, make_sites

JOB = Path(__file__).parents[2] / "jobs" / "hippocampus_adversarial"
POLICIES = {"gives": {"features": True}, "keeps": {}, "open": None}
NAME = "shared:features/bottleneck"
REFUSAL = "policy: The site's policy, rule features: the job sends activations of this site's images"


def tiny_job(folder=JOB, **settings):
    job = read_job(folder)
    for key in ("task", "network", "training"):
        job.set(key, PLAN[key])
    job.set("workflow.num_rounds", 3)
    for key, value in settings.items():
        job.set(key.replace("__", "."), value)
    return job


def run_job(folder, patch):
    """A run with sites of all policies: its summary, and every answer that left a site."""
    data = make_sites(folder / "data", dict.fromkeys(POLICIES, (2, 1)))
    write_policies(data, POLICIES)
    left = answers_of_sites(patch)
    job = tiny_job()
    job.check()
    prepare_output(folder / "run", False)
    finished = simulate_in_process(job, data, folder / "run", sorted(POLICIES), lambda event: None)
    return build_summary(job, finished, folder / "run" / "state"), left


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    with pytest.MonkeyPatch.context() as patch:
        return folder, *run_job(folder, patch)


def features_that_left(left, site):
    """Of each update, in the order of the rounds."""
    answers = [answer for name, answer in left if name == site and "DXO" in answer]
    contents = [from_shareable(a).data for a in answers if a.get_return_code(ReturnCode.OK) == ReturnCode.OK]
    return [np.asarray(content[NAME]) for content in contents if NAME in content]


def test_without_permission_no_features_leave_and_the_refusal_names_the_rule(run):
    _, summary, left = run
    assert features_that_left(left, "keeps") == []
    (what,) = [event["what"] for event in summary["events"] if event["site"] == "keeps"]
    assert REFUSAL in what
    assert all(set(entry["sites"]) == {"gives", "open"} for entry in summary["rounds"])


@pytest.mark.parametrize("site", ["gives", "open"])
def test_with_permission_they_leave_with_each_update_but_the_last(run, site):
    sent = features_that_left(run[2], site)
    assert [each.shape for each in sent] == [(16, 8)] * 3
    assert [bool(each.any()) for each in sent] == [True, True, False]
    told = [entry["sites"][site].get("discriminator_accuracy") for entry in run[1]["rounds"]]
    assert told[0] is None
    assert all(0 <= value <= 1 for value in told[1:])


@pytest.mark.parametrize("site", ["gives", "open"])
def test_they_stand_in_the_ledger_as_releases_without_a_guarantee(run, site):
    folder, *_ = run
    ledger = Ledger(folder / "run" / "state" / site / "ledger", simulated=True)
    entries = [(entry["what"], entry["round"]) for entry in ledger.history(guaranteed=False)]
    assert [number for what, number in entries if what == "features"] == [0, 1]
    assert [number for what, number in entries if what == "update"] == [0, 1, 2]


def test_the_guard_stops_them_where_the_executor_did_not(tmp_path, monkeypatch):
    monkeypatch.setattr(refusals, "check_features", lambda policy: None)
    summary, left = run_job(tmp_path, monkeypatch)
    assert features_that_left(left, "keeps") == []
    said = [event["what"] for event in summary["events"] if event["site"] == "keeps"]
    assert len(said) == 3
    assert all(REFUSAL in what for what in said)


def test_strength_zero_is_fedavg_to_the_last_bit(tmp_path):
    data = make_sites(tmp_path, {"a": (2, 1), "b": (3, 1)})
    datalists, weights = {site: read_datalist(data / site) for site in ("a", "b")}, []
    for job in (tiny_job(hook__alignment__strength=0), tiny_job(JOB.with_name("hippocampus_fedavg"))):
        federation = InProcessFederation(job, datalists)
        federation.run()
        weights.append(federation.model.weights)
    assert all(np.array_equal(value, weights[1][name]) for name, value in weights[0].items())
