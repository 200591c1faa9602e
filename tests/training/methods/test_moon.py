import math

import pytest
import torch

from fedseg.data.datalist import read_datalist
from fedseg.errors import AbortedError, ConfigurationError
from fedseg.networks.weights import get_weights
from fedseg.site.state import SiteState
from fedseg.training.hooks import TrainingHook
from fedseg.training.methods.moon import MOON, contrastive_term
from hooked import assert_differ, assert_same, check_seeded_and_restarted, make_trainer, plain_rounds, start_of
from tiny import make_sites


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (4, 1)}) / "a")


STEADY = {"batch_size": 4, "local_epochs": 4, "schedule": "constant"}


class Terms(MOON):
    """MOON that writes down its terms."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seen = []

    def loss(self, trainer, images, logits, classes):
        before = torch.get_rng_state()
        term = super().loss(trainer, images, logits, classes)
        assert torch.equal(torch.get_rng_state(), before), "the further forward passes must draw nothing"
        self.seen.append(float(term.detach()))
        return term


def test_the_term_by_hand():
    current = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    towards = torch.tensor([[3.0, 0.0], [1.0, 0.0]])  # cosines 1 and 0
    away = torch.tensor([[0.0, 1.0], [0.0, -1.0]])  # cosines 0 and -1
    # both images: cosine to the global one larger by 1, over 0.5: -log(e^2 / (e^2 + 1)) = log(1 + e^-2)
    expected = math.log(1 + math.exp(-2))
    assert float(contrastive_term(current, towards, away, 0.5)) == pytest.approx(expected, rel=1e-6)
    # the other way round: log(1 + e^2)
    assert float(contrastive_term(current, away, towards, 0.5)) == pytest.approx(math.log(1 + math.exp(2)), rel=1e-6)


def test_a_small_temperature_does_not_overflow():
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    # gap 2 / 0.001 = 2000, and log(1 + e^2000) = 2000 to float32
    assert float(contrastive_term(one, other, one, 1e-3)) == pytest.approx(2000)


def test_the_gradient_pulls_towards_the_global_features():
    current = torch.tensor([[1.0, 1.0]], requires_grad=True)
    contrastive_term(current, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.5).backward()
    assert current.grad[0, 0] < 0 < current.grad[0, 1]


def test_the_first_round_is_log_two_and_trains_like_none(datalist):
    hook = Terms()
    trainer = make_trainer(datalist, [hook], changes={"local_epochs": 2})
    update = trainer.train_round(start_of(trainer), 0, 1).update
    assert hook.seen == pytest.approx([math.log(2)] * 4, rel=1e-6)
    assert_same(update, make_trainer(datalist, changes={"local_epochs": 2}).train_round(start_of(trainer), 0, 1).update)


def test_later_rounds_compare_with_the_own_model_of_the_round_before(datalist):
    """The first step's term of round 1, computed from three networks run by hand."""
    hook = Terms(2.0, 0.3)
    trainer = make_trainer(datalist, [hook], changes=STEADY)
    received = start_of(trainer)
    own = trainer.train_round(received, 0, 2).weights
    trainer.train_round(received, 1, 2)

    def features(weights):
        network = make_trainer(datalist).network
        network.load_state_dict({n: torch.from_numpy(v) for n, v in weights.items()})
        layers = network.model  # two levels above the bottleneck, see `PLAN`
        with torch.no_grad():
            inner = layers[1].submodule
            return inner[1].submodule(inner[0](layers[0](images))).mean(dim=(2, 3, 4))

    images = next(trainer.batches(1, 0))["image"]
    expected = 2.0 * float(contrastive_term(features(received), features(received), features(own), 0.3))
    assert hook.seen[4] == pytest.approx(expected, rel=1e-5)
    assert abs(hook.seen[4] - 2 * math.log(2)) > 1e-3


def test_the_term_moves_the_features(datalist):
    def last(mu):
        hook = Terms(mu)
        trainer = make_trainer(datalist, [hook], changes=STEADY)
        received = start_of(trainer)
        for number in range(2):
            trainer.train_round(received, number, 2)
        return hook.seen[-1] / mu

    # Without the pull the second round ends near the model of the first: further from the global one than log 2 says.
    assert last(1e-9) > math.log(2)
    assert last(20.0) < math.log(2) - 0.01


def test_training_is_seeded_and_survives_a_restart(datalist, tmp_path):
    assert_differ(check_seeded_and_restarted(datalist, lambda: MOON(5.0), tmp_path), plain_rounds(datalist))


def test_mu_zero_is_plain_training_to_the_last_bit(datalist, tmp_path):
    assert_same(check_seeded_and_restarted(datalist, lambda: MOON(0.0), tmp_path), plain_rounds(datalist))


def test_an_aborted_round_leaves_nothing_behind(datalist, tmp_path):
    class Stop(TrainingHook):
        on = False

        def batch(self, trainer, batch):
            if self.on:
                raise AbortedError("now")
            return batch

    stop = Stop()
    site = make_trainer(datalist, [MOON(), stop], SiteState(tmp_path / "1", "run"))
    other = make_trainer(datalist, [MOON()], SiteState(tmp_path / "2", "run"))
    start = get_weights(site.network)
    for trainer in (site, other):
        trainer.train_round(start, 0, 2)
    stop.on = True
    with pytest.raises(AbortedError):
        site.train_round(start, 1, 2)
    stop.on = False
    assert_same(site.train_round(start, 1, 2).update, other.train_round(start, 1, 2).update)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"mu": -1}, "mu"), ({"temperature": 0}, "temperature"), ({"temperature": "x"}, "temperature")],
)
def test_wrong_arguments_are_refused(arguments, named):
    with pytest.raises(ConfigurationError, match=f"{named} is .*number"):
        MOON(**arguments)
