import numpy as np
import pytest

from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.networks.weights import get_weights
from fedseg.site.state import SiteState
from fedseg.training.methods.apfl import APFL
from hooked import (
    ROUNDS,
    assert_differ,
    assert_same,
    check_seeded_and_restarted,
    make_trainer,
    plain_rounds,
    run_rounds,
    start_of,
)
from tiny import make_sites
from training.methods.quadratic import RATE, Quadratic


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (4, 1)}) / "a")


def personal(trainer):
    return trainer.companions["personal"].weights()


def trained(datalist, hook, rounds=ROUNDS):
    trainer = make_trainer(datalist, [hook])
    run_rounds(lambda: trainer, rounds=rounds)
    return trainer


def test_with_a_share_of_one_the_personal_model_is_that_of_a_site_alone(datalist):
    alone = make_trainer(datalist)
    weights = start_of(alone)
    for number in range(ROUNDS):
        weights = alone.train_round(weights, number, ROUNDS).weights
    assert_same(personal(trained(datalist, APFL(1.0, adaptive=False))), weights)


def test_with_a_share_of_zero_it_is_the_sites_own_model_after_the_round(datalist):
    trainer = trained(datalist, APFL(0.0, adaptive=False))
    assert_same(personal(trainer), get_weights(trainer.network))


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_federation_is_untouched_to_the_last_bit(datalist, tmp_path, alpha):
    assert_same(check_seeded_and_restarted(datalist, lambda: APFL(alpha), tmp_path), plain_rounds(datalist))


def test_personal_model_and_share_survive_a_restart(datalist, tmp_path):
    living = make_trainer(datalist, [APFL(0.3)], SiteState(tmp_path / "living", "run"))
    run_rounds(lambda: living)
    trainers = []

    def reborn():
        trainers.append(make_trainer(datalist, [APFL(0.3)], SiteState(tmp_path / "reborn", "run")))
        return trainers[-1]

    run_rounds(reborn)
    assert_same(personal(trainers[-1]), personal(living))
    assert trainers[-1].hooks[0].share == living.hooks[0].share != 0.3
    assert_differ(personal(living), get_weights(living.network))


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("alpha", [0.2, 0.7])
def test_steps_by_hand(adaptive, alpha):
    """Algorithm 1 of the paper on a quadratic loss, over two rounds."""
    hook = APFL(alpha, adaptive)
    site = Quadratic(hook, "personal", "local")
    rounds = [([1.0, 2.0], [[3.0, -1.0], [0.0, 4.0]]), ([-1.0, 0.5], [[2.0, 2.0], [5.0, 0.0]])]
    v, share = None, alpha
    for received, batches in rounds:
        own = site.round(received, batches)
        w = np.array(received)
        v = w.copy() if v is None else v
        for number, centre in enumerate(batches):
            slope = share * v + (1 - share) * w - np.array(centre)
            if adaptive and number == 0:
                share = float(np.clip(share - RATE * np.dot(v - w, slope), 0, 1))
            v = v - RATE * share * slope
            w = w - RATE * (w - np.array(centre))
        np.testing.assert_allclose(own, w, rtol=1e-12)
        np.testing.assert_allclose(site.at("local"), v, rtol=1e-12)
        np.testing.assert_allclose(site.at("personal"), share * v + (1 - share) * w, rtol=1e-12)
        assert hook.share == pytest.approx(share, rel=1e-12)
    assert (share != alpha) is adaptive


@pytest.mark.parametrize("sign", [1, -1])
def test_the_share_stays_within_its_bounds(sign):
    hook = APFL(0.5)
    site = Quadratic(hook, "personal", "local")
    site.round([0.0, 0.0], [[1.0, 1.0]] * 50)
    site.round([-100.0, -100.0], [[sign * 1e4, sign * 1e4]])
    assert hook.share == (1.0 if sign > 0 else 0.0)


def test_the_report_tells_share_and_score(datalist):
    trainer = trained(datalist, APFL(0.3, adaptive=False), rounds=1)
    told = trainer.hooks[0].report(trainer)
    assert told["local_share"] == 0.3
    assert 0 <= told["personal_score"] <= 1


@pytest.mark.parametrize(
    ("arguments", "named"), [({"alpha": -0.1}, "alpha"), ({"alpha": 1.1}, "alpha"), ({"adaptive": 1}, "adaptive")]
)
def test_wrong_arguments_are_refused(arguments, named):
    with pytest.raises(ConfigurationError, match=f"{named} is "):
        APFL(**arguments)
