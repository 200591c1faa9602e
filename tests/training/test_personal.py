"""A site's own arrays: kept on its disk from round to round, and what training may not change."""

import numpy as np
import pytest

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.site.state import SiteState
from fedseg.training.site_round import site_round
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from hooked import assert_same, start_of
from tiny import PLAN, make_sites

OUTPUT = ("model.2.1.conv.unit0.conv.weight", "model.2.1.conv.unit0.conv.bias")
PLAN_ = parse_plan({**PLAN, "training": {**PLAN["training"], "weight_decay": 0.1}})
ROUNDS = 3


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (3, 1)}) / "a")


def make(datalist, folder=None, private=OUTPUT, frozen=(), keep=2):
    state = SiteState(folder, "run", keep) if folder is not None else None
    return SiteTrainer(PLAN_, "a", datalist, TrainerSetup(state, private=frozenset(private), frozen=frozenset(frozen)))


def only(arrays, names=OUTPUT):
    return {name: arrays[name] for name in names}


def without(arrays, names=OUTPUT):
    return {name: value for name, value in arrays.items() if name not in names}


def sent_by_server(weights, number):
    """A global model that is never the site's own: every array of floating point moved a little."""
    shift = np.float32(0.01 * (number + 1))
    return {n: v + shift if v.dtype.kind == "f" else v for n, v in weights.items()}


@pytest.fixture(scope="module")
def rounds(datalist, tmp_path_factory):
    """The state folder of three rounds (all states kept), and the site's weights after each of them."""
    folder = tmp_path_factory.mktemp("state")
    site = make(datalist, folder, keep=0)
    start = start_of(site)
    after = [site.train_round(site.own_model(sent_by_server(start, n), n), n, ROUNDS).weights for n in range(ROUNDS)]
    return folder, start, after


@pytest.mark.parametrize("on_disk", [True, False])
def test_before_the_first_round_the_private_arrays_are_the_global_models(datalist, tmp_path, on_disk):
    site = make(datalist, tmp_path if on_disk else None)
    weights = sent_by_server(start_of(site), 0)
    assert_same(site.own_model(weights, 0), weights)
    assert_same(site.own_model(weights), weights)


@pytest.mark.parametrize("on_disk", [True, False])
def test_after_it_they_are_the_sites_own_and_the_others_the_global_models(datalist, tmp_path, on_disk):
    site = make(datalist, tmp_path if on_disk else None)
    start = start_of(site)
    own = site.train_round(start, 0, ROUNDS).weights
    received = sent_by_server(start, 1)
    for personal in (site.own_model(received, 1), site.own_model(received)):
        assert_same(only(personal), only(own))
        assert_same(without(personal), without(received))
    assert all(not np.array_equal(own[name], start[name]) for name in OUTPUT)


def test_the_global_model_is_not_changed_by_it(datalist, rounds):
    folder, start, _ = rounds
    before = {name: value.copy() for name, value in start.items()}
    personal = make(datalist, folder).own_model(start)
    for name in OUTPUT:
        personal[name] += 1
    assert_same(start, before)


def test_a_new_process_finds_them_on_disk(datalist, rounds):
    folder, start, after = rounds
    assert_same(only(make(datalist, folder).own_model(start)), only(after[-1]))
    assert_same(only(make(datalist, folder).own_model(start, ROUNDS)), only(after[-1]))


def test_a_round_that_is_repeated_starts_from_the_state_before_it(datalist, rounds):
    """Not from what the lost round left; and it so gives the same bits."""
    folder, start, after = rounds
    site = make(datalist, folder, keep=0)
    assert_same(only(site.own_model(start, 2)), only(after[1]))
    assert_same(only(site.own_model(start, 1)), only(after[0]))
    assert_same(only(site.own_model(start, 0)), only(start))
    again = site.train_round(site.own_model(sent_by_server(start, 2), 2), 2, ROUNDS).weights
    assert_same(again, after[2])


def test_without_private_arrays_the_model_is_everybodys(datalist, rounds):
    folder, start, _ = rounds
    assert make(datalist, folder, private=()).own_model(start) is start


def test_a_damaged_state_is_refused_and_not_replaced_by_the_global_model(datalist, tmp_path):
    site = make(datalist, tmp_path)
    start = start_of(site)
    site.train_round(start, 0, ROUNDS)
    (tmp_path / "run" / "round-00000.pt").write_bytes(b"damaged")
    with pytest.raises(RefusalError, match="state after round 1 is damaged") as error:
        make(datalist, tmp_path).own_model(start, 1)
    assert error.value.reason == "state"


def test_a_round_scores_and_trains_the_personal_model(datalist, tmp_path):
    """The loss on validation cases is that of the personal model; the update is counted from it."""
    site = make(datalist, tmp_path)
    start = start_of(site)
    site_round(site, start, 0, ROUNDS)
    received = sent_by_server(start, 1)
    personal = site.own_model(received, 1)
    losses = [np.mean([case.loss for case in site.validate(weights)]) for weights in (personal, received)]
    update, report = site_round(site, received, 1, ROUNDS)
    assert report.val_loss == pytest.approx(losses[0])
    assert abs(losses[0] - losses[1]) > 1e-4
    own = site.own_model(received)
    for name in OUTPUT:
        np.testing.assert_allclose(own[name], personal[name] + update[name], rtol=0, atol=1e-7)


# ------------------------------------------------------------------------- frozen


def test_frozen_parameters_keep_every_bit(datalist, tmp_path):
    """Through rounds of an optimizer with momentum and weight decay, and a restart."""
    start = start_of(make(datalist))
    parameters = [name for name, _ in make(datalist).network.named_parameters()]
    frozen = set(parameters) - set(OUTPUT)
    weights = start
    for number in range(2):
        result = make(datalist, tmp_path, private=(), frozen=frozen).train_round(weights, number, ROUNDS)
        assert_same(only(result.weights, frozen), only(start, frozen))
        for name, change in result.update.items():
            assert np.any(change) == (name in OUTPUT), name
        weights = result.weights


def test_frozen_parameters_have_no_state_and_no_gradient(datalist):
    frozen = [name for name in start_of(make(datalist)) if name not in OUTPUT]
    site = make(datalist, private=(), frozen=frozen)
    site.train_round(start_of(site), 0, ROUNDS)
    trained = {name for name, p in site.network.named_parameters() if p.grad is not None}
    assert trained == set(OUTPUT)
    assert len(site.optimizer.state_dict()["state"]) == len(OUTPUT)


def test_a_network_without_anything_to_train_is_refused(datalist):
    names = list(start_of(make(datalist)))
    with pytest.raises(ConfigurationError, match=r"^frozen is \d+, but must be fewer than all parameters"):
        make(datalist, private=(), frozen=names)
