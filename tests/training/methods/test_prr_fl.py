import cmath
import itertools
import math
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
from fedseg.training.methods.prr_fl import EXCHANGE, PRRFL, RECOVER, SUBLIMATE, lesson, mix_frequencies
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


# ---------------------------------------------------------------- frequencies


def slow_spectrum(matrix):
    """Two-dimensional discrete Fourier transform from its definition."""
    rows, columns = matrix.shape
    found = np.zeros(matrix.shape, complex)
    for u, v in itertools.product(range(rows), range(columns)):
        turns = ((u * y / rows + v * x / columns, matrix[y, x]) for y in range(rows) for x in range(columns))
        found[u, v] = sum(value * cmath.exp(-2j * math.pi * turn) for turn, value in turns)
    return found


def as_matrix(kernel):
    """[N, C, d1, d2, d3] as [C d1 d2, d3 N], value by value."""
    n, c, *d = kernel.shape
    matrix = np.zeros((c * d[0] * d[1], d[2] * n))
    for i, j, a, b, e in itertools.product(*map(range, kernel.shape)):
        matrix[(j * d[0] + a) * d[1] + b, e * n + i] = kernel[i, j, a, b, e]
    return matrix


@pytest.mark.parametrize("width", [0.1, 0.5, 0.9])
def test_low_frequencies_are_shared_and_high_ones_are_kept(width):
    draw = np.random.default_rng(0)
    own, shared = (draw.normal(size=(3, 2, 2, 2, 2)).astype(np.float32) for _ in range(2))
    mixed, mine, theirs = (
        slow_spectrum(as_matrix(each)) for each in (mix_frequencies(own, shared, width), own, shared)
    )
    rows, columns = mixed.shape
    low = 0
    for u, v in itertools.product(range(rows), range(columns)):
        inside = min(u, rows - u) / rows < width / 2 and min(v, columns - v) / columns < width / 2
        assert mixed[u, v] == pytest.approx(theirs[u, v] if inside else mine[u, v], abs=1e-4)
        low += inside
    assert 0 < low < rows * columns


@pytest.mark.parametrize("shape", [(4, 3, 3, 3, 3), (5, 2, 1, 1, 1), (2, 2, 3, 3)])
@pytest.mark.parametrize("width", [0.0, 0.3, 0.7, 1.0])
def test_mixing_a_kernel_with_itself_changes_nothing(shape, width):
    kernel = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    mixed = mix_frequencies(kernel, kernel, width)
    assert (mixed.dtype, mixed.shape) == (kernel.dtype, kernel.shape)
    np.testing.assert_allclose(mixed, kernel, atol=1e-6)


def test_the_ends_are_exact_and_other_arrays_are_shared():
    draw = np.random.default_rng(2)
    own, shared = (draw.normal(size=(2, 2, 3, 3, 3)).astype(np.float32) for _ in range(2))
    np.testing.assert_array_equal(mix_frequencies(own, shared, 1.0), shared)
    np.testing.assert_array_equal(mix_frequencies(own, shared, 0.0), own)
    np.testing.assert_array_equal(mix_frequencies(own[0, 0, 0], shared[0, 0, 0], 0.5), shared[0, 0, 0])


def test_the_mean_of_complex_spectra_is_that_of_the_weights_and_that_of_amplitudes_and_phases_is_not():
    """Why the server may stay FedAvg, and why the published mean is left out."""
    kernels = np.random.default_rng(3).normal(size=(4, 6, 6))
    spectra = np.fft.fft2(kernels)
    np.testing.assert_allclose(np.fft.ifft2(spectra.mean(0)).real, kernels.mean(0), atol=1e-12)
    published = np.abs(spectra).mean(0) * np.exp(1j * np.angle(spectra).mean(0))
    assert np.abs(np.fft.ifft2(published).real - kernels.mean(0)).max() > 0.1


def test_the_window_grows_over_the_rounds(datalist, monkeypatch):
    widths = []
    monkeypatch.setattr(
        "fedseg.training.methods.prr_fl.mix_frequencies", lambda own, shared, width: widths.append(width) or shared
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
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(arguments, named):
    with pytest.raises(ConfigurationError, match=f"{named} is "):
        PRRFL(**arguments)
