"""A swarm with a hostile server, leader or site: what it cannot do, and what the others say."""

import shutil
from pathlib import Path

import pytest

from fedseg.contract.protocol import REASON, TEXT
from fedseg.data.datalist import read_datalist
from fedseg.errors import FedsegError, RefusalError
from fedseg.executors.peers import leading
from fedseg.executors.peers.answers import PeerAnswers
from fedseg.executors.peers.executor import SwarmExecutor
from fedseg.messages.calls.peer_call import PeerAsk, PeerCall
from fedseg.simulation.in_process import InProcessFederation
from fedseg.simulation.local_site import LocalEngine
from in_process_runs import SITES, simulated, tiny_job, write_policies
from tiny import make_sites

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("data"), SITES)


def federation(data, rounds=1):
    return InProcessFederation(
        tiny_job(JOBS / "hippocampus_swarm", rounds), {site: read_datalist(data / site) for site in SITES}
    )


def test_a_job_in_which_the_server_gives_a_site_the_place_of_another_is_refused(data, monkeypatch):
    know = LocalEngine.know

    def lie(self, names):
        know(self, names)
        self.name_to_clients["beta"].set_fqcn("gamma")

    monkeypatch.setattr(LocalEngine, "know", lie)
    with pytest.raises(FedsegError, match="puts the site beta at gamma"):
        federation(data)


def test_a_job_without_mutual_tls_is_refused_when_it_is_loaded(data, monkeypatch):
    monkeypatch.setattr(SwarmExecutor, "_sealed", lambda self: True)
    with pytest.raises(FedsegError, match="does not use mutual TLS"):
        federation(data)


def test_no_call_is_answered_without_mutual_tls(data, monkeypatch):
    run = federation(data)
    monkeypatch.setattr(SwarmExecutor, "_sealed", lambda self: True)
    site = run.local.sites["alpha"]
    call = PeerCall(PeerAsk.STATE, run.run_id, 0).to_shareable()
    answer = site.runner.find_executor("merge")._answer_call(site.engine, "beta", call)
    assert (answer.get_header(REASON), "fedseg_peer" in answer) == ("privacy", False)


def test_a_call_that_fails_is_answered_with_a_sentence_that_tells_nothing_of_the_site(data, monkeypatch):
    def fail(self, caller, call):
        raise OSError("/data/patient-7.nii.gz")

    run = federation(data)
    monkeypatch.setattr(PeerAnswers, "answer", fail)
    site = run.local.sites["alpha"]
    call = PeerCall(PeerAsk.STATE, run.run_id, 0).to_shareable()
    answer = site.runner.find_executor("merge")._answer_call(site.engine, "beta", call)
    assert answer.get_header(TEXT) == "The site could not answer the call. Its log says why."


def test_an_update_that_breaks_the_leader_is_left_out_and_the_round_goes_on(data, monkeypatch):
    run = federation(data)
    broken = run_with_broken_check(monkeypatch)
    entry = run.run_round()
    assert sorted(entry["weights"]) == sorted(set(SITES) - broken)
    said = [event["what"] for event in run.events if event["site"] in broken]
    assert any("update left out: it cannot be used" in what for what in said)


def run_with_broken_check(monkeypatch):
    """The first update of another site makes the leader's check fail with an error that nobody expected."""
    check, broken = leading.restore, set()

    def fail(*told):
        raise KeyError("unexpected")

    accept = leading.Leading._accept

    def accept_with_fault(self, site, *told):
        if site != self.answers.site and not broken:
            broken.add(site)
        monkeypatch.setattr(leading, "restore", fail if site in broken else check)
        accept(self, site, *told)

    monkeypatch.setattr(leading.Leading, "_accept", accept_with_fault)
    return broken


def test_the_words_of_a_site_cannot_make_the_leaders_guard_withhold_its_account(data, tmp_path, monkeypatch):
    refuses, update = [], PeerAnswers._update

    def named(self, caller, call):
        if not refuses:
            refuses.append(self.site)
        if self.site in refuses:
            raise RefusalError("state", "/srv/data/patient-7.nii.gz is missing.")
        return update(self, caller, call)

    monkeypatch.setattr(PeerAnswers, "_update", named)
    copied = shutil.copytree(data, tmp_path / "data")
    write_policies(copied, {site: {"peers": True} for site in SITES})
    summary, _ = simulated(tiny_job(JOBS / "hippocampus_swarm", 1), copied, tmp_path / "run")
    (silent,) = refuses
    assert sorted(summary["rounds"][0]["weights"]) == sorted(set(SITES) - {silent})
    said = {site: [e["what"] for e in summary["events"] if e["site"] == site] for site in SITES}
    assert any("in words that this site does not pass on" in what for what in said[silent])
    assert not any("patient-7" in what for words in said.values() for what in words)
    assert not any(said[site] for site in SITES if site != silent)
