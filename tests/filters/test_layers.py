"""Private layers never leave, the global model keeps all its arrays, and the limits are FedAvg and local training."""

import re
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from fedseg.contract.plan import parse_plan
from fedseg.contract.update import Update
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.filters.layers import PrivateLayers, SharedLayers
from fedseg.jobs.job import read_job
from fedseg.networks.registry import ResidualUNet
from fedseg.networks.weights import get_weights
from fedseg.simulation.in_process import InProcessFederation
from fedseg.training.trainer import SiteTrainer
from outgoing import REPORT, make_context, make_update
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
PLAN_ = parse_plan(PLAN)
NAMES = frozenset(get_weights(PLAN_.network.build(1, 2, 0)))
OUTPUT = {"model.2.1.conv.unit0.conv.weight", "model.2.1.conv.unit0.conv.bias"}
SITES = {"alpha": (3, 1), "beta": (2, 1)}


@pytest.fixture(scope="module")
def datalists(tmp_path_factory):
    data = make_sites(tmp_path_factory.mktemp("data"), SITES)
    return {site: read_datalist(data / site) for site in SITES}


def tiny_job(chain, method="hippocampus_fedavg", rounds=2, network=None):
    """A FedAvg job of equal weights whose updates go through ``chain``."""
    job = read_job(ROOT / "jobs" / method)
    job.set("task", PLAN["task"])
    job.set("network", network or PLAN["network"])
    job.set("workflow.num_rounds", rounds)
    job.set("aggregator.weight_by", "uniform")
    filters = [{"path": f"fedseg.filters.layers.{name}", "args": arguments} for name, arguments in chain]
    job.client["task_result_filters"] = [{"tasks": ["train"], "filters": filters}] if filters else []
    return job


def run(job, datalists, sites=tuple(SITES), tamper=None):
    federation = InProcessFederation(job, {site: datalists[site] for site in sites}, tamper=tamper)
    start = {name: value.copy() for name, value in federation.model.weights.items()}
    federation.run()
    assert federation.events == []
    return federation, start


def assert_equal(left, right, names=None):
    assert set(left) == set(right)
    for name in names or left:
        np.testing.assert_array_equal(left[name], right[name])


# ------------------------------------------------------------------ what leaves


