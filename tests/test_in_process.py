"""Every job trains: its rule, objective, optimizer and selection, two rounds on tiny images in one process."""

from pathlib import Path

import numpy as np
import pytest

from fedseg.data.datalist import read_datalist
from fedseg.errors import FedsegError
from fedseg.in_process import InProcessFederation
from fedseg.jobs import read_job
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[1]
JOBS = sorted(path.parent for path in (ROOT / "jobs").glob("*/meta.json"))
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
