"""Every job trains: its rule, objective, optimizer and selection, two rounds on tiny images in one process."""

from pathlib import Path

import numpy as np
import pytest

from fedseg.data.datalist import read_datalist
from fedseg.errors import DataError, FedsegError, UsageError
from fedseg.jobs.job import read_job
from fedseg.models.model_file import write_model
from fedseg.privacy.accounting.epsilon import Release
from fedseg.privacy.accounting.ledger import Ledger
from fedseg.simulation.in_process import InProcessFederation
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
ALL = {path.parent: read_job(path.parent) for path in sorted((ROOT / "jobs").glob("*/meta.json"))}
JOBS = [
    folder
    for folder, job in ALL.items()
    if not job.build_workflow().protocol.encrypts
    and job.plan.split is None
    and not job.server["workflows"][0]["path"].endswith("CyclicTraining")
]
SITES = {"alpha": (4, 1), "beta": (2, 1), "gamma": (2, 1)}


@pytest.fixture(scope="module")
def datalists(tmp_path_factory):
    data = make_sites(tmp_path_factory.mktemp("data"), SITES)
    return {site: read_datalist(data / site) for site in SITES}


def tiny_job(folder, rounds=2):
    """The job with its own rule and training settings on a tiny task."""
    job = read_job(folder)
    for key in ("task", "network"):
        job.set(key, PLAN[key])
    job.set("workflow.num_rounds", rounds)
    return job


@pytest.mark.parametrize("folder", JOBS, ids=lambda folder: folder.name)
def test_every_job_trains_and_is_seeded(folder, datalists):
    federations = [InProcessFederation(tiny_job(folder), datalists) for _ in range(2)]
    start = {name: value.copy() for name, value in federations[0].model.weights.items()}
    for federation in federations:
        federation.run()
        assert federation.events == []
        assert len(federation.rounds) == 2
    first, second = (federation.model.weights for federation in federations)
    assert any(not np.array_equal(first[name], start[name]) for name in start)
    for name in start:
        np.testing.assert_array_equal(first[name], second[name])
    for entry in federations[0].rounds:
        if entry["weights"]:
            assert sum(entry["weights"].values()) == pytest.approx(1)
        assert set(entry["selection"]) == set(SITES)
    assert 0 <= federations[0].evaluate(distances=False)["pooled_dice"] <= 1


def test_jobs_that_need_a_server_of_their_own_say_where_they_run(datalists):
    others = [folder for folder in ALL if folder not in JOBS]
    assert others
    for folder in others:
        with pytest.raises(UsageError, match=r"jobs (of [a-z ]+)?run with `fedseg simulate`"):
            InProcessFederation(tiny_job(folder), datalists)


def test_a_bad_update_is_left_out_and_named(datalists):
    def tamper(site, number, update):
        return {name: value * np.nan for name, value in update.items()} if (site, number) == ("beta", 1) else update

    federation = InProcessFederation(tiny_job(ROOT / "jobs" / "hippocampus_fedavg"), datalists, tamper=tamper)
    federation.run()
    assert [(e["round"], e["site"]) for e in federation.events] == [(1, "beta")]
    assert sorted(federation.rounds[1]["weights"]) == ["alpha", "gamma"]


def test_a_round_without_any_update_is_an_error(datalists):
    federation = InProcessFederation(
        tiny_job(ROOT / "jobs" / "hippocampus_fedavg"), datalists, tamper=lambda site, number, update: {}
    )
    with pytest.raises(FedsegError, match="nothing to aggregate"):
        federation.run_round()


def test_one_attacker_ruins_the_mean_and_not_the_median(datalists):
    """The same bad update, ten thousand times too long, under both rules."""

    def tamper(site, number, update):
        return {n: v * np.float32(-1e4) for n, v in update.items()} if site == "gamma" else update

    moved = {}
    for name, path in (("mean", "fedavg.FedAvg"), ("median", "robust.CoordinateMedian")):
        job = tiny_job(ROOT / "jobs" / "hippocampus_fedavg", rounds=1)
        job.set("workflow.aggregator", {"path": f"fedseg.aggregators.{path}", "args": {}})
        federation = InProcessFederation(job, datalists, tamper=tamper)
        start = federation.model.weights
        federation.run()
        moved[name] = max(float(np.abs(federation.model.weights[n] - start[n]).max()) for n in start)
    assert moved["median"] < 1
    assert moved["mean"] > 100 * moved["median"]


# ----------------------------------------------------------------- what may leave

NOISE = {"path": "fedseg.filters.noise.GaussianNoise", "args": {"clip": 0.5, "noise_multiplier": 10.0}}


