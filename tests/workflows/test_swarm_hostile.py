"""A swarm with a hostile server, leader or site: what it cannot do, and what the others say."""

from pathlib import Path

import pytest

from fedseg.contract.protocol import REASON
from fedseg.data.datalist import read_datalist
from fedseg.errors import FedsegError
from fedseg.executors.peers.executor import SwarmExecutor
from fedseg.messages.calls.peer_call import PeerAsk, PeerCall
from fedseg.provenance.swarm.leaders import leader_order
from fedseg.simulation.in_process import InProcessFederation
from fedseg.simulation.local_site import LocalEngine
from fedseg.workflows.peers.rounds import SwarmRounds
from in_process_runs import SITES, tiny_job
from tiny import make_sites

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("data"), SITES)


def federation(data, rounds=1):
    return InProcessFederation(
        tiny_job(JOBS / "hippocampus_swarm", rounds), {site: read_datalist(data / site) for site in SITES}
    )


def peers_of(run):
    return {site: local.runner.find_executor("merge")._peers for site, local in run.local.sites.items()}


def test_the_order_of_leaders_follows_from_the_model_and_not_from_what_the_server_says(data, monkeypatch):
    meta = SwarmRounds._meta
    monkeypatch.setattr(SwarmRounds, "_meta", lambda *told: {**meta(*told), "fedseg_leads_after": "1" * 64})
    run = federation(data)
    run.run_round()
    (order,) = {peers.files.update_of(0).order for peers in peers_of(run).values()}
    assert order == leader_order(run.model.digest_after(-1), 0, SITES) != leader_order("1" * 64, 0, SITES)


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
