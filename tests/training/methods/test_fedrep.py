"""FedRep and FedPer: a head of the site's own under a body that all share."""

from pathlib import Path

import numpy as np
import pytest

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.jobs.job import read_job
from fedseg.networks.weights import apply_difference
from fedseg.simulation.in_process import InProcessFederation
from fedseg.site.state import SiteState
from fedseg.training.methods.fedrep import FedRep
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from hooked import assert_differ, assert_same, start_of
from tiny import PLAN, make_sites

JOBS = Path(__file__).parents[3] / "jobs"
HEAD = frozenset({"model.2.1.conv.unit0.conv.weight", "model.2.1.conv.unit0.conv.bias"})
ROUNDS = 3


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (4, 1)}) / "a")


def make(datalist, hooks=(), private=HEAD, frozen=(), epochs=1, state=None):
    plan = parse_plan({**PLAN, "training": {**PLAN["training"], "local_epochs": epochs}})
    setup = TrainerSetup(state, hooks=hooks, private=frozenset(private), frozen=frozenset(frozen))
    return SiteTrainer(plan, "a", datalist, setup)


def part(arrays, head):
    return {name: value for name, value in arrays.items() if (name in HEAD) is head}


def body_of(site):
    return frozenset(start_of(site)) - HEAD


@pytest.mark.parametrize("epochs", [1, 2])
def test_without_epochs_of_the_head_the_body_alone_is_trained(datalist, epochs):
    """As where the head is frozen at all sites, to the last bit."""
    site, frozen = make(datalist, [FedRep(0)], epochs=epochs), make(datalist, private=(), frozen=HEAD, epochs=epochs)
    start = start_of(site)
    weights = site.train_round(start, 0, ROUNDS).weights
    assert_same(weights, frozen.train_round(start, 0, ROUNDS).weights)
    assert_same(part(weights, head=True), part(start, head=True))


@pytest.mark.parametrize("head_epochs", [1, 2])
def test_the_head_comes_first_and_then_the_body_under_that_head(datalist, head_epochs):
    """A round is one of a site whose body is frozen, and then one of a site whose head is frozen."""
    site = make(datalist, [FedRep(head_epochs)], epochs=2)
    start = start_of(site)
    result = site.train_round(start, 0, ROUNDS)
    first = make(datalist, frozen=body_of(site), epochs=head_epochs).train_round(start, 0, ROUNDS).weights
    then = make(datalist, frozen=HEAD, epochs=2).train_round(first, 0, ROUNDS)
    assert_same(result.weights, then.weights)
    assert_same(part(result.weights, head=True), part(first, head=True))
    assert_differ(part(first, head=True), part(start, head=True))
    # The steps that a rule such as FedNova counts are those of the body.
    assert (result.num_steps, result.train_loss) == (then.num_steps, then.train_loss)


def test_a_site_that_dies_after_every_round_goes_on_with_its_head(datalist, tmp_path):
    def rounds(make_site):
        weights, heads = start_of(make_site()), []
        for number in range(ROUNDS):
            site = make_site()
            result = site.train_round(site.own_model(weights, number), number, ROUNDS)
            weights = apply_difference(weights, {n: 0.9 * v for n, v in result.update.items() if n not in HEAD})
            heads.append(part(result.weights, head=True))
        return weights, heads

    living = make(datalist, [FedRep(1)], state=SiteState(tmp_path / "living", "run"))
    weights, heads = rounds(lambda: living)
    again, found = rounds(lambda: make(datalist, [FedRep(1)], state=SiteState(tmp_path / "reborn", "run")))
    assert_same(weights, again)
    for one, other in zip(heads, found, strict=True):
        assert_same(one, other)
    assert_same(part(living.own_model(weights), head=True), heads[-1])


def test_everything_can_be_trained_again_after_a_round(datalist):
    site = make(datalist, [FedRep(1)])
    site.train_round(start_of(site), 0, ROUNDS)
    assert all(p.requires_grad for p in site.network.parameters())


def test_arrays_that_nobody_trains_stay_as_they_are(datalist):
    name = next(iter(sorted(body_of(make(datalist)) & {n for n, _ in make(datalist).network.named_parameters()})))
    site = make(datalist, [FedRep(1)], frozen=[name])
    start = start_of(site)
    np.testing.assert_array_equal(site.train_round(start, 0, ROUNDS).weights[name], start[name])
    assert [n for n, p in site.network.named_parameters() if not p.requires_grad] == [name]


@pytest.mark.parametrize("whole", [False, True])
def test_a_site_without_a_head_or_without_a_body_is_refused(datalist, whole):
    names = start_of(make(datalist)) if whole else ()
    site = make(datalist, [FedRep(1)], private=names)
    with pytest.raises(ConfigurationError, match=r"FedRep: a site's own is '[0-9]+ of [0-9]+ trained arrays'"):
        site.train_round(start_of(site), 0, ROUNDS)


def test_a_job_without_a_filter_that_keeps_layers_is_refused():
    job = read_job(JOBS / "brats_fedrep")
    job.check()
    del job.client["task_result_filters"]
    with pytest.raises(ConfigurationError, match="FedRep needs layers that each site keeps for itself"):
        job.check()


def test_an_average_over_steps_is_refused():
    """It would be of steps before and after the head's, and so take the head's back."""
    job = read_job(JOBS / "brats_fedrep")
    job.set("training.weight_average", 0.9)
    with pytest.raises(ConfigurationError, match=r"training.weight_average is 0.9, but must be 0 with FedRep"):
        job.check()


@pytest.mark.parametrize("epochs", [-1, 0.5, "1"])
def test_wrong_epochs_are_refused(epochs):
    with pytest.raises(ConfigurationError, match="head_epochs is "):
        FedRep(head_epochs=epochs)


def federation(name, datalists, plain=False):
    job = read_job(JOBS / name)
    for key in ("task", "network"):
        job.set(key, PLAN[key])
    job.set("workflow.num_rounds", 2)
    if plain:
        del job.client["task_result_filters"]
    job.check()
    run = InProcessFederation(job, datalists)
    run.run()
    assert run.events == []
    return run


def test_fedper_of_one_site_is_fedavg(datalist):
    """With nobody to differ from, a head of one's own is the head of all; a difference is rounded on its way back."""
    own, plain = (federation("hippocampus_fedper", {"a": datalist}, plain) for plain in (False, True))
    found = own.trainers["a"].own_model(own.model.weights)
    assert found.keys() == plain.model.weights.keys()
    for name, value in plain.model.weights.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ["hippocampus_fedper", "brats_fedrep"])
def test_heads_differ_and_bodies_do_not(name, tmp_path):
    data = make_sites(tmp_path, {"a": (3, 1), "b": (2, 1)})
    run = federation(name, {site: read_datalist(data / site) for site in "ab"})
    one, other = (run.trainers[site].own_model(run.model.weights) for site in "ab")
    private = run.trainers["a"].private
    assert private
    assert private < set(one)
    assert all(np.array_equal(one[n], other[n]) is (n not in private) for n in one if one[n].dtype.kind == "f")
