"""Split training in one process: limit cases in which its kinds are one another, and what a job's plan must hold."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.jobs.job import read_job
from split_in_process import CYCLIC, POOLED, SPLIT, SplitInProcess
from tiny import PLAN, make_sites

JOB = Path(__file__).parents[3] / "jobs" / "hippocampus_splitavg"
ROUNDS = 2


@pytest.fixture(scope="module")
def datalists(tmp_path_factory):
    data = make_sites(tmp_path_factory.mktemp("data"), {"alpha": (4, 1), "beta": (3, 1)})
    return {site: read_datalist(data / site) for site in ("alpha", "beta")}


def plan_of(**split):
    """The job's plan on a tiny task, features unrounded."""
    job = read_job(JOB)
    for key in ("task", "network", "training"):
        job.set(key, PLAN[key])
    for name, value in {"message": "float32", **split}.items():
        job.set(f"split.{name}", value)
    return job.check()


def trained(plan, datalists, kind, steps=None):
    loop = SplitInProcess(plan, datalists, kind)
    for _ in range(ROUNDS):
        loop.run_round(ROUNDS, steps)
    return loop


def distance(first, second):
    assert set(first) == set(second)
    return max(float(np.abs(first[name] - second[name]).max()) for name in first)


def test_summed_gradients_are_training_on_the_pooled_batches(datalists):
    plan = plan_of(site_update="summed")
    split, pooled = trained(plan, datalists, SPLIT), trained(plan, datalists, POOLED)
    assert distance(split.weights("alpha"), pooled.weights("alpha")) < 1e-5
    assert distance(split.weights("alpha"), trained(plan, datalists, CYCLIC).weights("alpha")) > 1e-3
    assert [r["samples"] for r in split.rounds] == [r["samples"] for r in pooled.rounds] == [7, 7]


def test_with_one_site_every_kind_is_ordinary_training(datalists):
    one = {"alpha": datalists["alpha"]}
    plan = plan_of(site_update="summed")
    loops = [trained(plan, one, kind) for kind in (SPLIT, POOLED, CYCLIC)]
    weights = [loop.weights("alpha") for loop in loops]
    assert distance(weights[1], weights[2]) < 1e-6
    assert distance(weights[0], weights[1]) < 1e-5
    in_turn = plan_of(site_update="handed_on")
    assert distance(trained(plan_of(), one, SPLIT).weights("alpha"), trained(in_turn, one, SPLIT).weights("alpha")) == 0


def test_in_turn_and_cyclic_leave_one_model_and_separate_parts_one_for_each_site(datalists):
    for kind in (SPLIT, CYCLIC):
        loop = trained(plan_of(site_update="handed_on"), datalists, kind)
        assert distance(loop.weights("alpha"), loop.weights("beta")) == 0
        assert loop.rounds[0]["iterations"] == 4
        assert loop.rounds[0]["samples"] == 7
    apart = trained(plan_of(), datalists, SPLIT)
    assert distance(apart.site_part("alpha"), apart.site_part("beta")) > 0
    both = apart.evaluate()
    assert set(both["sites"]) == {"alpha", "beta"}
    assert 0 <= both["mean_dice"] <= 1


def test_the_number_of_iterations_can_be_given_and_bytes_grow_with_it(datalists):
    once, thrice = (trained(plan_of(), datalists, SPLIT, steps) for steps in (1, 3))
    assert once.rounds[0]["iterations"] == 1
    # alpha has batches of two, and of one after them: 2 + 2 + 2 of its four cases.
    assert thrice.bytes["alpha"] == [3 * value for value in once.bytes["alpha"]]


def test_a_plan_without_a_split_is_refused_where_one_is_needed(datalists):
    with pytest.raises(ConfigurationError, match="split"):
        SplitInProcess(replace(plan_of(), split=None), datalists, SPLIT)
    with pytest.raises(ConfigurationError, match="kind"):
        SplitInProcess(plan_of(), datalists, "all at once")
