"""A swarm in one process: equal to the server's own averaging, and without a model at the server."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedseg.cli import main
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError, FedsegError, RefusalError
from fedseg.executors.peers.executor import SwarmExecutor
from fedseg.files.arrays import read_arrays
from fedseg.jobs.job import read_job
from fedseg.messages.calls.peer_call import PeerAsk, PeerCall
from fedseg.messages.replies import refusal
from fedseg.provenance.swarm.audit import read_copy
from fedseg.provenance.swarm.ledger import LEDGER_FILE
from fedseg.simulation import local_sites
from fedseg.simulation.in_process import InProcessFederation
from in_process_runs import SITES, answers_of_sites, holds_arrays, simulated, tiny_job, write_policies
from tiny import make_sites

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("data"), SITES)


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return {
        name: simulated(tiny_job(JOBS / name, 3), data, out / name)
        for name in ("hippocampus_fedavg", "hippocampus_swarm")
    }, out


def test_a_swarm_by_weighted_mean_is_federated_averaging_to_the_last_bit(runs):
    (one, plain), (other, swarm) = runs[0]["hippocampus_fedavg"], runs[0]["hippocampus_swarm"]
    assert {name: value.tobytes() for name, value in plain["last.safetensors"].items()} == {
        name: value.tobytes() for name, value in swarm["last.safetensors"].items()
    }
    assert one["final"]["mean_dice"] == other["final"]["mean_dice"]
    assert [entry["weights"] for entry in one["rounds"]] == [entry["weights"] for entry in other["rounds"]]


def test_every_site_has_the_model_and_the_server_none(runs):
    summary, out = runs[0]["hippocampus_swarm"][0], runs[1] / "hippocampus_swarm"
    kept = [set((out / "state" / site / summary["run_id"]).glob("last.safetensors")) for site in SITES]
    assert all(kept)
    assert list((out / "workspace" / "server").rglob("*.safetensors")) == []
    for path in (out / "state" / "server").rglob("*.safetensors"):
        assert set(read_arrays(path)[1]) == {"values"}


def test_the_report_says_who_led(runs):
    rounds = runs[0]["hippocampus_swarm"][0]["rounds"]
    assert all(entry["swarm"]["leader"] in SITES for entry in rounds)
    assert all(entry["swarm"]["takers"] == sorted(SITES) for entry in rounds)


def test_no_array_leaves_a_site_for_the_server(data, monkeypatch):
    left = answers_of_sites(monkeypatch)
    datalists = {site: read_datalist(data / site) for site in SITES}
    InProcessFederation(tiny_job(JOBS / "hippocampus_swarm"), datalists).run_round()

    assert len(left) >= 7
    assert [site for site, answer in left if holds_arrays(answer)] == []


def cut_off(monkeypatch, reachable):
    """Calls between sites arrive only where ``reachable`` says so, of caller, site and ask."""
    bring = local_sites.LocalSites.bring

    def maybe(self, caller, site, topic, request):
        return (
            bring(self, caller, site, topic, request)
            if reachable(caller, site, request["fedseg_peer"]["ask"])
            else None
        )

    monkeypatch.setattr(local_sites.LocalSites, "bring", maybe)


def federation(data, rounds=3, **settings):
    job = tiny_job(JOBS / "hippocampus_swarm", rounds)
    for key, value in settings.items():
        job.set(key.replace("__", "."), value)
    return InProcessFederation(job, {site: read_datalist(data / site) for site in SITES})


def test_the_next_site_leads_where_the_first_cannot_be_reached_and_the_round_is_not_lost(data, monkeypatch):
    away, merge = set(), SwarmExecutor._merge

    def be_cut_off(self, shareable, fl_ctx):
        away.update([] if away else [fl_ctx.get_identity_name()])
        return merge(self, shareable, fl_ctx)

    monkeypatch.setattr(SwarmExecutor, "_merge", be_cut_off)
    cut_off(monkeypatch, lambda caller, site, ask: not away & {caller, site})
    run = federation(data)
    entry, (first,) = run.run_round(), away
    assert entry["swarm"]["leader"] != first
    assert sorted(entry["weights"]) == sorted(set(SITES) - {first})
    monkeypatch.setattr(SwarmExecutor, "_merge", merge)
    away.clear()
    # It is back, and has fetched the model from another site.
    assert sorted(run.run_round()["weights"]) == sorted(SITES)


def test_nobody_leads_past_a_site_that_answers(data, monkeypatch):
    run = federation(data)
    monkeypatch.setattr(SwarmExecutor, "_merge", lambda *task: refusal("state", "Not now."))
    with pytest.raises(FedsegError, match="could merge"):
        run.run_round()
    answers = {site: local.runner.find_executor("merge")._peers for site, local in run.local.sites.items()}
    order = answers["alpha"].blocks.order(0, SITES)
    first, _, third = (answers[site] for site in order)
    head = {"head": first.blocks.ledger.head}
    with run.local.surroundings():
        with pytest.raises(RefusalError, match=f"{order[0]} leads round 1, and answers this site"):
            third.answer(order[1], PeerCall(PeerAsk.UPDATE, run.run_id, 0, head))
        given = third.answer(order[0], PeerCall(PeerAsk.UPDATE, run.run_id, 0, head))
    assert given.arrays
    with pytest.raises(RefusalError, match="has not given its update"):
        third.answer(order[1], PeerCall(PeerAsk.TAKE, run.run_id, 0, {"token": given.facts["token"]}, first.start))
    with pytest.raises(RefusalError, match="has not given its update"):
        third.answer(order[0], PeerCall(PeerAsk.TAKE, run.run_id, 0, {"token": "0" * 32}, first.start))


def test_a_policy_that_does_not_name_peers_lets_nothing_go_to_other_sites(data, tmp_path, monkeypatch):
    copied = shutil.copytree(data, tmp_path / "data")
    write_policies(copied, {"alpha": {"events": True}, "beta": {"peers": True}, "gamma": {"peers": True}})
    summary, _ = simulated(tiny_job(JOBS / "hippocampus_swarm"), copied, tmp_path / "run")
    assert sorted(summary["rounds"][0]["weights"]) == ["beta", "gamma"]
    said = [event["what"] for event in summary["events"] if event["site"] == "alpha"]
    assert any("rule peers" in what and "gives them to no other site" in what for what in said)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("fedseg.aggregators.fedcostwavg.FedCostWAvg", "a rule that remembers nothing of former rounds"),
        ("fedseg.aggregators.fedpidavg.FedPIDAvg", "a rule that remembers nothing of former rounds"),
    ],
)
def test_a_rule_that_remembers_is_refused(rule, why):
    job = read_job(JOBS / "hippocampus_swarm")
    job.set("workflow.aggregator", {"path": rule})
    with pytest.raises(ConfigurationError, match=why):
        job.check()


def corrupt(site, number, update):
    return {name: value * -10 for name, value in update.items()} if site == "epsilon" else update


def moved_by_the_corrupt_site(rule, datalists):
    """How far one site of five moves the last model, as a norm."""
    models = []
    for changed in (None, corrupt):
        job = tiny_job(JOBS / "hippocampus_swarm", 2)
        job.set("workflow.aggregator", {"path": f"fedseg.aggregators.{rule}"})
        run = InProcessFederation(job, datalists, tamper=changed)
        run.run()
        models.append(run.weights)
    return sum(float(np.square(models[1][name] - value).sum()) for name, value in models[0].items()) ** 0.5


def test_one_of_five_corrupt_sites_moves_the_medians_of_a_swarm_little_and_its_mean_far(tmp_path):
    names = ("alpha", "beta", "gamma", "delta", "epsilon")
    found = make_sites(tmp_path / "data", dict.fromkeys(names, (3, 1)))
    datalists = {site: read_datalist(found / site) for site in names}
    far = moved_by_the_corrupt_site("fedavg.FedAvg", datalists)
    for rule in ("robust.GeometricMedian", "robust.CoordinateMedian"):
        assert 0 < moved_by_the_corrupt_site(rule, datalists) < far / 4, rule


def with_filter(name, restored, **arguments):
    job = tiny_job(JOBS / "hippocampus_swarm", 1)
    chain = [{"path": name, "args": arguments}]
    job.client["task_result_filters"] = [{"tasks": ["train"], "filters": chain}]
    if restored:
        restore = {"path": "fedseg.filters.restore.RestoreUpdate", "args": {}}
        job.server["task_result_filters"] = [{"tasks": ["train"], "direction": "in", "filters": [restore]}]
    return job


def test_a_part_of_the_update_is_all_that_goes_to_the_leader(data, monkeypatch):
    passed = []
    bring = local_sites.LocalSites.bring

    def heard(self, caller, site, topic, request):
        reply = bring(self, caller, site, topic, request)
        passed.append((request["fedseg_peer"]["ask"], reply))
        return reply

    monkeypatch.setattr(local_sites.LocalSites, "bring", heard)
    job = with_filter("fedseg.filters.share_fraction.ShareFraction", True, fraction=0.1)
    run = InProcessFederation(job, {site: read_datalist(data / site) for site in SITES})
    run.run_round()
    total = sum(value.size for value in run.weights.values())
    updates = [reply["fedseg_peer"]["arrays"] for ask, reply in passed if ask == "update"]
    assert len(updates) == 2
    for arrays in updates:
        assert 0 < len(arrays["values"][2]) // 4 < 0.12 * total
    assert all(
        step["filter"] == "ShareFraction" for part in run.rounds[0]["sites"].values() for step in part["privacy"]
    )


def test_noise_is_charged_to_each_sites_ledger_before_its_update_goes_to_the_leader(data):
    arguments = {"clip": 1.0, "noise_multiplier": 1.0}
    job = with_filter("fedseg.filters.noise.GaussianNoise", False, **arguments)
    run = InProcessFederation(job, {site: read_datalist(data / site) for site in SITES})
    run.run_round()
    assert all(part["epsilon"] > 0 for part in run.rounds[0]["sites"].values())
    for site, local in run.local.sites.items():
        assert list((local.trainer.state.folder.parent / "ledger").rglob("*")), site


def test_too_few_updates_fail_the_round(data):
    def broken(site, number, update):
        return {name: value * np.nan for name, value in update.items()} if site == "beta" else update

    job = tiny_job(JOBS / "hippocampus_swarm")
    job.set("workflow.min_peers", 3)
    run = InProcessFederation(job, {site: read_datalist(data / site) for site in SITES}, tamper=broken)
    with pytest.raises(FedsegError, match=r"2 update\(s\) of round 1 came together, but 3 must"):
        run.run_round()


def test_more_signatures_than_there_are_sites_are_refused(data):
    with pytest.raises(FedsegError, match=r"asks for 4 sites that sign .*, but has 3"):
        federation(data, workflow__min_peers=4)


def test_the_ledgers_of_all_sites_agree_and_say_what_the_run_says(runs, capsys):
    out, summary = runs[1] / "hippocampus_swarm", runs[0]["hippocampus_swarm"][0]
    copies = [out / "state" / site / summary["run_id"] / LEDGER_FILE for site in SITES]
    assert main(["audit-log", "verify", *map(str, copies)]) == 0, capsys.readouterr().out
    read = [read_copy(copy) for copy in copies]
    assert len({copy.head for copy in read}) == 1
    blocks = [signed.block for signed in read[0].blocks]
    assert [(block.round, block.leader, block.digest) for block in blocks] == [
        (entry["round"], entry["swarm"]["leader"], entry["swarm"]["block"]) for entry in summary["rounds"]
    ]
    assert all(len(signed.signatures) == 3 for signed in read[0].blocks)
    assert [sorted(block.parts) for block in blocks] == [sorted(SITES)] * 3


def test_the_records_of_sites_tell_what_was_handed_to_whom(runs):
    out, summary = runs[1] / "hippocampus_swarm", runs[0]["hippocampus_swarm"][0]
    leader = summary["rounds"][0]["swarm"]["leader"]
    for site in SITES:
        record = out / "state" / site / summary["run_id"] / "record.jsonl"
        lines = [json.loads(line) for line in record.read_text().splitlines()]
        handed = [line for line in lines if line["kind"] == "handed" and line["round"] == 0]
        assert [line["to"] for line in handed] == ([] if site == leader else [leader])