@pytest.mark.parametrize(
    ("filter_", "private"),
    [
        (PrivateLayers(last=1), OUTPUT),
        (SharedLayers(last=1), NAMES - OUTPUT),
        (PrivateLayers(patterns=["model.2.*"]), {n for n in NAMES if n.startswith("model.2.")}),
        (SharedLayers(patterns=["model.2.*"]), {n for n in NAMES if not n.startswith("model.2.")}),
        (PrivateLayers(kind="norm"), {n for n in NAMES if ".N." in n}),
        (SharedLayers(kind="norm"), {n for n in NAMES if ".N." not in n}),
        (PrivateLayers(["model.0.*"], "norm", 1), {n for n in NAMES if ".N." in n or n[:8] == "model.0."} | OUTPUT),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_private_arrays_never_leave(tmp_path, filter_, private):
    assert filter_.private_names(PLAN_) == private
    assert filter_.frozen_names(PLAN_) == frozenset()
    update = make_update()
    sent = filter_.run(update, make_context(tmp_path))
    assert set(sent.arrays) == NAMES - private
    for name, value in sent.arrays.items():
        np.testing.assert_array_equal(value, update.arrays[name])
    (step,) = sent.steps
    assert step["coordinates"] == sum(v.size for v in update.arrays.values())
    assert step["shared"] == sum(v.size for n, v in update.arrays.items() if n not in private)


def test_the_two_are_complements():
    for arguments in ({"last": 3}, {"kind": "norm"}, {"patterns": ["*bias"]}):
        kept = PrivateLayers(**arguments).private_names(PLAN_)
        assert kept | SharedLayers(**arguments).private_names(PLAN_) == NAMES
        assert not kept & SharedLayers(**arguments).private_names(PLAN_)


def test_frozen_layers_are_not_private():
    """They stay as the server sent them, so the site keeps none of its own."""
    filter_ = SharedLayers(last=1, frozen=True)
    assert filter_.private_names(PLAN_) == frozenset()
    assert filter_.frozen_names(PLAN_) == NAMES - OUTPUT


# ---------------------------------------------------------------------- limits


def test_nothing_private_is_fedavg(datalists):
    plain, _ = run(tiny_job([]), datalists)
    shared, _ = run(tiny_job([("SharedLayers", {"patterns": ["*"]})]), datalists)
    assert_equal(plain.model.weights, shared.model.weights)


def test_all_but_one_private_is_local_training(datalists):
    """The one shared array comes back as alpha sent it: beta sends alpha's update, and the mean of two equals is one.

    So alpha must get what a loop over its own rounds gets. The shared array goes through a difference and back, which
    may round its last bit; the other arrays follow from it.
    """
    one = "model.2.1.conv.unit0.conv.bias"
    of_alpha = {}

    def copy_alpha(site, number, update):
        if site == "alpha":
            of_alpha[number] = update
        return of_alpha[number]

    job = tiny_job([("SharedLayers", {"patterns": [one]})])
    federation, weights = run(job, datalists, tamper=copy_alpha)
    alone = SiteTrainer(job.plan, "alpha", datalists["alpha"])
    for number in range(2):
        weights = alone.train_round(weights, number, 2).weights
    personal = federation.trainers["alpha"].own_model(federation.model.weights)
    for name, value in weights.items():
        np.testing.assert_allclose(personal[name], value, rtol=0, atol=1e-6)
    other = federation.trainers["beta"].own_model(federation.model.weights)
    assert all(np.abs(other[name] - personal[name]).max() > 1e-4 for name in NAMES - {one})


@pytest.mark.parametrize(
    ("chain", "network"),
    [
        ([("PrivateLayers", {"last": 1})], None),
        ([("PrivateLayers", {"kind": "norm"})], None),
        ([("PrivateLayers", {"kind": "norm"})], {"name": "dynunet", "filters": [4, 4, 4], "strides": [1, 2, 2]}),
    ],
    ids=["flop", "fedbn", "fedbn-dynunet"],
)
def test_the_global_model_keeps_all_arrays_and_the_private_ones_as_they_were(datalists, chain, network):
    job = tiny_job(chain, network=network)
    federation, start = run(job, datalists)
    private = job.build_filters()[0].private_names(job.plan)
    weights = federation.model.weights
    assert set(weights) == set(start)
    assert_equal(weights, start, names=private)
    assert all(not np.array_equal(weights[name], start[name]) for name in set(start) - private)
    for site, trainer in federation.trainers.items():
        personal = trainer.own_model(weights)
        assert any(not np.array_equal(personal[name], start[name]) for name in private), site
        assert_equal(personal, weights, names=set(start) - private)


def test_frozen_layers_stay_at_every_site(datalists):
    federation, start = run(tiny_job([("SharedLayers", {"last": 1, "frozen": True})]), datalists)
    weights = federation.model.weights
    assert_equal(weights, start, names=NAMES - OUTPUT)
    assert all(not np.array_equal(weights[name], start[name]) for name in OUTPUT)
    for trainer in federation.trainers.values():
        assert_equal(trainer.own_model(weights), weights)


def test_private_layers_come_back_after_a_restart(datalists, tmp_path):
    """A new process finds the site's own arrays on disk."""
    job = tiny_job([("PrivateLayers", {"last": 1})])
    federation = InProcessFederation(job, datalists, state=tmp_path)
    federation.run()
    before = federation.trainers["alpha"]
    again = InProcessFederation(job, datalists, state=tmp_path).trainers["alpha"]
    again.state = before.state
    weights = federation.model.weights
    assert_equal(again.own_model(weights), before.own_model(weights))
    assert any(not np.array_equal(again.own_model(weights)[name], weights[name]) for name in OUTPUT)


@pytest.mark.parametrize("name", ["brats_flop", "brats_fedbn"])
def test_the_jobs_keep_something(name):
    job = read_job(ROOT / "jobs" / name)
    private = job.build_filters()[0].private_names(job.check())
    assert private
    if name == "brats_flop":
        assert private == {"model.2.1.conv.unit0.conv.weight", "model.2.1.conv.unit0.conv.bias"}


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "patterns, kind or last"),
        ({"patterns": []}, "patterns"),
        ({"patterns": "model.*"}, "patterns"),
        ({"patterns": [1]}, "patterns"),
        ({"patterns": [""]}, "patterns"),
        ({"patterns": ["*", "patient 7"]}, "patterns"),
        ({"patterns": ["[patient-7]*"]}, "patterns"),
        ({"patterns": ["{$HOME}"]}, "patterns"),
        ({"patterns": ["*, /data/x"]}, "patterns"),
        ({"patterns": ["*" * 101]}, "patterns"),
        ({"kind": "conv"}, "kind"),
        ({"last": 0}, "last"),
        ({"last": True}, "last"),
        ({"last": 1.0}, "last"),
    ],
)
@pytest.mark.parametrize("kind", [PrivateLayers, SharedLayers])
def test_wrong_arguments_are_refused_by_name(kind, arguments, named):
    with pytest.raises(ConfigurationError, match=rf"^{kind.__name__}.*{named}"):
        kind(**arguments)


def test_frozen_is_a_switch():
    with pytest.raises(ConfigurationError, match=r"SharedLayers\.frozen"):
        SharedLayers(last=1, frozen=1)


@pytest.mark.parametrize("kind", [PrivateLayers, SharedLayers])
def test_a_pattern_that_matches_nothing_is_refused(kind):
    with pytest.raises(ConfigurationError, match=rf"^{kind.__name__}\.patterns is 'head\.\*'.*model\."):
        kind(patterns=["model.*", "head.*"]).private_names(PLAN_)


@pytest.mark.parametrize("arguments", [{"patterns": ["*"]}, {"last": 1000}])
def test_nothing_left_to_share_is_refused(arguments):
    with pytest.raises(ConfigurationError, match=r"leaves something to share.*--compare local"):
        tiny_job([("PrivateLayers", arguments)]).check()


def test_normalisation_without_parameters_is_refused(monkeypatch):
    """Else FedBN would silently be FedAvg."""

    def without_parameters(self, in_channels, out_channels, patch_size):
        return nn.Sequential(nn.Conv3d(in_channels, out_channels, 3, padding=1), nn.InstanceNorm3d(out_channels))

    monkeypatch.setattr(ResidualUNet, "build", without_parameters)
    said = re.escape("PrivateLayers.kind") + ".*neither parameters nor buffers.*affine"
    with pytest.raises(ConfigurationError, match=said):
        PrivateLayers(kind="norm").private_names(PLAN_)


def test_an_update_of_private_arrays_only_is_refused(tmp_path):
    update = Update({name: make_update().arrays[name] for name in OUTPUT}, REPORT)
    with pytest.raises(RefusalError, match="leaves nothing of this update"):
        PrivateLayers(last=1).run(update, make_context(tmp_path))
