import math

import pytest
import torch
from torch.nn import functional

from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.training.methods.fedmax import FedMax, entropy_term
from hooked import assert_differ, assert_same, check_seeded_and_restarted, make_trainer, plain_rounds, start_of
from tiny import make_sites


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (4, 1)}) / "a")


def test_the_term_by_hand():
    # softmax 3/4 and 1/4: KL = (log(2/3) + log 2) / 2 = log(4/3) / 2; over the two features: a quarter of log(4/3)
    activations = torch.tensor([[math.log(3.0), 0.0]])
    assert float(entropy_term(activations)) == pytest.approx(math.log(4 / 3) / 4, rel=1e-5)


def test_the_term_is_torchs_divergence_over_images_and_features():
    activations = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    uniform = torch.full((5, 7), 1 / 7)
    expected = functional.kl_div(activations.log_softmax(1), uniform, reduction="sum")
    assert float(entropy_term(activations)) == pytest.approx(float(expected) / (5 * 7), rel=1e-5)


def test_equal_activations_cost_nothing_and_the_gradient_makes_them_equal():
    assert float(entropy_term(torch.full((2, 8), 3.0))) == pytest.approx(0, abs=1e-6)
    activations = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
    entropy_term(activations).backward()
    assert activations.grad[0, 0] > 0 > activations.grad[0, 2]


def test_training_makes_the_activations_more_equal(datalist):
    class Terms(FedMax):
        def __init__(self, beta):
            super().__init__(beta)
            self.seen = []

        def loss(self, trainer, images, logits, classes):
            term = super().loss(trainer, images, logits, classes)
            self.seen.append(float(term.detach()) / self.beta)
            return term

    def last(beta):
        hook = Terms(beta)
        changes = {"batch_size": 4, "local_epochs": 15, "schedule": "constant"}
        trainer = make_trainer(datalist, [hook], changes=changes)
        trainer.train_round(start_of(trainer), 0, 1)
        return hook.seen[-1]

    assert last(1000.0) < 0.5 * last(1e-6)


def test_training_is_seeded_and_survives_a_restart(datalist, tmp_path):
    assert_differ(check_seeded_and_restarted(datalist, lambda: FedMax(), tmp_path), plain_rounds(datalist))


def test_beta_zero_is_plain_training_to_the_last_bit(datalist, tmp_path):
    assert_same(check_seeded_and_restarted(datalist, lambda: FedMax(0.0), tmp_path), plain_rounds(datalist))


def test_a_wrong_strength_is_refused():
    with pytest.raises(ConfigurationError, match="beta is -1, but must be a number from 0 up"):
        FedMax(-1)
