"""What a swarm in one process makes of leaders and sites that fail, and how it is continued."""

from pathlib import Path

import numpy as np
import pytest

from fedseg.data.datalist import read_datalist
from fedseg.errors import FedsegError
from fedseg.executors.peers.blocks import SiteBlocks
from fedseg.executors.peers.executor import SwarmExecutor
from fedseg.simulation import local_sites
from fedseg.simulation.in_process import InProcessFederation, simulate_in_process
from fedseg.simulation.run_folder import prepare_output, prepare_resume
from fedseg.workflows.peers.rounds import SwarmRounds
from in_process_runs import SITES, last_models, simulated, tiny_job
from tiny import make_sites

JOB = Path(__file__).parents[2] / "jobs" / "hippocampus_swarm"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("data"), SITES)


def federation(data, rounds):
    return InProcessFederation(tiny_job(JOB, rounds), {site: read_datalist(data / site) for site in SITES})


def same(one, other):
    return all(np.array_equal(one[name], value) for name, value in other.items())


@pytest.fixture
def away(monkeypatch):
    """The sites that no other site reaches, and that reach none; the server reaches them."""
    found = set()
    bring = local_sites.LocalSites.bring

    def maybe(self, caller, site, topic, request):
        return None if found & {caller, site} else bring(self, caller, site, topic, request)

    monkeypatch.setattr(local_sites.LocalSites, "bring", maybe)
    return found


def test_a_leader_that_is_lost_after_it_merged_loses_no_round(data, monkeypatch):
    plain = federation(data, 1)
    plain.run_round()
    merge, lost = SwarmExecutor._merge, []

    def merge_and_die(self, shareable, fl_ctx):
        answer = merge(self, shareable, fl_ctx)
        if not lost:
            lost.append(fl_ctx.get_identity_name())
            raise MemoryError
        return answer

    monkeypatch.setattr(SwarmExecutor, "_merge", merge_and_die)
    run = federation(data, 1)
    entry = run.run_round()
    assert [entry["swarm"]["leader"]] == lost, "who merged, and not who handed its model out"
    assert sorted(entry["weights"]) == sorted(SITES)
    assert same(run.weights, plain.weights)
    assert [event["site"] for event in run.events] == lost


def test_a_leader_that_fails_once_and_still_answers_the_others_is_asked_again(data, monkeypatch):
    merge, failed = SwarmExecutor._merge, []

    def fail_once(self, shareable, fl_ctx):
        if not failed:
            failed.append(fl_ctx.get_identity_name())
            raise MemoryError
        return merge(self, shareable, fl_ctx)

    monkeypatch.setattr(SwarmExecutor, "_merge", fail_once)
    run = federation(data, 1)
    entry = run.run_round()
    assert [entry["swarm"]["leader"]] == failed
    assert sorted(entry["weights"]) == sorted(SITES)
    others = [event["what"] for event in run.events if event["site"] not in failed]
    assert len(others) == 2
    assert all(f"{failed[0]} leads round 1, and answers this site" in what for what in others)


def test_a_block_that_was_signed_before_its_leader_was_lost_is_finished_by_the_next(data, monkeypatch):
    plain = federation(data, 1)
    plain.run_round()
    signed, lost = SiteBlocks.signed, []

    def die_with_the_signatures(self, proposal, signatures):
        if not lost:
            lost.append(self.ledger.site)
            raise MemoryError
        return signed(self, proposal, signatures)

    monkeypatch.setattr(SiteBlocks, "signed", die_with_the_signatures)
    run = federation(data, 1)
    entry = run.run_round()
    assert [entry["swarm"]["leader"]] == lost
    assert same(run.weights, plain.weights)
    heads = {local.runner.find_executor("train")._peers.blocks.ledger.head for local in run.local.sites.values()}
    assert heads == {entry["swarm"]["block"]}


def test_a_site_that_is_away_for_three_rounds_fetches_the_model_and_takes_part_again(data, away):
    run = federation(data, 6)
    run.run_round()
    away.add("gamma")
    took_part = [sorted(run.run_round()["weights"]) for _ in range(3)]
    assert took_part == [["alpha", "beta"]] * 3
    away.clear()
    for _ in range(2):
        assert sorted(run.run_round()["weights"]) == sorted(SITES)
    answers = {site: local.runner.find_executor("train") for site, local in run.local.sites.items()}
    digest = run.model.digest_after(5)
    assert all(executor.held(digest) is not None for executor in answers.values())


def test_a_site_that_hears_of_no_model_is_given_it_with_the_next_task(data, away, monkeypatch):
    run = federation(data, 2)
    held = SwarmExecutor.held
    run.run_round()
    executor = run.local.sites["beta"].runner.find_executor("train")
    executor._peers.files._remove(0)
    assert held(executor, run.model.digest_after(0)) is None
    assert sorted(run.run_round()["weights"]) == sorted(SITES)


def test_a_run_that_stops_goes_on_to_the_last_bit(data, tmp_path, monkeypatch):
    _, whole = simulated(tiny_job(JOB, 4), data, tmp_path / "whole")
    out, collect = tmp_path / "stopped", SwarmRounds.collect

    def stop(self, run, asked):
        collect(self, run, asked)
        if run.number == 2:
            raise FedsegError("The server stops after the sites have merged, and before it has noted so.")

    with monkeypatch.context() as patch:
        patch.setattr(SwarmRounds, "collect", stop)
        with pytest.raises(FedsegError, match="before it has noted so"):
            simulated(tiny_job(JOB, 4), data, out)
    job = prepare_resume(out, "hippocampus_swarm", None)
    simulate_in_process(job, data, out, sorted(SITES), lambda event: None)
    assert same(last_models(out)["last.safetensors"], whole["last.safetensors"])


def test_a_run_that_cannot_be_merged_says_why_and_keeps_the_model_at_the_sites(data, away, tmp_path):
    away |= set(SITES)
    out = tmp_path / "run"
    prepare_output(out, False)
    with pytest.raises(FedsegError, match=r"none of the 3 site\(s\) that trained could merge.*cannot be reached"):
        simulate_in_process(tiny_job(JOB, 2), data, out, sorted(SITES), lambda event: None)
