"""Parts of a network in training: what a site trains of them, and what leaves it."""

from dataclasses import replace

import numpy as np
import pytest

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.models.model_file import read_model, write_model
from fedseg.networks.weights import get_weights
from fedseg.site.state import SiteState
from fedseg.training.hooks import TrainingHook
from fedseg.training.site_round import empty_round, site_round
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from tiny import PLAN, make_sites
from toy_parts import NAMES, declare


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (2, 1)}) / "a")


def trained(plan, datalist, round_number, state=None, weights=None):
    trainer = SiteTrainer(parse_plan(plan), "a", datalist, TrainerSetup(state=state))
    weights = weights if weights is not None else get_weights(trainer.plan.build_network())
    return trainer, weights, trainer.train_round(weights, round_number, 3)


@pytest.mark.parametrize(
    ("arguments", "round_number", "trains", "sends"),
    [
        ({}, 0, True, True),
        ({"private": True}, 0, True, False),
        ({"sites": ["a"]}, 0, True, True),
        ({"sites": ["b*"]}, 0, False, False),
        ({"from_round": 2}, 1, False, False),
        ({"from_round": 2}, 2, True, True),
    ],
)
def test_a_site_trains_and_sends_what_is_its(arguments, round_number, trains, sends, datalist, monkeypatch):
    _, weights, result = trained(declare(monkeypatch, **arguments), datalist, round_number)
    moved = [not np.array_equal(result.weights[name], weights[name]) for name in NAMES]
    assert moved == [trains, trains]
    assert [name in result.update for name in NAMES] == [sends, sends]
    others = [name for name in weights if name not in NAMES]
    assert all(name in result.update for name in others)


def test_an_array_that_is_not_trained_changes_nothing_of_the_others(datalist, monkeypatch):
    """A fixed identity in front of the network is the network without the part."""
    plan = declare(monkeypatch, sites=["b"])
    weights = get_weights(parse_plan(plan).build_network())
    weights |= {NAMES[0]: np.ones_like(weights[NAMES[0]]), NAMES[1]: np.zeros_like(weights[NAMES[1]])}
    _, _, result = trained(plan, datalist, 0, weights=weights)
    _, _, bare = trained(PLAN, datalist, 0)
    assert set(result.update) == set(bare.update)
    for name, value in bare.update.items():
        np.testing.assert_array_equal(result.update[name], value)


def test_arrays_that_are_trained_from_a_later_round_on_survive_a_restart(datalist, tmp_path, monkeypatch):
    """The optimizer of the round before knows them already; gradients of a round do not count in the next one."""
    plan = declare(monkeypatch, from_round=1)
    living = SiteTrainer(parse_plan(plan), "a", datalist)
    kept = SiteTrainer(parse_plan(plan), "a", datalist, TrainerSetup(SiteState(tmp_path / "kept", "run")))
    expected = weights = get_weights(living.plan.build_network())
    reborn = weights
    for number in range(3):
        expected = living.train_round(expected, number, 3).weights
        weights = kept.train_round(weights, number, 3).weights
        _, _, result = trained(plan, datalist, number, SiteState(tmp_path / "reborn", "run"), reborn)
        reborn = result.weights
        for name, value in expected.items():
            np.testing.assert_array_equal(weights[name], value, err_msg=name)
            np.testing.assert_array_equal(reborn[name], value, err_msg=name)


def test_private_arrays_stay_the_sites_own_from_round_to_round(datalist, tmp_path, monkeypatch):
    plan, state = declare(monkeypatch, private=True), SiteState(tmp_path, "run")
    _, weights, result = trained(plan, datalist, 0, state)
    reborn = SiteTrainer(parse_plan(plan), "a", datalist, TrainerSetup(state=state))
    personal = reborn.own_model(weights, 1)
    for name in weights:
        np.testing.assert_array_equal(personal[name], result.weights[name] if name in NAMES else weights[name])


def test_an_update_of_zeros_holds_no_more_than_any_other(datalist, monkeypatch):
    trainer, weights, _ = trained(declare(monkeypatch, private=True), datalist, 0)
    assert set(empty_round(trainer, weights)[0]) == set(site_round(trainer, weights, 0, 3)[0])


def test_a_hook_sees_the_gradients_of_what_is_trained_only(datalist, monkeypatch):
    class Watch(TrainingHook):
        def after_backward(self, training):
            self.missing = {n for n, p in training.network.named_parameters() if p.grad is None}

    watch, plan = Watch(), parse_plan(declare(monkeypatch, from_round=1))
    trainer = SiteTrainer(plan, "a", datalist, TrainerSetup(hooks=[watch]))
    weights = get_weights(plan.build_network())
    trainer.train_round(weights, 0, 3)
    assert watch.missing == set(NAMES)
    trainer.train_round(weights, 1, 3)
    assert watch.missing == set()


def test_a_model_file_carries_parts_and_names_the_arrays_that_are_the_sites_own(tmp_path, monkeypatch):
    plan = parse_plan(declare(monkeypatch, private=True))
    weights = get_weights(plan.build_network())
    model = read_model(write_model(tmp_path / "m", plan, weights, 0))
    assert model.network == plan.network
    assert model.notes["own_arrays"] == sorted(NAMES)
    for name, value in get_weights(model.build()).items():
        np.testing.assert_array_equal(value, weights[name])
    shared = replace(plan, network=parse_plan(declare(monkeypatch)).network)
    assert "own_arrays" not in read_model(write_model(tmp_path / "m", shared, weights, 0)).notes
