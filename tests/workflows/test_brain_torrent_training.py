"""BrainTorrent in one process: versions, what travels, what an initiator that fails changes, and what is left."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedseg.cli import main
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.executors.peers.exchange import SumOfModels
from fedseg.executors.peers.torrent_executor import BrainTorrentExecutor
from fedseg.files.arrays import read_arrays
from fedseg.files.digest import model_digest
from fedseg.filters.share_fraction import ShareFraction
from fedseg.jobs.job import read_job
from fedseg.messages.calls.peer_call import PeerAsk, PeerCall, read_peer_call
from fedseg.simulation import local_sites
from fedseg.simulation.in_process import InProcessFederation, simulate_in_process
from fedseg.simulation.results import build_summary
from fedseg.simulation.run_folder import prepare_output, prepare_resume
from fedseg.workflows.peers.turns import OwnModels, Turn, parse_turn
from in_process_runs import SITES, answers_of_sites, holds_arrays, last_models, simulated, tiny_job, write_policies
from tiny import make_sites

JOBS = Path(__file__).parents[2] / "jobs"
JOB = JOBS / "hippocampus_braintorrent"
EQUAL = dict.fromkeys(SITES, (2, 1))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("data"), SITES)


def federation(data, rounds=4, job=None, **settings):
    job = job or tiny_job(JOB, rounds)
    for key, value in settings.items():
        job.set(key.replace("__", "."), value)
    return InProcessFederation(
        job, {path.name: read_datalist(path) for path in sorted(data.iterdir()) if path.is_dir()}
    )


def executor(run, site):
    return run.local.sites[site].runner.find_executor("train")


def own_model(run, site):
    return executor(run, site).held(run.model.own_models()[site])


class Passed(list):
    """Calls between sites; ``away`` are sites that nobody reaches."""

    def __init__(self):
        super().__init__()
        self.away = set()


@pytest.fixture
def passed(monkeypatch):
    """All calls between sites, as caller, site, ask, and the answer."""

    found, bring = Passed(), local_sites.LocalSites.bring

    def heard(self, caller, site, topic, request):
        reply = None if found.away & {caller, site} else bring(self, caller, site, topic, request)
        found.append((caller, site, request["fedseg_peer"]["ask"], reply))
        return reply

    monkeypatch.setattr(local_sites.LocalSites, "bring", heard)
    return found


def models_of(passed):
    """Caller and site of each model that travelled."""
    return [
        (caller, site)
        for caller, site, ask, reply in passed
        if ask == "model" and reply is not None and "fedseg_peer" in reply and reply["fedseg_peer"]["arrays"]
    ]


def test_one_exchange_of_newer_models_of_equal_weight_is_federated_averaging(tmp_path):
    data = make_sites(tmp_path / "data", EQUAL)
    averaged = federation(data, job=tiny_job(JOBS / "hippocampus_fedavg", 2))
    averaged.run_round()
    run, merged = federation(data, 2), []
    run.run_round()
    before = {site: own_model(run, site) for site in SITES}
    entry = run.run_round()
    (turn,) = entry["turns"]
    assert sorted({turn["initiator"], *turn["taken"]}) == sorted(SITES)
    total = SumOfModels(executor(run, "alpha").exchange.start)
    for site, weights in before.items():
        total.add(site, 2, weights)
    merged = total.mean()
    for name, value in averaged.weights.items():
        assert np.abs(merged[name] - value).max(initial=0) <= 1e-6, name
    # The very model from which the initiator has trained, as its record and that of the server say.
    record = executor(run, turn["initiator"]).session.folder / "record.jsonl"
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["model"] for line in lines if line["kind"] == "received"][-1] == model_digest(merged)


def test_the_mean_of_models_is_that_of_a_slow_loop_by_cases():
    draw = np.random.default_rng(3)
    models = {
        site: {"w": draw.normal(size=(3, 2)).astype(np.float32), "n": np.array(site_cases)}
        for site, site_cases in (("a", 1), ("b", 4), ("c", 7))
    }
    total = SumOfModels({"w": np.zeros((3, 2), np.float32), "n": np.array(0)})
    for site, model in models.items():
        total.add(site, int(model["n"]), model)
    expected = [
        [sum(float(m["w"][i, j]) * int(m["n"]) for m in models.values()) / 12 for j in range(2)] for i in range(3)
    ]
    np.testing.assert_allclose(total.mean()["w"], expected, rtol=1e-7)
    assert total.mean()["n"] == 0
    with pytest.raises(RefusalError, match="without training cases"):
        total.add("d", 0, models["a"])


def test_models_that_are_not_newer_do_not_travel(data, passed):
    run = federation(data, 6)
    size = 0
    for _ in range(6):
        del passed[:]
        before = {site: version for site, (_, version) in run.model.now.items()}
        known = {} if not run.rounds else {site: versions(run, site).known for site in SITES}
        entry = run.run_round()
        if entry["round"] == 0:
            assert not models_of(passed)
            continue
        (turn,) = entry["turns"]
        site = turn["initiator"]
        newer = {peer for peer, version in before.items() if peer != site and version > known[site].get(peer, 0)}
        assert set(turn["taken"]) == newer == {peer for _, peer in models_of(passed)}
        size = size or sum(value.nbytes for value in own_model(run, site).values())
        for peer in set(SITES) - {site}:
            received = turn["bytes"][peer][0]
            assert received > size if peer in newer else received < 3000
        assert turn["version"] == before[site] + 1
        assert entry["versions"] == {**before, site: turn["version"]}
    digest, version = run.model.now["alpha"]
    call = PeerCall(PeerAsk.MODEL, run.run_id, -1, {"digest": digest, "known": version})
    with run.local.surroundings(), pytest.raises(RefusalError, match="no newer model"):
        executor(run, "alpha").peers.answer("beta", call)


def versions(run, site):
    return executor(run, site).exchange.own(run.model.own_models()[site])[1]


def test_an_initiator_that_dies_has_changed_nothing_and_the_next_one_goes_on(data, monkeypatch):
    run = federation(data, 4)
    run.run_round()
    before, keep, dead = {site: versions(run, site) for site in SITES}, BrainTorrentExecutor._keep, []

    def die(self, number, update):
        dead.append(self.exchange.site)
        if len(dead) == 1:
            raise MemoryError
        return keep(self, number, update)

    monkeypatch.setattr(BrainTorrentExecutor, "_keep", die)
    entry = run.run_round()
    first, second = dead
    assert [turn["initiator"] for turn in entry["turns"]] == [second]
    assert versions(run, first) == before[first]
    assert [event["site"] for event in run.events] == [first]
    assert run.run_round()["turns"]


def test_a_peer_that_nobody_reaches_stops_nobody(data, passed):
    run = federation(data, 3)
    run.run_round()
    passed.away.add("beta")
    (turn,) = run.run_round()["turns"]
    others = {"alpha", "gamma"} if turn["initiator"] != "beta" else {"beta"}
    assert {turn["initiator"], *turn["taken"]} == others
    assert all("cannot be reached" in event["what"] for event in run.events)
    passed.away.clear()
    assert run.run_round()["turns"]


def test_a_site_that_comes_late_starts_from_the_models_of_its_peers_alone(data, monkeypatch):
    train, late = BrainTorrentExecutor.train, ["gamma"]

    def absent(self, shareable, fl_ctx):
        if fl_ctx.get_identity_name() in late:
            raise MemoryError
        return train(self, shareable, fl_ctx)

    monkeypatch.setattr(BrainTorrentExecutor, "train", absent)
    run = federation(data, 3)
    run.run_round()
    assert sorted(run.model.own_models()) == ["alpha", "beta"]
    total = SumOfModels(executor(run, "alpha").exchange.start)
    for site in ("alpha", "beta"):
        total.add(site, SITES[site][0], own_model(run, site))
    late.clear()
    exchange = executor(run, "gamma").exchange
    with run.local.surroundings():
        offers = {site: digest for site, digest, _ in run.model.offers(sorted(SITES))}
        own, known = exchange.own(offers["gamma"])
        merge = exchange.merge(own, known, offers, 10.0)
    assert all(np.array_equal(merge.weights[name], value) for name, value in total.mean().items())
    turns = {turn["initiator"]: turn for turn in run.run_round()["turns"]}
    assert turns["gamma"]["taken"] == {"alpha": 1, "beta": 1}


def test_the_run_leaves_a_model_of_each_site_scored_at_home_and_elsewhere_and_none_at_the_server(data, tmp_path):
    out = tmp_path / "run"
    summary, models = simulated(tiny_job(JOB, 4), data, out)
    assert sorted(models) == [f"last-{site}.safetensors" for site in sorted(SITES)]
    final, matrix = summary["final"], summary["cross_site_evaluation"]
    assert sorted(final["own_models"]) == sorted(final["sites"]) == sorted(SITES)
    home = [final["sites"][site]["dice"]["mean"] for site in sorted(SITES)]
    assert final["mean_dice"] == pytest.approx(sum(home) / 3)
    assert [row["of"] for row in matrix["models"]] == sorted(SITES)
    assert list((out / "workspace" / "server").rglob("*.safetensors")) == []
    assert main(["audit-log", "verify", str(out)]) == 0, "the records of sites and server do not agree"
    (out / "report" / "summary.json").write_text(json.dumps(summary))
    assert main(["report", str(out)]) == 0
    page = (out / "report" / "report.html").read_text("utf-8")
    assert "Turns of sites" in page
    assert "Bytes between each pair of sites" in page
    for path in (out / "state" / "server").rglob("*.safetensors"):
        assert set(read_arrays(path)[1]) <= {"values"}


def test_no_array_leaves_a_site_for_the_server(data, monkeypatch):
    left = answers_of_sites(monkeypatch)
    run = federation(data, 2)
    run.run()

    assert len(left) >= 7
    assert [site for site, answer in left if holds_arrays(answer)] == []


def with_filter(name, rounds, restored=False, **arguments):
    job = tiny_job(JOB, rounds)
    job.client["task_result_filters"] = [{"tasks": ["train"], "filters": [{"path": name, "args": arguments}]}]
    job.set("workflow.cross_site", False)
    if restored:
        restore = {"path": "fedseg.filters.restore.RestoreUpdate", "args": {}}
        job.server["task_result_filters"] = [{"tasks": ["train"], "direction": "in", "filters": [restore]}]
    return job


def test_with_partial_sharing_a_site_gives_others_the_shared_part_of_its_training_alone(data, passed):
    path = f"{ShareFraction.__module__}.{ShareFraction.__name__}"
    run = federation(data, job=with_filter(path, 2, restored=True, fraction=0.1))
    run.run_round()
    start = executor(run, "alpha").exchange.start
    run.run_round()
    gone = [arrays_of(reply) for _, _, ask, reply in passed if ask == "model"]
    total = sum(value.size for value in start.values())
    assert len(gone) == 2
    for arrays in gone:
        moved = sum(int((arrays[name] != value).sum()) for name, value in start.items())
        assert 0 < moved < 0.12 * total


def arrays_of(reply):
    return read_peer_call(reply).arrays


def test_noise_is_charged_before_a_model_leaves_and_is_in_what_leaves(data, passed):
    gaussian = "fedseg.filters.noise.GaussianNoise"
    run = federation(data, job=with_filter(gaussian, 2, clip=1.0, noise_multiplier=1.0))
    entry = run.run_round()
    assert all(part["epsilon"] > 0 for part in entry["sites"].values())
    for site, local in run.local.sites.items():
        assert list((local.trainer.state.folder.parent / "ledger").rglob("*")), site
    trained = {site: local.trainer.state.load(2**31)["network"] for site, local in run.local.sites.items()}
    run.run_round()
    left = {site: arrays_of(reply) for _, site, ask, reply in passed if ask == "model"}
    assert left
    for site, arrays in left.items():
        apart = [np.abs(arrays[name] - value.cpu().numpy()).max(initial=0) for name, value in trained[site].items()]
        assert max(apart) > 1e-3


def test_a_policy_that_does_not_name_peers_keeps_the_site_out(data, tmp_path):
    copied = shutil.copytree(data, tmp_path / "data")
    write_policies(copied, {"alpha": {"events": True}, "beta": {"peers": True}, "gamma": {"peers": True}})
    summary, _ = simulated(tiny_job(JOB, 2), copied, tmp_path / "run")
    assert sorted(summary["rounds"][0]["sites"]) == ["beta", "gamma"]
    said = [event["what"] for event in summary["events"] if event["site"] == "alpha"]
    assert any("rule peers" in what and "gives them to no other site" in what for what in said)


def test_a_policy_that_takes_peers_back_lets_no_model_out(data, tmp_path, passed):
    copied = shutil.copytree(data, tmp_path / "data")
    write_policies(copied, {site: {"peers": True} for site in SITES})
    job = tiny_job(JOB, 3)
    prepare_output(tmp_path / "run", False)

    def forbid(event):
        if event["event"] == "round_done" and event["round"] == 0:
            write_policies(copied, {site: {"events": True} for site in ("beta", "gamma")})

    result = simulate_in_process(job, copied, tmp_path / "run", sorted(SITES), forbid)
    rounds = build_summary(job, result, tmp_path / "run" / "state")["rounds"]
    turns = [turn for entry in rounds[1:] for turn in entry["turns"]]
    assert [(turn["initiator"], turn["taken"]) for turn in turns] == [("alpha", {})] * 2
    assert models_of(passed) == []
    assert sorted(last_models(tmp_path / "run")) == ["last-alpha.safetensors"]


def test_a_stopped_run_goes_on_to_the_same_models(data, tmp_path):
    whole = simulated(tiny_job(JOB, 4), data, tmp_path / "whole")[1]
    out, stop = tmp_path / "stopped", RuntimeError("stop")
    prepare_output(out, False)

    def stopping(event):
        if event["event"] == "round" and event["round"] == 2:
            raise stop

    with pytest.raises(Exception):  # noqa: B017 - whatever the run makes of it
        simulate_in_process(tiny_job(JOB, 4), data, out, sorted(SITES), stopping)
    job = prepare_resume(out, JOB.name, None)
    simulate_in_process(job, data, out, sorted(SITES), lambda event: None)
    for name, weights in last_models(out).items():
        assert all(np.array_equal(whole[name][key], value) for key, value in weights.items()), name


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("aggregator", {"path": "fedseg.aggregators.fedavg.FedAvg"}),
        ("server_optimizer", {"path": "fedseg.aggregators.server_optimizers.FedAdam"}),
        ("keep_updates", True),
        ("personal_models", True),
        ("model_average", 0.5),
        ("peer_timeout", 0),
        ("target_dice", 0.9),
    ],
)
def test_what_has_no_meaning_is_refused(argument, value):
    job = read_job(JOB)
    job.set(f"workflow.{argument}", value)
    with pytest.raises(ConfigurationError):
        job.check()


def test_an_account_of_a_turn_that_cannot_be_is_refused():
    model = OwnModels()
    model.models = [{"a": ["0" * 64, 1], "b": ["1" * 64, 2]}]
    good = {
        "received": "2" * 64,
        "digest": "3" * 64,
        "version": 2,
        "taken": {"b": 2},
        "missing": {},
        "bytes": {"b": [9, 9]},
    }
    model.check_turn("a", parse_turn(good), ["a", "b"])
    for change in ({"version": 3}, {"version": 1}, {"taken": {"b": 1}}, {"taken": {"c": 1}}, {"taken": {"a": 1}}):
        with pytest.raises(RefusalError, match=r"version|merged"):
            model.check_turn("a", parse_turn({**good, **change}), ["a", "b"])
    for change in ({"digest": "short"}, {"bytes": {"b": [1]}}, {"version": -1}, {"taken": None}):
        with pytest.raises(RefusalError, match="cannot be read"):
            parse_turn({**good, **change})
    assert isinstance(parse_turn(good), Turn)