def private_job(*filters, rounds=2):
    job = tiny_job(ROOT / "jobs" / "hippocampus_fedavg", rounds)
    job.set("training", PLAN["training"])
    job.client["task_result_filters"] = [{"tasks": ["train"], "filters": list(filters)}]
    return job


def ledger_of(state, site):
    return Ledger(state / site / "ledger", simulated=True)


def test_a_private_job_tells_its_epsilon_and_no_scores(datalists, tmp_path):
    """Each site has a ledger of its own, with all rounds."""
    federation = InProcessFederation(private_job(NOISE), datalists, state=tmp_path)
    federation.run()
    assert federation.events == []
    for number, entry in enumerate(federation.rounds):
        assert set(entry["sites"]) == set(SITES)
        for site, values in entry["sites"].items():
            withheld = ("train_loss", "val_loss", "val_loss_after", "val_dice_after", "personal_dice")
            assert [values[name] for name in withheld] == [None] * len(withheld)
            assert (values["val_dice"], entry["val_dice"], values["num_samples"]) == ({}, None, SITES[site][0])
            (step,) = values["privacy"]
            assert (step["filter"], step["releases"]) == ("GaussianNoise", number + 1)
            assert values["epsilon"] == step["epsilon"] > 0
    for site in SITES:
        history = ledger_of(tmp_path, site).history()
        assert [entry["round"] for entry in history] == [0, 1]
        assert {entry["run_id"] for entry in history} == {federation.run_id}
        spent = ledger_of(tmp_path, site).spent(1e-5)
        assert spent.epsilon == federation.rounds[-1]["sites"][site]["epsilon"]


def test_a_second_federation_on_the_same_ledgers_goes_on_where_the_first_ended(datalists, tmp_path):
    """And one with ledgers of its own starts anew."""
    for releases in (1, 2):
        federation = InProcessFederation(private_job(NOISE, rounds=1), datalists, state=tmp_path)
        federation.run()
        assert federation.rounds[0]["sites"]["beta"]["privacy"][0]["releases"] == releases
    federation = InProcessFederation(private_job(NOISE, rounds=1), datalists)
    federation.run()
    assert federation.rounds[0]["sites"]["beta"]["privacy"][0]["releases"] == 1


def test_a_site_that_has_spent_its_privacy_is_left_out_and_named(datalists, tmp_path):
    """The limit is 50, of which an earlier job on one of beta's patients has spent 49.5."""
    place = {"job": "earlier", "run_id": "earlier", "round_number": 0, "delta": 1e-5, "budget": None}
    ledger_of(tmp_path, "beta").charge("tiny", ["beta-0"], Release("pure", epsilon=49.5), **place)
    federation = InProcessFederation(private_job(NOISE), datalists, state=tmp_path)
    federation.run()
    assert [(e["round"], e["site"]) for e in federation.events] == [(0, "beta"), (1, "beta")]
    assert all("the site allows 50" in event["what"] for event in federation.events)
    assert all(set(entry["sites"]) == set(entry["weights"]) == {"alpha", "gamma"} for entry in federation.rounds)
    assert len(ledger_of(tmp_path, "beta").history()) == 1


# ------------------------------------------------------------------ where it starts


def test_a_federation_starts_from_the_jobs_model(datalists, tmp_path):
    """Else from the plan's seeded network."""
    job = tiny_job(ROOT / "jobs" / "hippocampus_fedavg", rounds=1)
    seeded = InProcessFederation(job, datalists).model.weights
    moved = {name: value + 1 if value.dtype.kind == "f" else value for name, value in seeded.items()}
    job.initial = write_model(tmp_path / "model.safetensors", job.plan, moved, 5)
    federation = InProcessFederation(job, datalists)
    for name, value in moved.items():
        np.testing.assert_array_equal(federation.model.weights[name], value)
        assert np.array_equal(value, seeded[name]) == (value.dtype.kind != "f")
    federation.run()
    assert federation.events == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": {**PLAN["network"], "channels": [4, 8, 12]}}, "is of another network than the job's"),
        ({"task": {**PLAN["task"], "regions": {"inner": ["inner"]}}}, r"was made for a to inner \(inner\); the job"),
        ({"task": {**PLAN["task"], "channels": ["b"]}}, "was made for b to .* the job needs one for a to"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_the_start(datalists, tmp_path, changes, said):
    job = tiny_job(ROOT / "jobs" / "hippocampus_fedavg", rounds=1)
    for key, value in changes.items():
        job.set(key, value)
    other = InProcessFederation(job, datalists).model.weights
    model = write_model(tmp_path / "model.safetensors", job.plan, other, 0)
    job = tiny_job(ROOT / "jobs" / "hippocampus_fedavg", rounds=1)
    job.initial = model
    with pytest.raises(DataError, match=said):
        InProcessFederation(job, datalists)
