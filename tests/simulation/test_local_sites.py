"""Sites in one process: what a run asks of any port, answered by the job's real executors."""

import os
from pathlib import Path

import pytest
from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.contract.protocol import PLAN_DIGEST, PREPARE, RUN_ID
from fedseg.errors import FedsegError
from fedseg.jobs.job import read_job
from fedseg.simulation.local_sites import LocalSites
from fedseg.simulation.run_folder import MARKER, site_environment, start_run
from fedseg.site.profile import DATA_VARIABLE, STATE_VARIABLE
from fedseg.workflows.run.sites import Conversation
from tiny import PLAN, make_sites

SITES = {"beta": (3, 1), "alpha": (2, 1)}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    data = make_sites(out / "data", SITES)
    job = read_job(Path(__file__).parents[2] / "jobs" / "hippocampus_fedavg")
    for key in ("task", "network", "training"):
        job.set(key, PLAN[key])
    start_run(job, out, out / "state", list(SITES))
    sites = LocalSites(out / MARKER, out / "workspace", site_environment(data, out / "state", None), list(SITES))
    sites.run_id, sites.digest = "run", job.plan.digest
    yield sites
    sites.close()


@pytest.fixture
def noted(local):
    found = []
    local.note = lambda site, what: found.append((site, what))
    local.traffic.clear()
    return found


def question(digest):
    return FLModel(metrics={"prepare": 1.0}, meta={PLAN_DIGEST: digest, RUN_ID: "run"})


def test_sites_answer_one_after_the_other_in_the_order_of_their_names(local, noted):
    order = []
    answers = local.ask(
        PREPARE, question(local.digest), ["beta", "alpha"], accept=lambda site, answer: order.append(site)
    )
    assert order == local.connected() == ["alpha", "beta"]
    assert {site: answer.metrics["training"] for site, answer in answers.items()} == {"alpha": 2, "beta": 3}
    assert noted == []
    # The sites are sent the same, but for ids of equal length, and answer with numbers of one digit.
    assert local.traffic["alpha"] == local.traffic["beta"]
    assert all(count > 200 for count in local.traffic["alpha"])


def test_a_refusal_is_noted_with_its_reason(local, noted):
    assert local.ask(PREPARE, question("0" * 64), ["alpha"]) == {}
    ((site, what),) = noted
    assert site == "alpha"
    assert what.startswith("plan: The server's plan differs")


def test_a_task_that_is_sent_is_done_when_somebody_waits(local, noted):
    """First come, first served, as many as are wanted; one that is withdrawn is not done."""
    come = []

    def receive(site, answer):
        come.append(site)
        return True

    withdraw = [local.post(PREPARE, question(local.digest), site, receive) for site in ("beta", "alpha", "beta")]
    assert come == []
    local.wait(lambda: len(come) == 1)
    assert come == ["beta"]
    withdraw[2]()
    withdraw[0]()
    local.wait(lambda: False)
    assert come == ["beta", "alpha"]


def test_an_error_of_the_conversation_ends_it(local, noted):
    def talk(calls):
        raise FedsegError("nothing to say")

    task = PREPARE, question(local.digest), ["alpha"], 0, lambda site, answer: None, "left out"
    with pytest.raises(FedsegError, match="nothing to say"):
        local.converse(Conversation(*task, talk, 1.0))


def test_the_environment_is_the_sites_own(local, noted):
    before = {name: os.environ.get(name) for name in (DATA_VARIABLE, STATE_VARIABLE)}
    with local.surroundings():
        assert os.environ[DATA_VARIABLE].endswith("data")
    assert {name: os.environ.get(name) for name in before} == before
