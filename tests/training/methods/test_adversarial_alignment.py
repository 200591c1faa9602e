"""Adversarial alignment: the limit that is FedAvg, its terms by hand, what leaves, and that it aligns."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.weights import set_weights
from fedseg.site.state import SiteState
from fedseg.training.methods.adversarial_alignment import (
    AdversarialAlignment,
    _Discriminator,
    _learn,
    adversarial_term,
    cross_entropy,
)
from fedseg.training.methods.bottleneck_features import BottleneckFeatures
from hooked import ROUNDS, assert_differ, assert_same, check_seeded_and_restarted, make_trainer, plain_rounds, start_of
from tiny import PLAN, make_sites

NAME, COUNT, WIDTH = "features/bottleneck", 5, 8


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (3, 1)}) / "a")


def bank(number=1, sites=2, seed=0):
    """What the server sends: nothing yet in the first round."""
    drawn = np.random.default_rng(seed + number).normal(1, 1, (sites if number else 0, COUNT, WIDTH))
    return {"shared": {NAME: drawn.astype(np.float32)}}


def test_strength_zero_is_fedavg_to_the_last_bit_and_sends_no_features(datalist, tmp_path):
    weights = check_seeded_and_restarted(datalist, lambda: AdversarialAlignment(0.0), tmp_path, bank)
    assert_same(weights, plain_rounds(datalist))
    trainer = make_trainer(datalist, [AdversarialAlignment(0.0)])
    assert trainer.companions == {}
    result = trainer.train_round(start_of(trainer), 1, ROUNDS, **bank())
    assert result.shared[NAME].shape == (COUNT, WIDTH)
    assert not result.shared[NAME].any()


def test_it_changes_training_survives_a_restart_and_follows_from_the_seed(datalist, tmp_path):
    weights = check_seeded_and_restarted(datalist, lambda: AdversarialAlignment(1.0), tmp_path, bank)
    assert_differ(weights, plain_rounds(datalist))


def test_without_others_and_before_its_first_round_training_is_plain(datalist):
    for hook, number in ((AdversarialAlignment(1.0), 0), (AdversarialAlignment(1.0, from_round=2), 1)):
        trainer, plain = make_trainer(datalist, [hook]), make_trainer(datalist)
        result = trainer.train_round(start_of(trainer), number, ROUNDS, **bank(number))
        assert_same(result.update, plain.train_round(start_of(plain), number, ROUNDS).update)
        assert hook.report(trainer) == {}


def test_features_leave_only_for_a_round_that_uses_them(datalist):
    def sent(number, total, **arguments):
        trainer = make_trainer(datalist, [AdversarialAlignment(**arguments)])
        return trainer.train_round(start_of(trainer), number, total, **bank(number)).shared[NAME]

    assert sent(0, 2).any()
    assert not sent(1, 2).any(), "no round comes after it"
    assert not sent(0, 5, from_round=2).any()
    assert sent(1, 5, from_round=2).any()


def test_what_leaves_are_bottleneck_features_of_the_rounds_patches(datalist):
    """Without noise against a loop over patches; with noise of the standard deviation that was asked for."""
    found = {}
    for noise in (0.0, 0.5):
        trainer = make_trainer(datalist, [AdversarialAlignment(noise=noise)])
        result = trainer.train_round(start_of(trainer), 0, 2, shared={NAME: np.zeros((0, 120, WIDTH), np.float32)})
        found[noise] = result.shared[NAME]
    network, watched = parse_plan(PLAN).build_network().eval(), BottleneckFeatures()
    set_weights(network, result.weights)
    watched.watch(trainer.plan.network.arguments.bottleneck(network))
    expected = []
    for epoch in range(2):
        for batch in trainer.batches(0, epoch):
            for image in batch["image"]:
                with torch.no_grad():
                    network(image[None])
                expected.append(watched.features()[0].numpy())
    np.testing.assert_allclose(found[0.0][:6], expected[:6], rtol=1e-3, atol=1e-4)
    assert found[0.0].shape == (120, WIDTH)
    added = found[0.5] - found[0.0]
    assert added.std() == pytest.approx(0.5 * found[0.0].std(), rel=0.1)
    assert abs(added.mean()) < 0.1 * found[0.0].std()


def test_cross_entropies_by_hand():
    logits = torch.tensor([[-1.0], [0.5], [2.0]])
    ones = [math.log(1 + math.exp(-x)) for x in (-1.0, 0.5, 2.0)]
    zeros = [math.log(1 + math.exp(x)) for x in (-1.0, 0.5, 2.0)]
    assert float(cross_entropy(logits, 1.0)) == pytest.approx(sum(ones) / 3)
    assert float(cross_entropy(logits, 0.0)) == pytest.approx(sum(zeros) / 3)


def test_the_discriminator_learns_to_tell_features_apart_and_not_what_is_the_same():
    draw = torch.Generator().manual_seed(0)
    for apart, least, most in ((3.0, 0.95, 1.0), (0.0, 0.3, 0.7)):
        torch.manual_seed(0)
        discriminator = _Discriminator(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1)), 0.01)
        for _ in range(200):
            own, others = torch.randn(64, 4, generator=draw) + apart, torch.randn(64, 4, generator=draw)
            accuracy = _learn(discriminator, own, others)
        assert least <= accuracy <= most


def test_term_and_discriminator_together_align_features():
    """A cloud that can only be moved ends where the others are, and the discriminator at chance."""
    torch.manual_seed(0)
    discriminator = _Discriminator(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1)), 0.01)
    draw, offset = torch.Generator().manual_seed(0), torch.zeros(8, requires_grad=True)
    mover, accuracies = torch.optim.Adam([offset], 0.02), []
    for _ in range(400):
        own = torch.randn(32, 8, generator=draw) + offset
        accuracies.append(_learn(discriminator, own.detach(), torch.randn(32, 8, generator=draw) + 2.0))
        mover.zero_grad()
        adversarial_term(discriminator.network, own).backward()
        mover.step()
    assert float((offset.detach() - 2.0).norm()) < 1.5, "it was 5.7"
    assert np.mean(accuracies[20:50]) > 0.7
    assert 0.4 < np.mean(accuracies[-50:]) < 0.65


def test_gradients_of_the_term_reach_the_network_and_not_the_discriminator(datalist):
    """With a loss of zero beside it, what the network gets is the term's; the discriminator has its own step's only."""
    hook = AdversarialAlignment(1.0)
    trainer = make_trainer(datalist, [hook])
    trainer.received_shared_arrays = bank()["shared"]
    trainer.loss = lambda logits, targets: 0.0 * logits.sum()
    hook.before_round(trainer, {}, 1)
    discriminator, features = trainer.companions["discriminator"], []
    before, bottleneck = discriminator.weights(), trainer.plan.network.arguments.bottleneck(trainer.network)
    bottleneck.register_forward_hook(lambda m, i, output: features.append(output.detach().flatten(2).mean(dim=2)))
    trainer.compute_gradients(next(trainer.batches(1, 0)))
    assert any(bool(p.grad.any()) for p in trainer.network.parameters() if p.grad is not None)
    own, others = features[0], torch.from_numpy(bank()["shared"][NAME].reshape(-1, WIDTH))
    alone = make_trainer(datalist, [AdversarialAlignment(1.0)]).companions["discriminator"]
    assert_same(alone.weights(), before)
    _learn(alone, own, others)
    for one, other in zip(discriminator.network.parameters(), alone.network.parameters(), strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one.grad, other.grad)


def test_the_discriminator_stays_at_the_site(datalist, tmp_path):
    state = SiteState(tmp_path, "run")
    trainer = make_trainer(datalist, [AdversarialAlignment(1.0)], state)
    result = trainer.train_round(start_of(trainer), 1, ROUNDS, **bank())
    assert set(result.shared) == {NAME}
    kept = state.load(ROUNDS)["companions"]["discriminator"]
    assert kept["optimizer"]["state"]
    again = make_trainer(datalist, [AdversarialAlignment(1.0)], state)
    again.restore(ROUNDS)
    assert_same(again.companions["discriminator"].weights(), trainer.companions["discriminator"].weights())


def test_a_job_without_the_servers_half_is_refused(datalist):
    trainer = make_trainer(datalist, [AdversarialAlignment()])
    with pytest.raises(RefusalError, match="lacks SharedFeatures"):
        trainer.train_round(start_of(trainer), 0, ROUNDS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("strength", -1), ("noise", -0.1), ("from_round", 0), ("hidden", 0), ("rate", 0), ("strength", "much")],
)
def test_arguments_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ConfigurationError, match=f"{name} is "):
        AdversarialAlignment(**{name: value})
