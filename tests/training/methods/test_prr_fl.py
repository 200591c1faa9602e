from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.networks.weights import get_weights
from fedseg.site.state import SiteState
from fedseg.tasks.objective import objective_of
from fedseg.tasks.registry import BRATS
from fedseg.training.methods.ditto import Ditto
from fedseg.training.methods.prr_fl import EXCHANGE, PRRFL, RECOVER, SUBLIMATE, lesson
from hooked import assert_differ, assert_same, check_seeded_and_restarted, make_trainer, plain_rounds, run_rounds
from tiny import make_sites


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (4, 1)}) / "a")


def trained(datalist, hook, state=None):
    trainer = make_trainer(datalist, [hook], state)
    return trainer, run_rounds(lambda: trainer)


def personal(trainer):
    return trainer.companions["personal"].weights()


def test_with_all_frequencies_and_no_teaching_it_is_fedavg_beside_a_site_alone(datalist):
    """To the last bit; the personal model is that of Ditto without a pull."""
    trainer, weights = trained(datalist, PRRFL(share=1.0, teaching=0.0, grow=False))
    assert_same(weights, plain_rounds(datalist))
    assert_same(personal(trainer), personal(trained(datalist, Ditto(0.0))[0]))


def test_without_any_frequency_a_site_keeps_its_own_convolutions(datalist):
    hook = PRRFL(share=0.0, teaching=0.0)
    trainer = make_trainer(datalist, [hook])
    start = get_weights(trainer.plan.build_network())
    own = trainer.train_round(start, 0, 3).weights
    hook.before_round(trainer, start, 1)
    assert_same(get_weights(trainer.network), {n: own[n] if v.ndim > 2 else v for n, v in start.items()})


def test_with_its_own_phases_a_site_takes_amplitudes_only(datalist):
    hook = PRRFL(share=1.0, teaching=0.0, grow=False, own_phase=True)
    trainer = make_trainer(datalist, [hook])
    start = get_weights(trainer.plan.build_network())
    own = trainer.train_round(start, 0, 3).weights
    hook.before_round(trainer, start, 1)
    for name, value in get_weights(trainer.network).items():
        if value.ndim < 3:
            np.testing.assert_array_equal(value, start[name])
            continue
        found, left, received = (
            np.fft.fft2(np.moveaxis(each.astype(float), 0, -1).reshape(-1, value.shape[0] * value.shape[-1]))
            for each in (value, own[name], start[name])
        )
        np.testing.assert_allclose(np.abs(found), np.abs(received), atol=1e-4)
        np.testing.assert_allclose(found * np.conj(left), np.abs(found * left), atol=1e-3)


def test_seeded_and_restarted(datalist, tmp_path):
    weights = check_seeded_and_restarted(datalist, PRRFL, tmp_path)
    assert_differ(weights, plain_rounds(datalist))


def test_the_personal_model_survives_a_restart(datalist, tmp_path):
    living, _ = trained(datalist, PRRFL(), SiteState(tmp_path / "living", "run"))
    trainers = []

    def reborn():
        trainers.append(make_trainer(datalist, [PRRFL()], SiteState(tmp_path / "reborn", "run")))
        return trainers[-1]

    run_rounds(reborn)
    assert_same(personal(trainers[-1]), personal(living))


def test_the_window_grows_over_the_rounds(datalist, monkeypatch):
    widths = []
    monkeypatch.setattr(
        "fedseg.training.methods.prr_fl.mix_frequencies",
        lambda own, shared, width, own_phase: widths.append(width) or shared,
    )
    trained(datalist, PRRFL(share=0.6, teaching=0.0))
    assert list(dict.fromkeys(widths)) == pytest.approx([0.4, 0.6])


# ---------------------------------------------------------------- who teaches whom


@pytest.mark.parametrize(
    ("deputy", "own", "stage"),
    [
        (0.60, 1.0, RECOVER), (0.69, 1.0, RECOVER), (0.71, 1.0, EXCHANGE), (0.89, 1.0, EXCHANGE),
        (0.91, 1.0, SUBLIMATE), (1.0, 0.5, SUBLIMATE), (0.0, 0.0, SUBLIMATE), (None, 0.5, EXCHANGE),
        (0.5, None, EXCHANGE),
    ],
)  # fmt: skip
def test_the_stage_follows_from_both_scores(deputy, own, stage):
    training = SimpleNamespace(objective=objective_of(BRATS))
    assert PRRFL()._stage(training, deputy, own) == stage


def test_a_lesson_is_the_mean_squared_difference_of_activated_outputs(datalist):
    trainer = make_trainer(datalist)
    network, images = trainer.plan.build_network(), torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        given = trainer.objective.activate(network.eval()(images))
    logits = torch.randn_like(given, requires_grad=True)
    expected = ((trainer.objective.activate(logits) - given) ** 2).mean()
    found = lesson(trainer, network.train(), images, logits)
    assert torch.isclose(found, expected)
    assert network.training
    assert float(lesson(trainer, network, images, network.eval()(images)).detach()) == 0
    found.backward()
    assert logits.grad.abs().sum() > 0
    assert all(p.grad is None for p in network.parameters())


def test_without_validation_cases_both_teach_each_other(datalist):
    hook = PRRFL()
    trainer = make_trainer(replace(datalist, validation=()), [hook])
    trainer.train_round(get_weights(trainer.plan.build_network()), 0, 1)
    assert hook.stage == EXCHANGE


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"share": 1.1}, "share"), ({"share": -0.1}, "share"), ({"recover": -1}, "recover"),
        ({"recover": 0.9, "exchange": 0.8}, "exchange"), ({"teaching": -1}, "teaching"), ({"grow": 1}, "grow"),
        ({"own_phase": 1}, "own_phase"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(arguments, named):
    with pytest.raises(ConfigurationError, match=f"{named} is "):
        PRRFL(**arguments)
