import numpy as np
import pytest

from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.networks.weights import get_weights
from fedseg.training.methods.pfedme import PFedMe
from hooked import assert_differ, assert_same, check_seeded_and_restarted, make_trainer, plain_rounds, run_rounds
from tiny import make_sites
from training.methods.quadratic import RATE, Quadratic


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (4, 1)}) / "a")


def test_with_one_step_and_the_whole_way_to_it_a_round_is_one_of_fedavg(datalist, tmp_path):
    """To the last bit, also where the site dies after every round."""
    weights = check_seeded_and_restarted(datalist, lambda: PFedMe(lam=4.0, steps=1, rate=0.25), tmp_path)
    assert_same(weights, plain_rounds(datalist))


def test_then_the_personal_model_is_the_sites_own_after_the_round(datalist):
    trainer = make_trainer(datalist, [PFedMe(lam=4.0, steps=1, rate=0.25)])
    run_rounds(lambda: trainer)
    assert_same(trainer.companions["personal"].weights(), get_weights(trainer.network))


def test_otherwise_it_is_another(datalist):
    trainer = make_trainer(datalist, [PFedMe(lam=15.0, steps=2, rate=0.02)])
    weights = run_rounds(lambda: trainer)
    assert_differ(weights, plain_rounds(datalist))
    assert_differ(trainer.companions["personal"].weights(), get_weights(trainer.network))


@pytest.mark.parametrize(("lam", "steps", "rate"), [(1.0, 1, 0.5), (2.0, 3, 0.1), (5.0, 2, 0.2)])
def test_steps_by_hand(lam, steps, rate):
    """Algorithm 1 of the paper on a quadratic loss, over two rounds."""
    site = Quadratic(PFedMe(lam, steps, rate), "personal")
    for received, batches in [([1.0, 2.0], [[3.0, -1.0], [0.0, 4.0]]), ([-1.0, 0.5], [[2.0, 2.0]])]:
        own, w, theta = site.round(received, batches), np.array(received), np.array(received)
        for centre in batches:
            for _ in range(steps):
                theta = theta - RATE * ((theta - np.array(centre)) + lam * (theta - w))
            w = w - rate * lam * (w - theta)
        np.testing.assert_allclose(own, w, rtol=1e-12)
        np.testing.assert_allclose(site.at("personal"), theta, rtol=1e-12)


def test_with_many_steps_the_way_of_w_is_the_gradient_of_the_moreau_envelope():
    """For half the squared distance to c the envelope's gradient is lam / (1 + lam) * (w - c)."""
    lam, rate, w, centre = 3.0, 0.05, np.array([1.0, -2.0]), np.array([4.0, 0.0])
    site = Quadratic(PFedMe(lam, steps=200, rate=rate), "personal")
    own = site.round(w.tolist(), [centre.tolist()])
    np.testing.assert_allclose(own, w - rate * lam / (1 + lam) * (w - centre), rtol=1e-9)


def test_a_strong_pull_leaves_little_of_a_personal_model():
    def way(lam):
        site = Quadratic(PFedMe(lam, steps=200, rate=1e-3), "personal")
        own = site.round([0.0, 0.0], [[1.0, 1.0]])
        return float(np.abs(site.at("personal") - own).max())

    assert way(0.1) > 0.9
    assert way(9.0) < 0.11


def test_the_reported_loss_is_that_before_the_batch(datalist):
    one, plain = (make_trainer(datalist, hooks) for hooks in ([PFedMe(4.0, 1, 0.25)], []))
    start = get_weights(plain.plan.build_network())
    results = [trainer.train_round(start, 0, 1) for trainer in (one, plain)]
    assert results[0].train_loss == results[1].train_loss


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"lam": 0}, "lam"), ({"steps": 0}, "steps"), ({"rate": 0}, "rate"), ({"lam": 2.0, "rate": 0.6}, "rate")],
)
def test_wrong_arguments_are_refused(arguments, named):
    with pytest.raises(ConfigurationError, match=f"{named} is "):
        PFedMe(**arguments)
